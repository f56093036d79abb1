"""The journal of edits: what people changed in a trained model, in order, with what it cost; undoable, replayable."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from vitrarium.configs.errors import UserError
from vitrarium.models.abstention import Abstention
from vitrarium.models.classifier import TransparentClassifier

JOURNAL, START = "edits.json", "unedited.safetensors"
FORMAT = 1
EDITED = ("evidence.", "readout.")


@dataclass
class Score:
    """How good a model is on validation images.

    Attributes:
        accuracy: in [0, 1].
        classes: accuracy by class name; None for a class without images.
    """

    accuracy: float
    classes: dict[str, float | None] = field(default_factory=dict)


@dataclass
class Entry:
    """One edit that was made.

    Attributes:
        edit: ``{name, unit, **options}``.
        refit: whether the readout was fitted again after it.
        before: validation score before the edit; None if nobody measured.
        after: validation score after it.
        time: when it was made, ISO 8601 in UTC.
    """

    edit: dict[str, Any]
    refit: bool
    before: Score | None
    after: Score | None
    time: str

    def to_dict(self) -> dict[str, Any]:
        """Plain containers."""
        return asdict(self)

    @staticmethod
    def from_dict(data: Mapping[str, Any]) -> Entry:
        """Inverse of :meth:`to_dict`."""
        scores = {key: None if data[key] is None else Score(**data[key]) for key in ("before", "after")}
        return Entry(edit=dict(data["edit"]), refit=bool(data["refit"]), time=str(data["time"]), **scores)


@dataclass
class Journal:
    """The edits of a model since it was trained. It travels in the model's folder.

    Attributes:
        entries: in the order they were made.
        start: the tensors of evidence and readout before the first edit.
        present: digest of the weights after the last edit: a journal beside other weights is refused.
        class_names: of the model; replaying on another one compares them.
        unit_names: of the model before the first edit.
        abstention: when the model did not answer before the first edit.
    """

    entries: list[Entry]
    start: dict[str, Tensor]
    present: str
    class_names: tuple[str, ...]
    unit_names: tuple[str, ...]
    abstention: Abstention | None = None

    @staticmethod
    def begin(model: TransparentClassifier) -> Journal:
        """An empty journal of a model as it is."""
        names = tuple(model.evidence.units.names)
        return Journal([], _edited_tensors(model), digest(model), tuple(model.class_names), names, model.abstention)

    @torch.no_grad()
    def rewind(self, model: TransparentClassifier) -> None:
        """Put evidence and readout back to where they were before the first edit, with the names of that time."""
        model.evidence.call_units(self.unit_names)
        state = model.state_dict()
        for name, tensor in self.start.items():
            state[name].copy_(tensor)

    def sign(self, model: TransparentClassifier) -> None:
        """Note the weights as they are now as those after the last edit."""
        self.present = digest(model)

    def require_same(self, model: TransparentClassifier) -> None:
        """Refuse a journal whose model has other weights than after the last edit.

        Raises:
            UserError: the model was trained on, or the files were mixed up.
        """
        if digest(model) != self.present:
            raise UserError(
                "the edit journal belongs to another model: its weights are not those after the last edit",
                f"put the right {JOURNAL} and {START} beside the weights, or move them away to begin a new journal",
            )

    def require_fitting(self, model: TransparentClassifier) -> None:
        """Refuse to replay on a model with other classes or units.

        Raises:
            UserError: naming what differs.
        """
        if tuple(model.class_names) != self.class_names:
            raise UserError(
                f"the journal was made for the classes {_some(self.class_names)}, this model knows "
                f"{_some(model.class_names)}",
                "replay it on a model of the same data set",
            )
        missing = [n for n in self.touched() if n not in model.evidence.units.names]
        if missing:
            raise UserError(
                f"the journal edits {_some(missing)}, which this model does not have",
                "replay it on a model with the same units",
            )

    def touched(self) -> list[str]:
        """Names of the units that some edit names, without those that an edit before it has given."""
        given, found = set[str](), dict[str, None]()
        for entry in self.entries:
            named = [entry.edit[key] for key in ("unit", "into") if entry.edit.get(key)]
            found.update(dict.fromkeys(name for name in named if name not in given))
            if entry.edit.get("to"):
                given.add(entry.edit["to"])
        return list(found)

    def write(self, folder: Path) -> None:
        """Write both files into a model folder that is being made (see ``save_model``)."""
        save_file({name: tensor.cpu().contiguous() for name, tensor in self.start.items()}, folder / START)
        data = {
            "format": FORMAT,
            "present": self.present,
            "class_names": list(self.class_names),
            "unit_names": list(self.unit_names),
            "abstention": None if self.abstention is None else self.abstention.to_dict(),
            "entries": [entry.to_dict() for entry in self.entries],
        }
        (folder / JOURNAL).write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")

    @staticmethod
    def read(folder: Path) -> Journal | None:
        """The journal of a model folder; None if the model was never edited.

        Raises:
            UserError: a damaged file, one of a newer version, or one of the two files missing.
        """
        from vitrarium.models.folder import read_weights

        path = folder / JOURNAL
        if not path.exists():
            return None
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
            if data["format"] > FORMAT:
                raise UserError(f"'{path}' was written by a newer Vitrarium", "upgrade vitrarium")
            entries = [Entry.from_dict(entry) for entry in data["entries"]]
            names = tuple(data["class_names"]), tuple(data["unit_names"])
            present, threshold = str(data["present"]), data["abstention"]
            abstention = None if threshold is None else Abstention.from_dict(threshold)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"'{path}' is no edit journal ({error})", "put the right file there, or move it away to begin a new one"
            ) from error
        if not (folder / START).is_file():
            raise UserError(f"'{folder / START}' is missing: nothing could be undone", "put it back beside the journal")
        return Journal(entries, read_weights(folder / START), present, *names, abstention)


def _edited_tensors(model: TransparentClassifier) -> dict[str, Tensor]:
    return {n: t.detach().cpu().clone() for n, t in model.state_dict().items() if n.startswith(EDITED)}


def digest(model: TransparentClassifier) -> str:
    """A short hash of all weights and buffers that are saved with a model."""
    from vitrarium.models.folder import weights_of

    found = hashlib.blake2b(digest_size=16)
    for name, tensor in sorted(weights_of(model).items()):
        found.update(name.encode())
        # Bytes as they are: NaN and the sign of zero count.
        found.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def _some(names: Sequence[str]) -> str:
    return ", ".join(list(names)[:4]) + (" ..." if len(names) > 4 else "")
