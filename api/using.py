"""What is done with a trained model: load, predict, explain, evaluate, intervene."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from vitrarium.runs import Run

if TYPE_CHECKING:
    from torch import nn

    from vitrarium.data.source import DataSource
    from vitrarium.editing import Editor
    from vitrarium.eval.evaluate import Evaluation
    from vitrarium.eval.explanations import Explanation
    from vitrarium.eval.gallery.exhibits import Gallery
    from vitrarium.eval.interventions import Curve
    from vitrarium.models.abstention import Abstention
    from vitrarium.models.backbones.base import Backbone
    from vitrarium.models.classifier import TransparentClassifier
    from vitrarium.models.prediction import Prediction
    from vitrarium.prototyping import PrototypeReport


def backbone(module: nn.Module | Callable[..., nn.Module] | str, cut: str | None = None, **options: Any) -> Backbone:
    """Any network as a backbone: ``vt.backbone(MyNet(), cut="stage3", mean=..., std=...)``.

    Args:
        module: a network (it is copied and stays as it is), a class or function that makes one, or its dotted path.
        cut: where to end: a named cut or any module path; needed where the network does not end in a map.
        options: see :func:`vitrarium.models.backbones.own_module.backbone_from`.

    Raises:
        UserError: a network that is no backbone; the message has the cuts that there are.
    """
    from vitrarium.configs.registry import check_options
    from vitrarium.models.backbones.own_module import backbone_from

    check_options(backbone_from, options, ("module", "cut"), "backbone")
    return backbone_from(module, cut, **options)


def build(
    data: DataSource | Mapping[str, Any] | str,
    backbone: nn.Module | Mapping[str, Any] | str = "convnet",
    evidence: Mapping[str, Any] | str = "concepts",
    readout: Mapping[str, Any] | str = "linear",
    seed: int | None = None,
) -> TransparentClassifier:
    """An untrained model for a data set, for a training loop of your own.

    Args:
        data: a data set, or the name or ``{name, **options}`` of one.
        backbone: a network, what :func:`backbone` gives, or the name or ``{name, **options}`` of one.
        evidence: name or ``{name, **options}``.
        readout: name or ``{name, **options}``.
        seed: of the initial weights; None takes torch's random state as it is.

    Raises:
        UserError: unknown names or options, parts that do not fit.
    """
    from vitrarium.data import build_source
    from vitrarium.data.preprocessing import Preprocessing
    from vitrarium.data.source import DataSource
    from vitrarium.models.assembly import build as build_parts

    source = data if isinstance(data, DataSource) else build_source(data)
    spec = {"backbone": backbone, "evidence": evidence, "readout": readout}
    return build_parts(spec, source.class_names, source.concepts, Preprocessing(source.size), seed)


def load(path: str | Path, device: str = "cpu", backbone: nn.Module | None = None) -> TransparentClassifier:
    """The model of a run or model folder, in evaluation mode; nothing in the folder is executed.

    Args:
        path: a run folder, the model folder in it, or an animal that comes with the package ("zoo/cbm-flowers", see
            ``vt.names("zoo")``); a model of your own at that very path comes first.
        device: where to.
        backbone: for a model whose backbone was handed over as an object: such a network again.
    """
    from vitrarium.models.folder import load_model

    return load_model(path, device, backbone)


def predict(model: TransparentClassifier | str | Path, image: Any, do: Mapping[str, Any] | None = None) -> Prediction:
    """Classify one image and say why.

    Args:
        model: a model, or what :func:`load` takes.
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


def evaluate(run: Run | str | Path, split: str = "test", root: str | Path | None = None) -> Evaluation:
    """Measure a run and write ``evaluation/`` into its folder.

    Args:
        run: a finished run.
        split: "test" (the default: measured once, when all choices are made) or "val".
        root: where its data lie now, if not where they were when it was trained.
    """
    from vitrarium.measuring import evaluate_run

    return evaluate_run(_run(run, root), split)


def set_threshold(
    run: Run | str | Path,
    risk: float | None = None,
    coverage: float | None = None,
    confidence: float | None = None,
    score: str = "probability",
) -> Abstention:
    """Choose anew, on the validation split, when a trained model does not answer, and save it with the model.

    Numbers of the test split that were measured before are of the old threshold: evaluate the run again.

    Args:
        run: a finished run.
        risk: largest error among the answered, in [0, 1); with neither ``risk`` nor ``coverage`` half of the error over
            all, as far as that leaves four fifths of the images answered.
        coverage: least share that is answered, in (0, 1]; in place of ``risk``.
        confidence: None compares the validation error with ``risk``; a level such as 0.95 keeps the true error below it
            with this confidence, if the validation split is large enough to tell.
        score: what confidence is, "probability" or "margin".

    Returns:
        The threshold, with its error and coverage on the validation split; ``met`` says whether the target was reached.
    """
    from vitrarium.abstaining import set_threshold_of
    from vitrarium.models.abstention import AbstentionRule

    return set_threshold_of(_run(run), AbstentionRule(score, risk, coverage, confidence))


def intervene(
    run: Run | str | Path,
    policies: Sequence[str] | None = None,
    trials: int = 10,
    split: str = "test",
    out: str | Path | None = None,
    root: str | Path | None = None,
) -> list[Curve]:
    """Accuracy as more and more concept groups are corrected, by policy; CSV and PNG go to ``out``.

    Args:
        run: a finished run whose units are annotated concepts.
        policies: who is asked first; None = "random", and "uncertainty" where units have a probability.
        trials: random orders per policy that draws them.
        split: which split.
        out: folder for ``curves.csv`` and ``curves.png``; default ``<run>/interventions``.
        root: where its data lie now, if not where they were when it was trained.
    """
    from vitrarium.measuring import intervene_run

    run = _run(run, root)
    return intervene_run(run, policies, trials, split, Path(out) if out else run.folder / "interventions")


def edit(run: Run | str | Path, root: str | Path | None = None, name: Mapping[str, str] | None = None) -> Editor:
    """Change the units of a trained model: every edit is recorded, measured on validation images, and can be undone.

    Args:
        run: a finished run.
        root: where its data lie now, if not where they were when it was trained.
        name: names for units that have none from the data, by what they are called now: ``{"axis_40": "dark rim"}``.
            They are given at once, whatever the evidence; no data are needed.
    """
    from vitrarium.editing import Editor

    editor = Editor(run, root)
    if name:
        editor.name(name)
    return editor


def prototypes(
    run: Run | str | Path, limits: Mapping[str, float] | None = None, root: str | Path | None = None
) -> PrototypeReport:
    """Gallery and health report of a run's prototypes; ``.write(FOLDER)`` makes a page, a picture and a table.

    Args:
        run: a finished run whose units are prototypes.
        limits: where a finding begins, by name; see :class:`vitrarium.models.prototypes.health.Limits`.
        root: where its data lie now, if not where they were when it was trained.
    """
    from vitrarium.configs.registry import check_options
    from vitrarium.models.prototypes.health import Limits
    from vitrarium.prototyping import prototype_report

    check_options(Limits, limits or {}, (), "the health report")
    return prototype_report(_run(run, root), Limits(**(limits or {})))


def gallery(
    model: TransparentClassifier | Run | str | Path,
    split: str | None = None,
    top: int = 8,
    only: Sequence[str] = (),
    limit: int | None = 64,
    where: Literal["contour", "heat", "box"] = "contour",
    data: DataSource | Mapping[str, Any] | str | None = None,
    root: str | Path | None = None,
) -> Gallery:
    """What units stand for, in pictures; ``.save("gallery.html")`` writes a page or a picture.

    Each unit (channel, concept, axis, filter, prototype) is shown by the images that it is most active on, with where,
    the classes it weighs for where the readout has weights, and what it decodes to where the evidence can draw that.

    Args:
        model: a run or its folder; a model, model folder or animal with ``data``.
        split: whose images are shown. None: prototypes are shown by the patches they come from, which are saved with
            the model, so that no data are needed; all other units by images of the training split.
        top: images for each unit.
        only: names of units, or shell patterns of them ("axis_*"); a single one may be a string. Empty = all.
        limit: units at most, those with the largest weights; None = all.
        where: how a place is shown: "contour" around the highest 5 % of a unit's map, "heat", or "box".
        data: a data set, or the name or ``{name, **options}`` of one, in place of the run's own.
        root: where the run's data lie now, if not where they were when it was trained.

    Raises:
        UserError: neither a run nor data for units that need images, an unknown split or unit.
    """
    from vitrarium.showing import gallery_of

    names = [only] if isinstance(only, str) else only
    return gallery_of(model, split, data, root, top=top, only=names, limit=limit, where=where)


def _model(model: TransparentClassifier | str | Path) -> TransparentClassifier:
    return load(model) if isinstance(model, str | Path) else model


def _run(run: Run | str | Path, root: str | Path | None = None) -> Run:
    if root is not None:
        run = Run(run.folder, run.backbone, root) if isinstance(run, Run) else Run(run, root=root)
    return (run if isinstance(run, Run) else Run(run)).require_finished()
