"""How far a self-explaining model can be taken at its word."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from vitrarium.configs.errors import UserError, closest
from vitrarium.data.concepts import ConceptSet
from vitrarium.eval.metrics.base import METRICS, Measure, RatioMetric, SumMetric
from vitrarium.models.classifier import TransparentClassifier
from vitrarium.models.modes import evaluating

SEARCHES = ("ascent", "samples")
SMALLEST = 1e-6
"""Least distance between the units of two images that relevances are divided by."""


@METRICS.register("fidelity")
class Fidelity(RatioMetric):
    """Share of images in which the readout names the class that the black-box head names (Sarkar et al., CVPR 2022).

    Args:
        classes: C.
        concepts: unused.
    """

    fields = ("logits", "head")
    category = "faithfulness"
    higher_is_better = True

    def __init__(self, classes: int, concepts: ConceptSet | None = None) -> None:
        super().__init__(classes, concepts, 1)

    @property
    def choices(self) -> dict[str, Any]:
        """What is compared with what."""
        return {"compared": "class of the readout with that of the head"}

    def ratio(self, answers: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
        """Whether logits (B, C) and the head's (B, C) have their largest in the same class, and 1."""
        same = answers.argmax(1) == truth.argmax(1)
        return same[:, None], torch.ones_like(same)[:, None]


@METRICS.register("completeness")
class Completeness(SumMetric):
    """How much of what can be known of the class the units hold (Yeh et al., NeurIPS 2020).

        (accuracy from the units - chance) / (accuracy of the reference - chance)

    Of Yeh et al. the numerator is the best that any function of the concepts reaches; here it is a logistic regression
    on the units. The reference is the black-box head where there is one, else a logistic regression on the pooled
    features. Both are fitted on training images. Chance is the accuracy of always naming the most frequent class of the
    training images, which is more than 1 / C where classes are uneven. 1 = the units hold all of it; above 1 they do
    better than the reference. Undefined (NaN) where the reference is no better than chance.

    Args:
        classes: C.
        concepts: unused.
    """

    fields = ("model", "images")
    category = "faithfulness"
    higher_is_better = True

    def __init__(self, classes: int, concepts: ConceptSet | None = None) -> None:
        super().__init__(classes, concepts, 3)

    @property
    def choices(self) -> dict[str, Any]:
        """Chance, and what is fitted."""
        return {
            "chance": "most frequent class of the training images",
            "probe": "logistic regression on standardised columns, C = 1",
            "fitted_on": "train",
        }

    def update_output(self, output: Any, batch: Any) -> bool:
        """Nothing can be added without what was fitted: always False; use :meth:`update`."""
        return False

    def parts(self, answers: Tensor, truth: Tensor) -> Tensor:
        """Which of the classes (B, 3) named from the units, by the reference and by chance are the label (B,)."""
        return (answers == truth[:, None]).float()

    def each(self, sums: Tensor) -> Tensor:
        """Sums (..., 3) to completeness (..., 1)."""
        units, reference, chance = sums.unbind(-1)
        gain = reference - chance
        known = (units - chance) / torch.where(gain > 0, gain, torch.ones_like(gain))
        return torch.where(gain > 0, known, torch.full_like(known, float("nan")))[..., None]


@METRICS.register("relevance_stability")
class RelevanceStability(Measure):
    """How much relevances move while the units hardly do (Alvarez-Melis & Jaakkola, NeurIPS 2018).

    For an image x it is

        max over x' with |x' - x| <= eps in every pixel of  |theta(x) - theta(x')| / |h(x) - h(x')|

    with theta the relevances of the units for the class predicted at x, h the units, and Euclidean norms. 0 = the same
    relevances everywhere around x. The maximum is searched, so the number is a lower bound of it, and only numbers with
    the same choices can be compared.

    Args:
        eps: largest change of a pixel, in (0, 1]; x' stays within [0, 1].
        search: "ascent": one random start, then ``steps`` of the sign of the gradient of log |theta(x) - theta(x')| -
            log |h(x) - h(x')|; "samples": ``steps`` random x'. The largest ratio that was met is taken.
        steps: how many.
        images: at most so many of the split, drawn by ``seed``.
        seed: of images and starts.

    Raises:
        UserError: numbers out of range, an unknown search.
    """

    fields = ("model", "images")
    category = "stability"
    higher_is_better = False

    def __init__(
        self,
        eps: float = 0.02,
        search: Literal["ascent", "samples"] = "ascent",
        steps: int = 10,
        images: int = 200,
        seed: int = 0,
    ) -> None:
        if search not in SEARCHES:
            raise UserError(f"relevance_stability has no search '{search}'", closest(search, SEARCHES))
        if not 0 < eps <= 1 or steps < 1 or images < 1 or seed < 0:
            raise UserError(
                f"relevance_stability with eps={eps}, steps={steps}, images={images}, seed={seed}",
                "give eps in (0, 1], at least one step and image, and a seed of 0 or more",
            )
        self.eps, self.search, self.steps, self.images, self.seed = eps, search, steps, images, seed

    @property
    def choices(self) -> dict[str, Any]:
        """Ball, search, images."""
        return {
            "eps": self.eps, "ball": "each pixel", "search": self.search, "steps": self.steps, "class": "predicted",
            "least_distance": SMALLEST, "seed": self.seed, "summary": "mean",
        }  # fmt: skip

    def chosen(self, index: Tensor) -> Tensor:
        """The positions (n,) of the images it looks at, sorted, of all positions (N,) of the split, in any order."""
        order = np.random.default_rng(self.seed).permutation(len(index))[: self.images]
        return index.sort().values[torch.from_numpy(order)].sort().values

    def each(self, model: TransparentClassifier, image: Tensor, index: Tensor) -> Tensor:
        """The largest ratio that was found for each image, (B,) float64 on the CPU.

        Args:
            model: any classifier whose readout gives relevances.
            image: (B, C, H, W) in [0, 1], where the model is.
            index: (B,) positions in the split: random starts depend on them and the seed alone.
        """
        rngs = [np.random.default_rng([self.seed, int(i)]) for i in index]
        with evaluating(model):
            output = model(image)
            ratio = _Ratio(model, output.logits.argmax(1), output.evidence)
            best = torch.full((len(image),), 0.0, dtype=torch.float64, device=image.device)
            at = self._start(image, rngs)
            for step in range(self.steps):
                if self.search == "samples":
                    found = ratio(at).exp()
                    at = self._start(image, rngs)
                else:
                    found, at = self._climb(ratio, image, at, 1 - step / self.steps)
                best = torch.maximum(best, found)
            if self.search == "ascent":
                best = torch.maximum(best, ratio(at).exp())
        return best.cpu()

    def _start(self, image: Tensor, rngs: list[np.random.Generator]) -> Tensor:
        noise = np.stack([rng.uniform(-self.eps, self.eps, tuple(image.shape[1:])) for rng in rngs])
        return (image + torch.from_numpy(noise).to(image)).clamp(0, 1)

    def _climb(self, ratio: _Ratio, image: Tensor, at: Tensor, left: float) -> tuple[Tensor, Tensor]:
        """The ratio at ``at``, and where one step from there leads; steps shrink from eps / 2."""
        with torch.enable_grad():
            here = at.detach().requires_grad_()
            logs = ratio(here)
            (slope,) = torch.autograd.grad(logs.sum(), here)
        stepped = at + left * self.eps / 2 * slope.sign()
        inside = torch.minimum(torch.maximum(stepped, image - self.eps), image + self.eps)
        return logs.detach().exp(), inside.clamp(0, 1)


class _Ratio:
    """log |theta(x) - theta(x')| - log |h(x) - h(x')| as a function of x', for one batch of x."""

    def __init__(self, model: TransparentClassifier, classes: Tensor, evidence: Any) -> None:
        self.model, self.classes = model, classes
        self.relevances, self.units = self._of(evidence)

    def _of(self, evidence: Any) -> tuple[Tensor, Tensor]:
        relevances = self.model.readout.relevances(evidence)
        if relevances is None:
            raise UserError(
                f"relevance_stability: relevances of {type(self.model.readout).__name__} do not depend on the image",
                "measure a model with the readout 'input_dependent'",
            )
        rows = torch.arange(len(self.classes), device=self.classes.device)
        return relevances[rows, self.classes].double(), evidence.activations.double()

    def __call__(self, image: Tensor) -> Tensor:
        relevances, units = self._of(self.model(image).evidence)
        return _log_norm(relevances - self.relevances, 1e-30) - _log_norm(units - self.units, SMALLEST)


def _log_norm(difference: Tensor, least: float) -> Tensor:
    """(B,) log of max(norm, least), with a gradient that is 0 where the norm is below."""
    return difference.square().sum(1).clamp_min(least**2).log() / 2


def probe(values: Tensor, labels: Tensor, asked: Tensor) -> Tensor:
    """Classes (n,) that a logistic regression on values (N, E) and labels (N,) gives for ``asked`` (n, E).

    Columns are standardised by those it is fitted on, and constant ones left out; the L2 penalty is scikit-learn's
    C = 1. A single label among the N is always given.
    """
    from sklearn.linear_model import LogisticRegression

    if len(labels.unique()) == 1:
        return labels[:1].expand(len(asked))
    mean, deviation = values.double().mean(0), values.double().std(0)
    varies = deviation > 1e-9
    fitted, given = (((v.double() - mean) / deviation)[:, varies].numpy() for v in (values, asked))
    if not bool(varies.any()):
        return labels.mode().values.expand(len(asked))
    regression = LogisticRegression(C=1.0, max_iter=2000).fit(fitted, labels.numpy())
    return torch.from_numpy(regression.predict(given))
