"""From names to a whole configuration: defaults lists, groups, files, ``key=value`` overrides."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from vitrarium.configs.errors import UserError, closest
from vitrarium.configs.schema import Config, ExperimentConfig

FOLDER = Path(__file__).parent


def share(epochs: int, part: float) -> int:
    """``${share:${train.epochs},0.2}`` in a YAML: a part of the epochs, rounded down."""
    return int(epochs * part + 1e-9)


def rest(epochs: int, part: float) -> int:
    """``${rest:${train.epochs},0.2}`` in a YAML: the epochs that :func:`share` leaves."""
    return epochs - share(epochs, part)


# Stages of a recipe share out ``train.epochs``, so that all presets see the same number of images.
for _resolver in (share, rest):
    OmegaConf.register_resolver(_resolver.__name__, _resolver, replace=True)

PARTS = ("backbone", "model.evidence", "model.readout")
"""Keys of ``{name, **options}``: whoever names another part starts from that part's own options."""


def compose(
    overrides: Sequence[str] = (), config: str | Path | None = None, folders: Iterable[str | Path] = ()
) -> DictConfig:
    """Compose the configuration of a run.

    Layers, later ones win: the shipped ``base.yaml``; the groups it names (``model``, ``data``, ``backbone``,
        ``train``) with
    the options chosen by ``group=option``; the file ``config``; ``key=value`` overrides. An option is the name of a
    shipped YAML, of one in ``folders/<group>/``, or a path that ends in ``.yaml``. ``+group=option`` adds a group that
    the defaults do not name. A YAML may start with a ``defaults:`` list: ``group/option`` entries are merged before it.
    A layer that names another backbone, evidence or readout than the layers below drops the options of theirs; the
    overrides together count as one layer, in whatever order they come.

    Args:
        overrides: ``key=value`` strings.
        config: a YAML of the user's with any keys of :class:`~vitrarium.configs.schema.Config`.
        folders: more folders with groups in them.

    Raises:
        UserError: unknown group option, unknown key, wrong type, missing value; with the closest names.
    """
    search = [*map(Path, folders), FOLDER]
    choices, values = _sort(overrides, search)
    base = _read(FOLDER / "base.yaml")
    layers = []
    own = _read(Path(config)) if config is not None else {}
    chosen: dict[str, str] = {}
    for entry in [*base.pop("defaults", []), *[e for e in own.pop("defaults", []) if isinstance(e, Mapping)]]:
        chosen.update({str(g): str(o) for g, o in entry.items()})
    chosen.update(choices)
    for group, option in chosen.items():
        layers += _option(group, option, search)
    return _merge(Config, [base, *layers, own], values)


def compose_experiment(name: str, overrides: Sequence[str] = (), folders: Iterable[str | Path] = ()) -> DictConfig:
    """Compose an experiment from ``configs/experiment/<name>.yaml`` or a path.

    Overrides of its own keys (``seeds=[0,1]``, ``workers=1``) change the experiment; ``sweep.KEY=a,b,c`` sweeps a key
    of the baseline's partner presets; all others go to every run.
    """
    own_keys = {f.name for f in fields(ExperimentConfig)} - {"sweep", "overrides"}
    own, sweeps, passed = [], {}, []
    for override in overrides:
        key, value = _pair(override)
        if key.startswith("sweep."):
            sweeps[key.removeprefix("sweep.")] = [_value(v) for v in value.strip("[]").split(",")]
        elif key in own_keys:
            own.append(override)
        else:
            passed.append(override)
    layers = _option("experiment", name, [*map(Path, folders), FOLDER])
    experiment = _merge(ExperimentConfig, layers, own)
    experiment.overrides = [*experiment.overrides, *passed]
    if sweeps:
        partners = [p for p in experiment.presets if p != experiment.baseline] or list(experiment.presets)
        for preset in partners:
            experiment.sweep[preset] = sweeps
    return experiment


def assignments(words: Iterable[str]) -> dict[str, Any]:
    """``["size=32", "split=random"]`` as a mapping, its values read as those of overrides are.

    Raises:
        UserError: a word without an equals sign, a value that is no YAML.
    """
    found = {}
    for key, text in map(_pair, words):
        try:
            found[key] = _value(text)
        except (YAMLError, OmegaConfBaseException) as error:
            raise UserError(f"'{key}={text}' cannot be read", "put the value in quotes") from error
    return found


def options(group: str, folders: Iterable[str | Path] = ()) -> list[str]:
    """Names of the YAMLs in a group."""
    search = [*map(Path, folders), FOLDER]
    return sorted({p.stem for folder in search for p in (folder / group).glob("*.yaml")})


def to_plain(config: DictConfig) -> dict[str, Any]:
    """The configuration as plain dictionaries and lists, interpolations resolved."""
    try:
        return OmegaConf.to_container(config, resolve=True, throw_on_missing=True)  # type: ignore[return-value]
    except OmegaConfBaseException as error:
        raise _translate(error, config) from error


def completed(config: Mapping[str, Any]) -> dict[str, Any]:
    """A saved configuration with the keys that it is too old to know, at their defaults."""
    defaults: dict[str, Any] = OmegaConf.to_container(OmegaConf.structured(Config))  # type: ignore[assignment]
    whole = {**defaults, **config}
    for key, inner in defaults.items():
        if isinstance(inner, dict) and isinstance(whole[key], Mapping):
            whole[key] = {**{k: v for k, v in inner.items() if v != MISSING}, **whole[key]}
    return whole


def backbone_title(spec: Mapping[str, Any]) -> str:
    """How reports call a backbone: by its name, somebody's own network by the path of its class."""
    return str(spec.get("module") or spec["name"])


def to_yaml(config: DictConfig) -> str:
    """The configuration as YAML, interpolations resolved."""
    return OmegaConf.to_yaml(OmegaConf.create(to_plain(config)))


def _sort(overrides: Sequence[str], search: Sequence[Path]) -> tuple[dict[str, str], list[str]]:
    """Split overrides into choices of group options and plain values."""
    groups = {p.name for folder in search if folder.is_dir() for p in folder.iterdir() if _is_group(p)} - {"experiment"}
    choices, values = {}, []
    for override in overrides:
        key, value = _pair(override)
        if key.startswith("+"):
            group = key[1:]
            if group not in groups:
                raise UserError(f"unknown configuration group '{group}'", closest(group, groups))
            choices[group] = value
        elif key in groups:
            choices[key] = value
        else:
            values.append(override)
    return choices, values


def _is_group(folder: Path) -> bool:
    return folder.is_dir() and any(folder.glob("*.yaml"))


def _pair(override: str) -> tuple[str, str]:
    key, sign, value = override.partition("=")
    if not sign or not key.strip():
        raise UserError(f"'{override}' is no override", "write key=value, for instance train.epochs=5")
    return key.strip(), value.strip()


def _value(text: str) -> Any:
    return OmegaConf.to_container(OmegaConf.from_dotlist([f"v={text}"]))["v"]  # type: ignore[index,call-overload]


def _option(group: str, option: str, search: Sequence[Path]) -> list[dict[str, Any]]:
    """The layers of one group option: what it inherits, then itself."""
    path = Path(option) if option.endswith((".yaml", ".yml")) else None
    if path is None:
        found = [folder / group / f"{option}.yaml" for folder in search]
        path = next((p for p in found if p.is_file()), None)
        if path is None:
            what = "model preset" if group == "model" else f"{group} option"
            names = {p.stem for folder in search for p in (folder / group).glob("*.yaml")}
            raise UserError(f"unknown {what} '{option}'", closest(option, names))
    layer = _read(path)
    inherited: list[dict[str, Any]] = []
    for entry in layer.pop("defaults", []):
        parent_group, sign, parent = str(entry).partition("/")
        if not sign:
            raise UserError(f"{path}: '{entry}' in the defaults list", "write group/option")
        inherited += _option(parent_group, parent, search)
    return [*inherited, layer]


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise UserError(f"configuration file '{path}' does not exist", "check the path")
    try:
        loaded = OmegaConf.load(path)
    except (YAMLError, OmegaConfBaseException, OSError) as error:
        raise UserError(f"'{path}' is no valid YAML: {' '.join(str(error).split())}", "mend the file") from error
    if not isinstance(loaded, DictConfig):
        raise UserError(f"'{path}' must hold a mapping", "start with 'model:' or another key")
    return OmegaConf.to_container(loaded, resolve=False)  # type: ignore[return-value]


def _merge(schema: type, layers: Sequence[Mapping[str, Any]], values: Sequence[str]) -> DictConfig:
    """Merge layers and dotlist values into the schema, and turn every refusal into one message."""
    config = OmegaConf.structured(schema)
    try:
        # Lists of stages are mappings by name, so merging never loses an entry; a layer's whole recipe replaces the
        # one below.
        for layer in layers:
            _check_keys(schema, layer)
            if "recipe" in layer:
                config.recipe = {}
            layer = _with_module_named(layer)
            _drop_other_parts(config, _names(layer))
            config = OmegaConf.merge(config, layer)
        keys = [_pair(value)[0] for value in values]
        if "backbone.module" in keys and "backbone.name" not in keys:
            values = [*values, "backbone.name=module"]
        pairs = [(key, _value(text)) for key, text in map(_pair, values)]
        if schema is Config:
            _drop_other_parts(config, {part: name for pair in pairs for part, name in _named_by(*pair)})
        for key, value in pairs:
            _check_path(schema, config, key)
            OmegaConf.update(config, key, value, merge=True)
        OmegaConf.resolve(config.copy())
        missing = sorted(OmegaConf.missing_keys(config))
    except OmegaConfBaseException as error:
        raise _translate(error, config) from error
    if missing:
        raise UserError(f"no value for {', '.join(missing)}", f"set {missing[0]}=...")
    return config


def _with_module_named(layer: Mapping[str, Any]) -> Mapping[str, Any]:
    """A layer that says ``backbone: {module: mypkg.Net}`` means the backbone called "module", whatever lies below."""
    backbone = layer.get("backbone")
    if not isinstance(backbone, Mapping) or "module" not in backbone or "name" in backbone:
        return layer
    return {**layer, "backbone": {"name": "module", **backbone}}


def _names(layer: Mapping[str, Any]) -> dict[str, Any]:
    """The parts that a layer names."""
    found = {}
    for part in PARTS:
        spec: Any = layer
        for step in part.split("."):
            spec = spec.get(step) if isinstance(spec, Mapping) else None
        if isinstance(spec, Mapping) and "name" in spec:
            found[part] = spec["name"]
    return found


def _named_by(key: str, value: Any) -> list[tuple[str, Any]]:
    """The part that an override names: ``model.evidence.name=concepts`` or ``model.evidence={name: concepts}``."""
    if key.endswith(".name"):
        key, value = key.removesuffix(".name"), {"name": value}
    return [(key, value["name"])] if key in PARTS and isinstance(value, Mapping) and "name" in value else []


def _drop_other_parts(config: DictConfig, named: Mapping[str, Any]) -> None:
    """Take out the options of parts that go because another one is named in their place."""
    for part, name in named.items():
        if OmegaConf.select(config, f"{part}.name") not in (None, name):
            OmegaConf.update(config, part, {}, merge=False)


def _check_keys(schema: type, layer: Mapping[str, Any], prefix: str = "") -> None:
    """Refuse unknown keys of a layer, with the closest known ones."""
    known = {f.name: f for f in fields(schema)}
    for key, value in layer.items():
        if key not in known:
            near = closest(str(key), known)
            raise UserError(f"unknown key '{prefix}{key}'", near)
        inner = _nested(known[str(key)].default_factory)  # type: ignore[arg-type]
        if inner is not None and isinstance(value, Mapping):
            _check_keys(inner, value, f"{prefix}{key}.")


def _check_path(schema: type, config: Any, key: str) -> None:
    """Refuse an override whose key does not exist; below free mappings anything goes (registries check it)."""
    done: list[str] = []
    for step in key.split("."):
        if isinstance(config, DictConfig):
            kind = OmegaConf.get_type(config)
            structured = isinstance(kind, type) and is_dataclass(kind)
            # Stages must be there already; below their events, as below other free mappings, the registries check.
            if step not in config and (structured or done == ["recipe"]):
                raise UserError(f"unknown key '{'.'.join([*done, step])}'", closest(step, [str(k) for k in config]))
            config = OmegaConf.select(config, step) if step in config else None
        done.append(step)


def _nested(factory: Any) -> type | None:
    return factory if isinstance(factory, type) and is_dataclass(factory) else None


def _translate(error: OmegaConfBaseException, config: DictConfig) -> UserError:
    """OmegaConf's refusals in one line each."""
    key = getattr(error, "full_key", None) or ""
    text = str(error).split("\n")[0].strip()
    if "is not in" in text or "not in '" in text:
        last = key.rsplit(".", 1)[-1]
        return UserError(f"unknown key '{key}'", closest(last, _sibling_keys(config, key)))
    if "nterpolation" in text:
        wanted = re.search(r"'([^']+)'", text)
        return UserError(f"'{key}' refers to {wanted.group(0) if wanted else 'a key'} which does not exist", text)
    return UserError(f"'{key}': {text}", "see vitrarium train --print-config")


def _sibling_keys(config: DictConfig, key: str) -> list[str]:
    parent = OmegaConf.select(config, key.rpartition(".")[0]) if "." in key else config
    return [str(k) for k in parent] if isinstance(parent, DictConfig) else []
