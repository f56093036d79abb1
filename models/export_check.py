"""Exported files run and compared with the model they were made from."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from vitrarium.models.intervention import Intervention
from vitrarium.models.modes import evaluating

if TYPE_CHECKING:
    from vitrarium.models.classifier import TransparentClassifier
    from vitrarium.models.units import UnitTable

Runner = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
BATCHES = (1, 3)


def run_torch(path: Path) -> Runner:
    """A torch.export archive as a function (image, mask, values) to (logits, units)."""
    with warnings.catch_warnings():
        # About weights that share memory, which load as they were.
        warnings.simplefilter("ignore")
        program: Any = torch.export.load(path).module()
    return lambda image, mask, values: tuple(program(image, mask, values))


def run_onnx(path: Path) -> Runner:
    """An ONNX file in onnxruntime, on as many threads as torch has, as a function (image, mask, values)."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def run(image: Tensor, mask: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        given = {"image": image.numpy(), "mask": mask.numpy(), "values": values.numpy()}
        logits, units = session.run(["logits", "units"], given)
        return torch.from_numpy(logits), torch.from_numpy(units)

    return run


def difference(model: TransparentClassifier, run: Runner, shape: tuple[int, int, int]) -> float:
    """The largest difference between a model and its file over batches of 1 and 3 and four kinds of corrections.

    Of numbers above 1 the difference is counted relative to the largest of them: max |a - b| / max(1, max |a|). NaN on
    one side is an infinite difference.

    Args:
        model: the classifier; its modes are given back.
        run: the file.
        shape: (channels, height, width) of the images.
    """
    generator, worst, device = torch.Generator().manual_seed(0), 0.0, model.evidence.alive.device
    with evaluating(model):
        for batch in BATCHES:
            image = torch.rand(batch, *shape, generator=generator)
            here = image.to(device, model.backbone.mean.dtype)
            seen = model(here).evidence.activations.cpu().float()
            for mask, values in corrections(model.evidence.units, seen, generator):
                output = model(here, Intervention(mask, values).to(device))
                wanted = output.logits.cpu().float(), output.evidence.activations.cpu().float()
                for ours, theirs in zip(wanted, run(image, mask, values), strict=True):
                    gap = float((ours - theirs).abs().max() / ours.abs().max().clamp_min(1))
                    worst = max(worst, gap) if gap == gap else float("inf")
    return worst


def corrections(units: UnitTable, seen: Tensor, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
    """Masks and values (B, M): none, random ones, whole groups with one value true, all units.

    Args:
        units: the M units.
        seen: (B, M) activations without corrections; where nobody knows what "absent" and "present" are, values are
            taken from their range.
        generator: of the random numbers.
    """
    absent, present = units.absent.cpu().float(), units.present.cpu().float()
    known = ~(absent.isnan() | present.isnan())
    low, high = torch.where(known, absent, seen.min() - 1), torch.where(known, present, seen.max() + 1)
    values = low + torch.rand(seen.shape, generator=generator) * (high - low)
    yield torch.zeros_like(seen, dtype=torch.bool), torch.zeros_like(seen)
    yield torch.rand(seen.shape, generator=generator) < 0.5, values
    truth = torch.zeros_like(seen)
    for group in units.groups:
        # One of the values of each group is true, of a yes/no concept "yes" or "no".
        chosen = torch.randint(max(2, len(group.members)), (len(seen),), generator=generator)
        for place, member in enumerate(group.members):
            truth[:, member] = (chosen == place).float()
    asked = (torch.rand(len(seen), len(units.groups), generator=generator) < 0.5)[:, units.group_of.cpu()]
    yield asked, low + truth * (high - low)
    yield torch.ones_like(asked), values


def draws_at_random(model: TransparentClassifier, shape: tuple[int, int, int]) -> bool:
    """Whether a model in evaluation mode answers differently when asked twice."""
    device = model.evidence.alive.device
    image = torch.rand(2, *shape, generator=torch.Generator().manual_seed(0)).to(device, model.backbone.mean.dtype)
    with evaluating(model), torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        answers = []
        for seed in (0, 1):
            torch.manual_seed(seed)
            output = model(image)
            answers.append(torch.cat([output.logits, output.evidence.activations], 1))
    first, second = answers
    # Not by equality: on some devices sums come out a little differently each time.
    return not torch.allclose(first, second, rtol=1e-4, atol=1e-4, equal_nan=True)
