"""A model as a folder: ``model.safetensors``, ``config.json`` and a card, enough to load and predict."""

from __future__ import annotations

import importlib.metadata
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from vitrarium.configs.errors import UserError
from vitrarium.configs.files import write_text
from vitrarium.data.concepts import ConceptSet
from vitrarium.data.preprocessing import Preprocessing
from vitrarium.models.abstention import Abstention
from vitrarium.models.assembly import build
from vitrarium.models.backbones.own_module import given_again
from vitrarium.models.classifier import TransparentClassifier
from vitrarium.models.plugins import plugins_of, refuse_missing
from vitrarium.models.prototypes.journal import JOURNAL, START, Journal
from vitrarium.models.zoo import animal_folder

FORMAT = 1
WEIGHTS, CONFIG, CARD = "model.safetensors", "config.json", "README.md"
FILES = (WEIGHTS, CONFIG, CARD, JOURNAL, START)
"""All files of a model folder; those of the edit journal are there when a person has changed the model."""


def save_model(
    model: TransparentClassifier, folder: str | Path, card: str = "", facts: Mapping[str, Any] | None = None
) -> Path:
    """Write a model folder; it appears whole or not at all, and an older one stays until the new one is complete.

    Args:
        model: the classifier; train-only auxiliary modules are left out.
        folder: where to; its parent is created.
        card: the model card in Markdown.
        facts: plain containers to keep in ``config.json`` (data set, seed ...).

    Raises:
        UserError: full disk or read-only folder, a model that was folded for deployment.
    """
    if model.deploy_report is not None:
        raise UserError(
            "a deployed model is folded and cannot be built again from its configuration",
            "save the model it was made from; vitrarium export writes the folded one",
        )
    folder = Path(folder)
    beside, old = folder.with_name(folder.name + ".part"), folder.with_name(folder.name + ".old")
    try:
        shutil.rmtree(beside, ignore_errors=True)
        beside.mkdir(parents=True)
        save_file(weights_of(model), beside / WEIGHTS)
        (beside / CONFIG).write_text(json.dumps(_describe(model, facts or {}), indent=2), encoding="utf-8")
        (beside / CARD).write_text(card or f"# {model.spec.get('title', 'Model')}\n", encoding="utf-8")
        if model.journal is not None:
            model.journal.write(beside)
        shutil.rmtree(old, ignore_errors=True)
        if folder.exists():
            folder.rename(old)
        beside.rename(folder)
        shutil.rmtree(old, ignore_errors=True)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(beside, ignore_errors=True)
        raise UserError(
            f"the model could not be written to '{folder}': {error}",
            "free some space or choose a folder you may write to; what was there before is untouched",
        ) from error
    return folder


def weights_of(model: TransparentClassifier) -> dict[str, torch.Tensor]:
    """The tensors that belong to the model: its state without train-only auxiliary modules."""
    hidden = tuple(f"auxiliary.{name}." for name in model.train_only)
    return {
        name: tensor.detach().cpu().contiguous()
        for name, tensor in model.state_dict().items()
        if not (hidden and name.startswith(hidden))
    }


def load_model(
    folder: str | Path, device: str | torch.device = "cpu", backbone: nn.Module | None = None
) -> TransparentClassifier:
    """Load a model folder, the model of a run folder or an animal, in evaluation mode. Nothing in it is executed.

    Args:
        folder: of a model or of a run, or the name of an animal ("zoo/cbm-flowers").
        device: where to.
        backbone: for a model whose backbone was handed over as an object: such a network again, its weights do not
            matter.

    Raises:
        UserError: no model there, damaged or foreign files, a pickle where safetensors belong, a backbone whose package
            is not allowed.
    """
    folder = model_folder(folder)
    config = _read_config(folder / CONFIG)
    concepts = None if config["concepts"] is None else ConceptSet.from_dict(config["concepts"])
    preprocessing = None if config["preprocessing"] is None else Preprocessing(**config["preprocessing"])
    spec = _without_weights(config["spec"])
    # Folders of earlier versions have neither plugins nor abstention.
    refuse_missing(spec, config.get("plugins", {}))
    if backbone is not None:
        spec = {**spec, "backbone": given_again(backbone, spec["backbone"])}
    model = build(spec, config["class_names"], concepts, preprocessing)
    load_weights_into(model, read_weights(folder / WEIGHTS), str(folder))
    _restore_names(model, config, folder / CONFIG)
    if config.get("abstention") is not None:
        model.abstention = Abstention.from_dict(config["abstention"])
    model.journal = Journal.read(folder)
    return model.to(device).eval()


def save_abstention(folder: str | Path, abstention: Abstention | None) -> Path:
    """Set anew when a saved model does not answer; weights and everything else stay as they are.

    Args:
        folder: run or model folder.
        abstention: the threshold, or None for a model that always answers.

    Raises:
        UserError: no model there, or a folder that cannot be written.
    """
    return _amend(folder, abstention=None if abstention is None else abstention.to_dict())


def add_facts(folder: str | Path, facts: Mapping[str, Any]) -> Path:
    """Keep more facts (numbers that were measured later ...) with a saved model; weights stay as they are.

    Args:
        folder: run or model folder.
        facts: plain containers by name; those of the same name are replaced.

    Raises:
        UserError: no model there, or a folder that cannot be written.
    """
    return _amend(folder, facts={**read_facts(folder), **facts})


def read_facts(folder: str | Path) -> dict[str, Any]:
    """The facts that are kept with a saved model (data set, its fingerprint, seed); the model is not loaded."""
    return dict(_read_config(model_folder(folder) / CONFIG).get("facts", {}))


def rewrite_weights(folder: str | Path, model: TransparentClassifier) -> Path:
    """Write a model that was edited over the one in ``folder``; configuration, facts and card stay as they are.

    The folder appears whole or not at all, as with :func:`save_model`.

    Args:
        folder: run or model folder.
        model: of the same parts as the one there.

    Raises:
        UserError: no model there, a full disk or a read-only folder; the old model is then untouched.
    """
    folder = model_folder(folder)
    card = (folder / CARD).read_text(encoding="utf-8") if (folder / CARD).is_file() else ""
    return save_model(model, folder, card, read_facts(folder))


def _amend(folder: str | Path, **changes: Any) -> Path:
    """Change entries of ``config.json``, which appears whole."""
    path = model_folder(folder) / CONFIG
    config = {**_read_config(path), **changes}
    try:
        write_text(path, json.dumps(config, indent=2))
    except OSError as error:
        raise UserError(f"'{path}' cannot be written: {error}", "choose a folder you may write to") from error
    return path


def model_folder(path: str | Path) -> Path:
    """The folder that holds ``config.json`` and ``model.safetensors``.

    ``path`` itself, ``path/model``, or where the animal lies that it names ("zoo/cbm-flowers"); a model of your own at
    that very path comes first.
    """
    path = Path(path)
    for folder in (path, path / "model"):
        if (folder / CONFIG).is_file() and (folder / WEIGHTS).is_file():
            return folder
    animal = animal_folder(path)
    if animal is not None:
        return animal
    if not path.exists():
        raise UserError(f"there is no run or model at '{path}'", "check the path; runs lie under runs/<name>")
    raise UserError(
        f"'{path}' holds no model ({CONFIG} and {WEIGHTS})",
        "give a run folder whose training has finished, or its model/",
    )


def read_weights(path: Path) -> dict[str, torch.Tensor]:
    """Tensors of a safetensors file; a pickle or a damaged file is refused, never executed."""
    try:
        return load_file(path)
    except SafetensorError as error:
        head = path.read_bytes()[:4]
        pickled = head[:2] in (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05") or head == b"PK\x03\x04"
        problem = "is a pickle, not a safetensors file: it was not opened" if pickled else f"is damaged ({error})"
        raise UserError(f"'{path}' {problem}", "convert it with safetensors.torch.save_file, or train again") from error


def load_weights_into(model: TransparentClassifier, weights: Mapping[str, torch.Tensor], source: str) -> None:
    """Load weights that must fit the model exactly (train-only auxiliary modules excepted)."""
    expected = weights_of(model)
    missing, strange = sorted(expected.keys() - weights.keys()), sorted(weights.keys() - expected.keys())
    shapes = [n for n in expected.keys() & weights.keys() if expected[n].shape != weights[n].shape]
    if missing or strange or shapes:
        said = [f"{len(missing)} missing ({missing[0]} ...)"] if missing else []
        said += [f"{len(strange)} unknown ({strange[0]} ...)"] if strange else []
        said += [f"{len(shapes)} of another shape ({sorted(shapes)[0]} ...)"] if shapes else []
        raise UserError(
            f"the weights of '{source}' belong to another model: {', '.join(said)}", "check which run it is"
        )
    model.load_state_dict(dict(weights), strict=False)


def _without_weights(spec: Mapping[str, Any]) -> dict[str, Any]:
    """The specification without where the backbone's weights once came from: that is history, not something to load.

    Looked at on the way out and on the way in: a folder from elsewhere must not make loading it fetch anything.
    """
    backbone = spec["backbone"]
    if isinstance(backbone, Mapping):
        backbone = {key: value for key, value in backbone.items() if key != "weights"}
    return {**spec, "backbone": backbone}


def _restore_names(model: TransparentClassifier, config: Mapping[str, Any], path: Path) -> None:
    """Call the units what they were called when the model was saved: people may have named some."""
    # Folders of the first version have no unit table.
    names = (config.get("units") or {}).get("names")
    if names is None or tuple(names) == model.evidence.units.names:
        return
    try:
        model.evidence.call_units([str(name) for name in names])
    except UserError as error:
        raise UserError(f"the unit table in '{path}' is not that of this model: {error.problem}", error.cure) from error


def _describe(model: TransparentClassifier, facts: Mapping[str, Any]) -> dict[str, Any]:
    spec = _without_weights({part: model.spec[part] for part in ("backbone", "evidence", "readout")})
    return {
        "format": FORMAT,
        "vitrarium": importlib.metadata.version("vitrarium"),
        "spec": spec,
        "plugins": plugins_of(spec),
        "class_names": list(model.class_names),
        "concepts": None if model.concepts is None else model.concepts.to_dict(),
        "preprocessing": None if model.preprocessing is None else model.preprocessing.to_dict(),
        "units": model.evidence.units.to_dict(),
        "abstention": None if model.abstention is None else model.abstention.to_dict(),
        "facts": dict(facts),
    }


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UserError(
            f"'{path}' cannot be read ({error})", "the model folder is damaged: export or train it again"
        ) from error
    needed = {"format", "spec", "class_names", "concepts", "preprocessing"}
    if not isinstance(config, dict) or not needed <= config.keys():
        raise UserError(f"'{path}' describes no Vitrarium model", f"expected the keys {', '.join(sorted(needed))}")
    if config["format"] > FORMAT:
        raise UserError(f"'{path}' was written by a newer Vitrarium (format {config['format']})", "upgrade vitrarium")
    return config
