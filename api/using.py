"""What is done with a trained model: load, predict, explain, evaluate, intervene."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitrarium.configs.errors import UserError
from vitrarium.runs import Run

if TYPE_CHECKING:
    from vitrarium.eval.evaluate import Evaluation
    from vitrarium.eval.explanations import Explanation
    from vitrarium.eval.interventions import Curve
    from vitrarium.models.classifier import TransparentClassifier
    from vitrarium.models.prediction import Prediction


def load(path: str | Path, device: str = "cpu") -> TransparentClassifier:
    """The model of a run or model folder, in evaluation mode; nothing in the folder is executed."""
    from vitrarium.models.folder import load_model

    return load_model(path, device)


def predict(model: TransparentClassifier | str | Path, image: Any, do: Mapping[str, Any] | None = None) -> Prediction:
    """Classify one image and say why.

    Args:
        model: a model, or the folder of one.
        image: a path, a PIL image, or an array (H, W, 3).
        do: corrections by name, for instance ``{"granularity": "yes"}``.
    """
    return _model(model).predict(image, do)


def explain(
    model: TransparentClassifier | str | Path,
    image: Any,
    do: Mapping[str, Any] | None = None,
    against: str | None = None,
) -> Explanation:
    """Why this class and not the runner-up (or ``against``); ``.save("why.html")`` writes PNG, HTML or JSON."""
    from vitrarium.eval.explanations import explain as explain_model

    return explain_model(_model(model), image, do=do, against=against)


def evaluate(run: Run | str | Path, split: str = "test") -> Evaluation:
    """Measure a run and write ``evaluation/`` into its folder.

    Args:
        run: a finished run.
        split: "test" (the default: measured once, when all choices are made) or "val".
    """
    from vitrarium.measuring import evaluate_run

    return evaluate_run(_run(run), split)


def intervene(
    run: Run | str | Path,
    policies: Sequence[str] = ("random", "uncertainty"),
    trials: int = 10,
    split: str = "test",
    out: str | Path | None = None,
) -> list[Curve]:
    """Accuracy as more and more concept groups are corrected, by policy; CSV and PNG go to ``out``.

    Args:
        run: a finished run whose units are annotated concepts.
        policies: who is asked first.
        trials: random orders per policy that draws them.
        split: which split.
        out: folder for ``curves.csv`` and ``curves.png``; default ``<run>/interventions``.
    """
    from vitrarium.measuring import intervene_run

    run = _run(run)
    return intervene_run(run, policies, trials, split, Path(out) if out else run.folder / "interventions")


def _model(model: TransparentClassifier | str | Path) -> TransparentClassifier:
    return load(model) if isinstance(model, str | Path) else model


def _run(run: Run | str | Path) -> Run:
    run = run if isinstance(run, Run) else Run(run)
    if not run.finished:
        raise UserError(f"the run '{run.folder}' is not finished", f"vitrarium train --resume -o {run.folder}")
    return run
