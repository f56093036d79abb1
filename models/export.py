"""A model as one file that runs without this package: ``torch.export`` or ONNX.

The file has the inputs ``image`` (B, 3, H, W) in [0, 1], ``mask`` (B, M) bool and ``values`` (B, M), as in
:class:`Intervention`, and the outputs ``logits`` (B, C) and ``units`` (B, M), the activations after the intervention.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import shutil
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from vitrarium.configs.errors import UserError, closest
from vitrarium.models.backbones.base import first_line
from vitrarium.models.deploy import DeployReport, deploy
from vitrarium.models.export_check import difference, draws_at_random, run_onnx, run_torch
from vitrarium.models.intervention import Intervention

if TYPE_CHECKING:
    from vitrarium.models.classifier import TransparentClassifier

ENDINGS = {"onnx": ".onnx", "torch": ".pt2"}
RUNNERS = {"onnx": run_onnx, "torch": run_torch}
PACKAGES = {"onnx": ("onnx", "onnxscript", "onnxruntime"), "torch": ()}
INPUTS, OUTPUTS = ("image", "mask", "values"), ("logits", "units")
TOLERANCE = 1e-4
DESCRIPTION = "vitrarium"
"""Under this name the description stands inside the file, with an ending in a torch.export archive."""
LARGEST_ONNX = 2_000_000_000


class ExportedModel(nn.Module):
    """The model as a function of tensors alone, which is what gets exported.

    Args:
        model: the classifier, usually a deployed copy.
    """

    def __init__(self, model: TransparentClassifier) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: Tensor, mask: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 3, H, W) in [0, 1], (B, M) bool and (B, M) to logits (B, C) and activations (B, M)."""
        output = self.model(image, Intervention(mask, values))
        return output.logits, output.evidence.activations


@dataclass(frozen=True)
class Exported:
    """What :func:`export_model` has written.

    Attributes:
        path: the file.
        description: the JSON file beside it.
        deployed: what was folded.
        difference: the largest difference from the model that the check has found.
        bytes: size of the file.
    """

    path: Path
    description: Path
    deployed: DeployReport
    difference: float
    bytes: int


def export_model(
    model: TransparentClassifier, path: str | Path, format: str = "onnx", fold: bool = True, force: bool = False
) -> Exported:
    """Write a model as one file, and its description (names, groups, values, preprocessing, threshold) beside it.

    The file is run and compared with the model, on random images in batches of 1 and 3, without corrections, with
    random ones, with whole categorical groups and with all units set. It appears whole and checked, or not at all.

    Args:
        model: the classifier; it stays as it is.
        path: the file, ending in ``.onnx`` or ``.pt2``.
        format: "onnx" or "torch".
        fold: whether to fold what can be folded (:func:`vitrarium.models.deploy.deploy`).
        force: whether to replace a file that is there.

    Raises:
        UserError: an unknown format, missing packages, a file that is there, a model that cannot be exported, a folder
            that cannot be written, a file that does not answer like the model.
    """
    path = refuse(model, Path(path), format)
    text = json.dumps(describe(model), indent=2, ensure_ascii=False)
    described = path.with_suffix(".json")
    if not force:
        _refuse_existing(path, described, text)
    plain = deploy(model, fold).cpu().float()
    program = _follow(plain)
    beside = path.with_name(path.name + ".part")
    try:
        shutil.rmtree(beside, ignore_errors=True)
        beside.mkdir(parents=True)
        _WRITERS[format](program, beside / path.name, text)
        (beside / described.name).write_text(text + "\n", encoding="utf-8")
        found = difference(model, RUNNERS[format](beside / path.name), image_shape(model))
        if not found <= TOLERANCE:
            raise UserError(
                f"the exported file differs from the model by {found:.2g}, more than {TOLERANCE:g}; it was removed",
                "export without folding (--no-fold), or to another format",
            )
        size = (beside / path.name).stat().st_size
        (beside / described.name).replace(described)
        (beside / path.name).replace(path)
    except OSError as error:
        raise UserError(
            f"'{path}' cannot be written: {error}", "free some space or choose a folder you may write to with -o"
        ) from error
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    assert plain.deploy_report is not None
    return Exported(path, described, plain.deploy_report, found, size)


def refuse(model: TransparentClassifier, path: Path, format: str) -> Path:
    """Refuse by name what cannot be exported, before anything is computed; else the path."""
    if format not in ENDINGS:
        raise UserError(f"there is no format '{format}'", closest(format, ENDINGS))
    if path.suffix != ENDINGS[format]:
        raise UserError(f"'{path.name}' is no name for a file of the format {format}", f"end it in {ENDINGS[format]}")
    missing = [package for package in PACKAGES[format] if importlib.util.find_spec(package) is None]
    if missing:
        raise UserError(f"exporting to {format} needs {', '.join(missing)}", "pip install 'vitrarium[export]'")
    for part, held in (("evidence", model.evidence), ("readout", model.readout)):
        problem = held.export_problem(format)
        if problem:
            raise UserError(
                f"the {part} {type(held).__name__} cannot be exported to {format}: {problem}",
                "predict with the model folder itself"
                if format == "torch"
                else "try --format torch, or predict with the model folder itself",
            )
    if model.preprocessing is None and model.backbone.image_size is None:
        raise UserError("this model does not know the size of its images", "give TransparentClassifier a Preprocessing")
    size = sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values())
    if format == "onnx" and size > LARGEST_ONNX:
        raise UserError(f"the model has {size / 1e9:.1f} GB, and an ONNX file holds 2 GB", "export with --format torch")
    if draws_at_random(model, image_shape(model)):
        raise UserError(
            "the model draws random numbers when it answers, so no file can be checked against it",
            "fix its samples in evaluation (a buffer of noise, say)",
        )
    return path


def describe(model: TransparentClassifier) -> dict[str, Any]:
    """What a user of the file must know, in plain containers; it stands in the file and beside it."""
    units, image = model.evidence.units, list(image_shape(model))
    count, classes = len(units), len(model.class_names)
    return {
        "format": 1,
        "vitrarium": importlib.metadata.version("vitrarium"),
        "inputs": {"image": ["batch", *image], "mask": ["batch", count], "values": ["batch", count]},
        "outputs": {"logits": ["batch", classes], "units": ["batch", count]},
        "class_names": list(model.class_names),
        "units": units.to_dict(),
        "absent": _or_none(units.absent),
        "present": _or_none(units.present),
        "alive": units.alive.tolist(),
        "gates": "gates" in model.evidence.gives,
        "preprocessing": None if model.preprocessing is None else model.preprocessing.to_dict(),
        "abstention": None if model.abstention is None else model.abstention.to_dict(),
    }


def _or_none(values: Tensor) -> list[float | None]:
    """NaN, which JSON does not have, as None."""
    return [None if value != value else value for value in values.tolist()]


def image_shape(model: TransparentClassifier) -> tuple[int, int, int]:
    """(channels, height, width) of the images that the file takes."""
    size = model.backbone.image_size or (model.preprocessing.size if model.preprocessing else 0)
    return model.backbone.in_channels, size, size


def _refuse_existing(path: Path, described: Path, text: str) -> None:
    """Files of another export stay; a description of the same model may be written again."""
    try:
        other = described.exists() and described.read_text(encoding="utf-8").strip() != text
    except (OSError, UnicodeDecodeError):
        other = True
    for found in [path] * path.exists() + [described] * other:
        raise UserError(f"'{found}' exists", "add --force to replace it, or choose another place with -o")


def _follow(model: TransparentClassifier) -> Any:
    """The model as an exported program with any number of images."""
    units, batch = len(model.evidence.units), torch.export.Dim("batch", min=1)
    example = torch.rand(2, *image_shape(model)), torch.zeros(2, units, dtype=torch.bool), torch.zeros(2, units)
    try:
        with torch.no_grad(), warnings.catch_warnings():
            # About attributes that networks keep for themselves (cached positions): the check compares the answers.
            warnings.simplefilter("ignore")
            return torch.export.export(ExportedModel(model), example, dynamic_shapes=({0: batch},) * 3)
    except Exception as error:  # torch.export fails in as many ways as there are programs
        raise UserError(
            f"torch.export cannot follow {type(model.backbone).__name__} with {type(model.evidence).__name__} and "
            f"{type(model.readout).__name__}: {_reason(error)}",
            "predict with the model folder itself",
        ) from error


def _reason(error: BaseException) -> str:
    """The first line of an error, and the first of the reasons that torch.export lists below it."""
    reasons = [line.strip(" -") for line in str(error).splitlines() if line.startswith("  - ")]
    return " ".join([first_line(error), *reasons[:1]])


def _write_torch(program: Any, path: Path, description: str) -> None:
    with warnings.catch_warnings():
        # About weights that share memory; the check loads the file.
        warnings.simplefilter("ignore")
        torch.export.save(program, path, extra_files={f"{DESCRIPTION}.json": description})


def _write_onnx(program: Any, path: Path, description: str) -> None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            converted = torch.onnx.export(
                program,
                dynamo=True,
                input_names=INPUTS,
                output_names=OUTPUTS,
                dynamic_shapes=({0: "batch"},) * len(INPUTS),
                verbose=False,
                external_data=False,
            )
    except Exception as error:  # the exporter wraps whatever its translations raise
        raise UserError(
            f"ONNX cannot say what the model does: {_deepest(error)}",
            "export with --format torch; a layer may name such an operation in export_problem()",
        ) from error
    assert converted is not None
    converted.model.metadata_props[DESCRIPTION] = description
    converted.save(path, external_data=False)


def _deepest(error: BaseException) -> str:
    """The first line of the error that began a chain of them."""
    while error.__cause__ is not None:
        error = error.__cause__
    return first_line(error)


_WRITERS = {"onnx": _write_onnx, "torch": _write_torch}
