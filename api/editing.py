"""Change a trained model by hand: edits with a journal, each measured on validation images, undoable, replayable."""

from __future__ import annotations

import contextlib
import datetime
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vitrarium.configs.errors import UserError
from vitrarium.data.batch import Batch
from vitrarium.eval.collect import Collected, collect
from vitrarium.measuring import refuse_other_data
from vitrarium.models.abstention import Abstention, AbstentionRule
from vitrarium.models.folder import load_model, rewrite_weights
from vitrarium.models.modes import evaluating
from vitrarium.models.prototypes.edits import Bench, Edit, build_edit
from vitrarium.models.prototypes.journal import Entry, Journal, Score
from vitrarium.models.readouts.refit_choice import choose_refit
from vitrarium.runs import Run
from vitrarium.train.events.refit_readout import problem_of

logger = logging.getLogger(__name__)


class Editor:
    """A run whose model people change: ``vt.edit("runs/protopnet")``.

    Every edit is recorded in the journal of the model folder with the validation accuracy before and after it, over
    all images and class by class. Nothing is lost: any edit can be undone, and all can be replayed on another model.
    The backbone is never touched. After each edit the readout is fitted again on the training split, under the bounds
    that edits have set, unless ``refit`` is False or the readout has no weights to fit.

    Args:
        run: a finished run.
        root: where its data lie now, if not where they were when it was trained.

    Attributes:
        model: as it is after the edits so far.
        journal: the edits so far.

    Raises:
        UserError: a journal that belongs to other weights.

    Example:
        >>> editor = vt.edit("runs/protopnet")  # doctest: +SKIP
        >>> editor.remove("prototype_3")  # doctest: +SKIP
        >>> editor.undo()  # doctest: +SKIP
    """

    def __init__(self, run: Run | str | Path, root: str | Path | None = None) -> None:
        folder = run.folder if isinstance(run, Run) else Path(run)
        backbone = run.backbone if isinstance(run, Run) else None
        self.run = Run(folder, backbone, root).require_finished()
        self.model = load_model(self.run.folder, backbone=backbone)
        if self.model.journal is not None:
            self.model.journal.require_same(self.model)
        self.journal = self.model.journal or Journal.begin(self.model)
        self._seen: dict[str, Collected] = {}

    def remove(self, *units: str, refit: bool = True) -> list[Entry]:
        """Take units out, one edit each."""
        return self.apply([{"name": "remove", "unit": unit} for unit in units], refit)

    def merge(self, unit: str, into: str, refit: bool = True) -> Entry:
        """Let ``into`` stand for ``unit`` too; ``unit`` is removed."""
        return self.apply([{"name": "merge", "unit": unit, "into": into}], refit)[0]

    def forbid(self, unit: str, label: str | None = None, refit: bool = True) -> Entry:
        """A unit may not speak for or against a class (None = any class)."""
        return self.apply([{"name": "forbid", "unit": unit, "label": label}], refit)[0]

    def require(self, unit: str, label: str | None = None, least: float = 1.0, refit: bool = True) -> Entry:
        """A unit must speak for a class (None = its own) with a weight of at least ``least``."""
        return self.apply([{"name": "require", "unit": unit, "label": label, "least": least}], refit)[0]

    def re_home(self, unit: str, image: int | None = None, rank: int | None = None, refit: bool = True) -> Entry:
        """Take a prototype from another training image: ``image`` by position, or the ``rank``-th nearest."""
        return self.apply([{"name": "re_home", "unit": unit, "image": image, "rank": rank}], refit)[0]

    def name(self, names: Mapping[str, str]) -> list[Entry]:
        """Give units that nobody has named a name, ``{"axis_40": "dark rim"}``: on any evidence, and without data.

        Answers stay as they are, so nothing is measured and the readout is not fitted again.
        """
        return self.apply([{"name": "name", "unit": unit, "to": to} for unit, to in names.items()])

    def apply(self, edits: Sequence[Mapping[str, Any]], refit: bool = True) -> list[Entry]:
        """Make edits in order, measure each, and save the model; either all of them are made or none.

        Args:
            edits: ``{name, unit, **options}``, as in the journal.
            refit: whether the readout is fitted again after each.

        Raises:
            UserError: an edit that is not possible; the model and its folder stay as they were.
        """
        built = [build_edit(spec) for spec in edits]
        with self._all_or_nothing(choose=any(edit.changes_answers for edit in built)):
            return [self._make(edit, refit, measure=True) for edit in built]

    def undo(self, count: int = 1) -> list[Entry]:
        """Take the last ``count`` edits back; those before them are made again from the start.

        Returns:
            The entries that were taken back.
        """
        entries = self.journal.entries
        if not 1 <= count <= len(entries):
            raise UserError(f"{count} edits cannot be undone", f"the journal holds {len(entries)}")
        gone, kept = entries[-count:], entries[:-count]
        with self._all_or_nothing():
            self._rewind()
            for entry in kept:
                self._make(build_edit(entry.edit), entry.refit, measure=False)
            # What was measured when they were made first stays true: the same edits give the same model.
            self.journal.entries = kept
        return gone

    def replay(self, other: Run | str | Path) -> list[Entry]:
        """Make all edits of another model's journal on this one, after those it has already.

        Args:
            other: a run or model folder with a journal.

        Raises:
            UserError: no journal there, or one for other classes or units.
        """
        from vitrarium.models.folder import model_folder

        folder = model_folder(other.folder if isinstance(other, Run) else other)
        journal = Journal.read(folder)
        if journal is None or not journal.entries:
            raise UserError(f"'{folder}' has no edit journal", "replay the journal of a model that was edited")
        journal.require_fitting(self.model)
        with self._all_or_nothing():
            return [self._make(build_edit(entry.edit), entry.refit, measure=True) for entry in journal.entries]

    def score(self) -> Score:
        """Validation accuracy of the model as it is, over all and by class."""
        seen, names = self._collected("val"), self.model.class_names
        right = (self._logits(seen).argmax(1) == seen.labels).double()
        classes = {
            name: float(right[seen.labels == c].mean()) if bool((seen.labels == c).any()) else None
            for c, name in enumerate(names)
        }
        return Score(float(right.mean()), classes)

    def _make(self, edit: Edit, refit: bool, measure: bool) -> Entry:
        measure, refit = measure and edit.changes_answers, refit and edit.changes_answers
        before = self.score() if measure else None
        with torch.no_grad():
            edit.apply(Bench(self.model, self._train, self.run.source.splits["train"] if edit.needs_data else None))
        if edit.needs_data:
            # Activations of a moved prototype are others.
            self._seen.clear()
        refit = refit and self.model.readout.refit_problem() is not None
        if refit:
            self._refit()
        after = self.score() if measure else None
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        entry = Entry({"name": edit.name, **edit.options}, refit, before, after, now)
        self.journal.entries.append(entry)
        return entry

    def _refit(self) -> None:
        train, val = self._collected("train"), self._collected("val")
        choice = choose_refit(
            (self._vectors(train), train.labels),
            (self._vectors(val), val.labels),
            problem_of(self.model.evidence, self.model.readout),
        )
        self.model.readout.take_refit(choice.fitted.weight.float(), choice.fitted.bias)

    def _train(self) -> Iterable[Batch]:
        return self._loader("train")

    def _loader(self, split: str) -> Iterable[Batch]:
        return self.run.data(self.run.config["evaluation"]["batch_size"]).loader(split)

    def _collected(self, split: str) -> Collected:
        if not self._seen:
            refuse_other_data(self.model, self.run.source)
        if split not in self._seen:
            self._seen[split] = collect(self.model, self._loader(split))
        return self._seen[split]

    def _vectors(self, seen: Collected) -> Tensor:
        """(N, E) what the readout is given now: units that were removed since are silent."""
        with evaluating(self.model):
            return self.model.evidence.assemble(seen.evidence.activations, seen.evidence)

    def _logits(self, seen: Collected) -> Tensor:
        vector = self._vectors(seen)
        with evaluating(self.model):
            return self.model.readout(replace(seen.evidence, vector=vector))

    def _threshold(self) -> Abstention | None:
        """Chosen anew for the same target where answers are others now, else that of the trained model."""
        first = self.journal.abstention
        if first is None or not any(build_edit(entry.edit).changes_answers for entry in self.journal.entries):
            return first
        target: dict[str, Any] = {first.rule: first.target}
        if first.rule == "risk":
            target["confidence"] = first.confidence
        seen = self._collected("val")
        return AbstentionRule(first.score, **target).choose(self._logits(seen), seen.labels, "val")

    def _rewind(self) -> None:
        self.journal.rewind(self.model)
        self.journal.entries = []
        self._seen.clear()

    @contextlib.contextmanager
    def _all_or_nothing(self, choose: bool = True) -> Iterator[None]:
        """Save what the block has made of the model; if it or the saving fails, everything is as it was.

        Args:
            choose: whether the threshold of abstention is to be chosen again.
        """
        names = self.model.evidence.units.names
        weights = {name: tensor.clone() for name, tensor in self.model.state_dict().items()}
        entries, signed = list(self.journal.entries), self.journal.present
        abstention, journal = self.model.abstention, self.model.journal
        try:
            yield
            if choose:
                self.model.abstention = self._threshold()
            self._save()
        except BaseException:
            self.model.load_state_dict(weights)
            self.model.evidence.call_units(names)
            self.journal.entries, self.journal.present = entries, signed
            self.model.abstention, self.model.journal = abstention, journal
            self._seen.clear()
            raise

    def _save(self) -> None:
        self.journal.sign(self.model)
        self.model.journal = self.journal
        rewrite_weights(self.run.folder, self.model)
