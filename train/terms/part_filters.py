"""The term that makes filters look for parts: how much a filter's map says about where its part is."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from torch import Tensor

from vitrarium.configs.errors import UserError
from vitrarium.data.source import DataSource
from vitrarium.models.classifier import TransparentClassifier
from vitrarium.models.evidence.part_filters import PLACE, WHOLE, PartFilters
from vitrarium.models.layers.templates import log_priors, templates, traces
from vitrarium.models.prototypes.similarity import at_least_float32
from vitrarium.train.distributed import shared_max, shared_mean, shared_sum
from vitrarium.train.terms.base import TERMS, Step, Term


@TERMS.register("filter_information")
class FilterInformation(Term):
    """Minus the mutual information of the maps of a filter and the place of its part, as a mean over filters.

    Zhang, Wu & Zhu (CVPR 2018): the maps X of a filter are to fall into n + 1 kinds, one for each place its part may
    be at and one for "no part here", as the templates T say:

        loss = -MI(X; T) = - sum over T of p(T) sum over x of p(x|T) log(p(x|T) / p(x))
        p(x|T) = exp(tr(x T)) / Z_T,    Z_T = sum over x of exp(tr(x T)),    p(x) = sum over T of p(T) p(x|T)

    Z_T belongs to all training images. Here it is a running mean of exp(tr(x T)), the batch included, to which no
    gradient flows; the number of images cancels. So the gradient is that of the paper,

        dloss/dx = - sum over T of p(T) T p(x|T) (tr(x T) - log Z_T - log p(x)).

    All is in the log domain, in single precision at least. The maps are those without masks. For each filter the term
    also keeps the mean response to each class, as a running mean, and files the class with the highest in the evidence
    (``PartFilters.class_of``).

    Args:
        source: the data.
        tau: the largest value of a template; None = 0.5 / n as in the paper, for maps whose values are in the tens.
        approximate: as the paper's shortcut: for an image of the filter's class the template of the strongest place
            alone is kept, for an image of another class the one of "no part here" alone.
        positive: probability that there is a part, in (0, 1); None = n / (n + 1).
        decay: of the running means in a step, in [0, 1). They begin as plain means.

    Raises:
        UserError: numbers out of range; evidence without part filters.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"maps", "filters"})
    log_partition: Tensor
    seen: Tensor
    class_sum: Tensor
    class_count: Tensor

    def __init__(
        self,
        source: DataSource,
        tau: float | None = None,
        approximate: bool = False,
        positive: float | None = None,
        decay: float = 0.99,
    ) -> None:
        super().__init__(source)
        if (tau is not None and tau <= 0) or not 0 <= decay < 1 or (positive is not None and not 0 < positive < 1):
            raise UserError(
                f"filter_information with tau={tau}, positive={positive}, decay={decay}",
                "give a tau above 0, a probability in (0, 1) and a decay in [0, 1)",
            )
        self.tau, self.approximate, self.positive, self.decay = tau, approximate, positive, decay
        self.register_buffer("log_partition", torch.zeros(0, 0))
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))
        self.register_buffer("class_sum", torch.zeros(0, 0))
        self.register_buffer("class_count", torch.zeros(0))

    def check(self, model: TransparentClassifier) -> None:
        """Refuse evidence that is not of part filters."""
        if not isinstance(model.evidence, PartFilters):
            raise UserError(
                f"the term 'filter_information' teaches part filters, the evidence is {type(model.evidence).__name__}",
                "choose evidence 'part_filters', or leave the term out",
            )

    def forward(self, step: Step) -> Tensor:
        """Mean over filters of minus the information, in nats, over the images of all processes."""
        layer, state = step.model.evidence, step.output.evidence.state
        assert isinstance(layer, PartFilters)
        (maps,) = at_least_float32(state[WHOLE])
        label = step.batch.label
        self._file_classes(layer, maps.detach(), label)
        height, width = maps.shape[2:]
        tau = 0.5 / (height * width) if self.tau is None else self.tau
        with torch.autocast(maps.device.type, enabled=False):
            trace = traces(maps, templates(height, width, layer.betas, tau, maps.device).to(maps.dtype))
            prior = log_priors(height * width, self.positive, maps.device).to(maps.dtype)
            ratio = trace - self._partition(trace.detach()).to(maps.dtype)
            if self.approximate:
                mine = layer.unit_owners()[:, label].T
                information = kept_information(ratio, prior, state[PLACE], mine)
            else:
                information = information_of(ratio, prior)
            count = information.new_tensor(float(information.numel()))
            return -shared_mean(information.sum(), count)

    @torch.no_grad()
    def _partition(self, trace: Tensor) -> Tensor:
        """(M, n + 1) log Z_T: the mean of exp(trace) over images so far, this batch of all processes included."""
        new = log_mean_exp(trace)
        if self.log_partition.shape != new.shape:
            self.log_partition, self.seen = new, torch.zeros_like(self.seen)
        self.seen += 1
        weight = max(1 - self.decay, 1 / float(self.seen))
        if weight < 1:
            before = self.log_partition.to(new) + math.log(1 - weight)
            new = torch.logaddexp(before, new + math.log(weight))
        self.log_partition = new
        return new

    @torch.no_grad()
    def _file_classes(self, layer: PartFilters, maps: Tensor, label: Tensor) -> None:
        """Update the mean response of filters to classes, and file the class with the highest."""
        own = torch.nn.functional.one_hot(label, layer.classes).to(maps.dtype)
        # Sums and counts in one piece, so that processes talk once.
        sums = shared_sum(torch.cat([own.T @ maps.mean((2, 3)), own.sum(0)[:, None]], 1))
        if self.class_sum.shape != sums[:, :-1].shape:
            self.class_sum, self.class_count = torch.zeros_like(sums[:, :-1]), torch.zeros_like(sums[:, -1])
        self.class_sum = self.decay * self.class_sum + sums[:, :-1]
        self.class_count = self.decay * self.class_count + sums[:, -1]
        mean = self.class_sum / self.class_count[:, None].clamp_min(1e-12)
        mean = mean.masked_fill(self.class_count[:, None] == 0, float("-inf"))
        responds = (self.class_sum > 0).any(0)
        layer.class_of.copy_(torch.where(responds, mean.argmax(0), layer.class_of))

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *others: Any) -> None:
        """Running means have the size of the maps that were seen, which a fresh term does not know."""
        for name in ("log_partition", "class_sum", "class_count"):
            if f"{prefix}{name}" in state_dict:
                setattr(self, name, torch.empty_like(state_dict[f"{prefix}{name}"], device=self.seen.device))
        super()._load_from_state_dict(state_dict, prefix, *others)


def log_mean_exp(values: Tensor) -> Tensor:
    """Log of the mean of exp(values) over the images of all processes: (B, ...) to (...)."""
    top = shared_max(values.amax(0))
    # Sums and the count in one piece, so that processes talk once more only.
    sums = shared_sum(torch.cat([(values - top).exp().sum(0).flatten(), values.new_tensor([float(len(values))])]))
    return top + (sums[:-1] / sums[-1]).log().view(top.shape)


def information_of(ratio: Tensor, log_prior: Tensor) -> Tensor:
    """What each image adds to the mutual information of a filter's maps and the templates; its mean is the whole.

    Args:
        ratio: (B, M, n + 1) log p(x|T) + log N, which is tr(x T) minus the log of the mean of exp(tr(x T)).
        log_prior: (n + 1,) log p(T).

    Returns:
        (B, M) sum over T of p(T) N p(x|T) log(p(x|T) / p(x)).
    """
    weighted = ratio + log_prior
    marginal = weighted.logsumexp(2, keepdim=True)
    return (weighted.exp() * (ratio - marginal)).sum(2)


def kept_information(ratio: Tensor, log_prior: Tensor, places: Tensor, own: Tensor) -> Tensor:
    """As :func:`information_of`, with one template kept for each image; the gradient is that of the kept summand.

    The paper keeps T_mu, mu the strongest place, for images of the filter's class, and "no part here" for the others,
    in the gradient d/dx = p(T) T p(x|T) log(p(x|T) / p(x)). That of the kept summand alone would have further terms,
    which cancel in the full sum only; so the rest is held fixed.

    Args:
        ratio: (B, M, n + 1).
        log_prior: (n + 1,).
        places: (B, M) int64, mu.
        own: (B, M) bool, images of the filter's class.

    Returns:
        (B, M).
    """
    kept = torch.where(own, places, ratio.shape[2] - 1)[:, :, None]
    marginal = (ratio.detach() + log_prior).logsumexp(2)
    mine = ratio.gather(2, kept).squeeze(2)
    weighted = (mine.detach() + log_prior[kept.squeeze(2)]).exp() * (mine.detach() - marginal)
    return weighted * (1 + mine - mine.detach())
