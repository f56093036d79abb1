"""What happens to a soft decision tree beside gradient steps: leaves learn, subtrees are cut, decisions compared."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
import torch.distributed as dist
from torch import Tensor

from vitrarium.configs.errors import UserError
from vitrarium.models.classifier import TransparentClassifier
from vitrarium.models.modes import evaluating
from vitrarium.models.readouts.soft_tree import DECISIONS, SoftTree
from vitrarium.models.readouts.tree_math import leaf_counts
from vitrarium.train.distributed import world_size
from vitrarium.train.events.base import EVENTS, Event, Moment


def tree_of(model: TransparentClassifier, what: str) -> SoftTree:
    """The readout, if it is a tree.

    Raises:
        UserError: it is none.
    """
    if not isinstance(model.readout, SoftTree):
        raise UserError(
            f"event '{what}' works on the readout 'soft_tree', not on {type(model.readout).__name__}",
            "set model.readout.name=soft_tree, or leave the event out",
        )
    return model.readout


@EVENTS.register("update_leaves")
class UpdateLeaves(Event):
    """Leaves learn without gradients, after every optimiser step (Nauta et al., CVPR 2021).

    With c_old the values at the beginning of the epoch and T updates in an epoch,

        c <- relu(c - c_old / T) + sum_i p_i(leaf) softmax(c)_y [y = y_i] / yhat_i

    (:func:`~vitrarium.models.readouts.tree_math.leaf_counts`), so that a leaf is made of about one epoch's images. The
    gates are those the step itself has computed: the model does not run again. Over several processes the sums are
    those of all images. The share of images that come to each leaf is followed along the way, for explanations.

    Raises:
        UserError: a readout that is no tree; a stage that does not learn it, and so does not mix its leaves.
    """

    default_when: ClassVar[str] = "step"

    def __init__(self) -> None:
        self.epoch, self.old = -1, torch.empty(0)

    def check(self, model: TransparentClassifier) -> None:
        """Refuse what is no tree."""
        tree_of(model, "update_leaves")

    @torch.no_grad()
    def run(self, moment: Moment) -> None:
        """One update from what the step has answered."""
        tree = tree_of(moment.model, "update_leaves")
        if not moment.answers:
            raise UserError("event 'update_leaves' learns from the images of a step", "run it with when: step")
        if not tree.training:
            raise UserError(
                "event 'update_leaves' runs in a stage that does not learn the readout",
                "name readout in the stage's learn mapping",
            )
        if moment.epoch != self.epoch:
            self.epoch, self.old = moment.epoch, tree.leaves.clone()
        counts, reached = self._gather(tree, moment)
        every = max(moment.runs, 1.0)
        tree.leaves.copy_((tree.leaves - self.old.to(tree.leaves) / every).clamp_min(0) + counts)
        tree.reach.lerp_(reached / reached.sum(), 1 / every)

    def _gather(self, tree: SoftTree, moment: Moment) -> tuple[Tensor, Tensor]:
        """The sums (L, C) and the images in each leaf (L,) of this step, over all processes."""
        found = torch.zeros(
            len(tree.leaves), tree.leaves.shape[1] + 1, device=tree.leaves.device, dtype=tree.leaves.dtype
        )
        for batch, output in moment.answers:
            paths = output.evidence.state["leaf_paths"]
            found[:, :-1] += leaf_counts(paths, tree.leaves, batch.label)
            found[:, -1] += paths.exp().sum(0)
        if world_size() > 1:
            dist.all_reduce(found)
        return found[:, :-1], found[:, -1]

    def state_dict(self) -> dict[str, Any]:
        """The epoch, and the leaves at its beginning."""
        return {"epoch": self.epoch, "old": self.old}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Inverse of :meth:`state_dict`."""
        self.epoch, self.old = state["epoch"], state["old"]


@EVENTS.register("prune_tree")
class PruneTree(Event):
    """Cut subtrees in which no leaf has learnt anything: all their class probabilities are at most ``threshold``.

    The sibling of a cut subtree takes the place of their parent, which no longer asks (Nauta et al., CVPR 2021). Its
    unit is masked. Shapes stay, and the mask travels with the model.

    Args:
        threshold: largest class probability of a leaf that is cut, in (0, 1). None = 1 / C + 0.005, hardly more than a
            leaf that knows nothing; for the 200 classes of the paper that is its 0.01.

    Raises:
        UserError: a readout that is no tree, a threshold out of range; fewer than two leaves would be left (then
            nothing is cut).
    """

    def __init__(self, threshold: float | None = None) -> None:
        if threshold is not None and not 0 < threshold < 1:
            raise UserError(f"event 'prune_tree' with threshold={threshold}", "give a probability between 0 and 1")
        self.threshold = threshold

    def check(self, model: TransparentClassifier) -> None:
        """Refuse what is no tree."""
        tree_of(model, "prune_tree")

    @torch.no_grad()
    def run(self, moment: Moment) -> None:
        """Cut, mask the units of nodes that no longer decide, and log how many are left."""
        tree = tree_of(moment.model, "prune_tree")
        threshold = self.threshold or 1 / tree.leaves.shape[1] + 0.005
        tree.cut(tree.leaves.softmax(1).amax(1) > threshold)
        moment.model.evidence.alive &= tree.decides
        moment.log("tree/leaves", float(tree.kept.sum()))
        moment.log("tree/nodes", float(tree.decides.sum()))


@EVENTS.register("count_leaves")
class CountLeaves(Event):
    """Let every leaf say how often the training images that end in it are of each class.

    softmax(c) with c about as large as the number of images in a leaf is all but certain (log-probabilities of -1000),
    so a tree that answers with one leaf would always claim to be sure. With m_c images of class c in a leaf (clean
    training images, by the way the readout decides in evaluation) its values become

        c <- log((m_c + 1 / C) / (m + 1)),    m = sum_c m_c

    A leaf that none of them ends in takes for m_c the probabilities with which they might have. This is no part of the
    ProtoTree paper; it comes last, after projection, and changes no path.

    Raises:
        UserError: a readout that is no tree.
    """

    def check(self, model: TransparentClassifier) -> None:
        """Refuse what is no tree."""
        tree_of(model, "count_leaves")

    @torch.no_grad()
    def run(self, moment: Moment) -> None:
        """One pass over the training split."""
        model, tree = moment.model, tree_of(moment.model, "count_leaves")
        soft, hard = torch.zeros_like(tree.leaves), torch.zeros_like(tree.leaves)
        with evaluating(model):
            for batch in moment.loaders("train"):
                batch = batch.to(soft.device)
                vector = model.observe(model.look(batch)).vector
                soft.index_add_(1, batch.label, tree.paths(vector)[-1].exp().T.to(soft))
                hard.index_put_((tree.leaf(vector), batch.label), hard.new_ones(len(batch)), accumulate=True)
        mass = soft if tree.decide == "soft" else torch.where(hard.sum(1, keepdim=True) > 0, hard, soft)
        whole = mass.sum(1, keepdim=True)
        tree.leaves.copy_(((mass + 1 / mass.shape[1]) / (whole + 1)).log())
        tree.reach.copy_(mass.sum(1) / mass.sum())


@EVENTS.register("compare_decisions")
class CompareDecisions(Event):
    """Log how a tree does on the validation split when it decides softly, by the likeliest leaf, and greedily.

    ``tree/accuracy_<way>`` for the three ways, ``tree/agreement_<way>_<way>``, the share of images to which two ways
    give the same class (the fidelity of Nauta et al., CVPR 2021), and ``tree/path_length``, the mean number of
    questions of a greedy walk.

    Raises:
        UserError: a readout that is no tree.
    """

    def check(self, model: TransparentClassifier) -> None:
        """Refuse what is no tree."""
        tree_of(model, "compare_decisions")

    def run(self, moment: Moment) -> None:
        """One pass over the validation split."""
        for name, value in compare(moment).items():
            moment.log(f"tree/{name}", value)


def compare(moment: Moment) -> dict[str, float]:
    """The numbers of :class:`CompareDecisions`, without the prefix."""
    model, tree = moment.model, tree_of(moment.model, "compare_decisions")
    device, count, sums = tree.leaves.device, 0, dict[str, float]()

    def add(name: str, values: Tensor) -> None:
        sums[name] = sums.get(name, 0.0) + float(values.sum())

    with evaluating(model):
        for batch in moment.loaders("val"):
            batch = batch.to(device)
            evidence = model.on(batch).evidence
            classes = {way: answer.argmax(-1) for way, answer in tree.answers(evidence).items()}
            for way in DECISIONS:
                add(f"accuracy_{way}", classes[way] == batch.label)
            for one, other in itertools.combinations(DECISIONS, 2):
                add(f"agreement_{one}_{other}", classes[one] == classes[other])
            add("path_length", tree.path_length(evidence, "greedy"))
            count += len(batch)
    return {name: total / max(count, 1) for name, total in sums.items()}
