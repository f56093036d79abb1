"""Model folders on the Hugging Face Hub: there and back, where the package huggingface_hub is installed."""

from __future__ import annotations

import contextlib
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitrarium.configs.errors import UserError
from vitrarium.runs import Run, is_run

if TYPE_CHECKING:
    from torch import nn

    from vitrarium.models.classifier import TransparentClassifier

# What to do, by the name of the hub's error or of one it is a kind of; the first that fits.
CURES = {
    "RevisionNotFoundError": "check the revision: a branch, a tag or a commit of that model",
    "GatedRepoError": "ask its owner for access on its page, then give token=",
    "RepositoryNotFoundError": "check the name; a private model needs token= (or hf auth login)",
    "LocalTokenNotFoundError": "give token=, or log in with hf auth login",
    "LocalEntryNotFoundError": "check the network; what was downloaded once is found again without one",
    "HfHubHTTPError": "check the name and that your token may do this (token=, or hf auth login)",
}
NETWORK = "check the network; a model folder is loaded without one: vt.load(FOLDER)"


def push_to_hub(
    model: Run | str | Path,
    repo: str,
    *,
    private: bool = False,
    token: str | None = None,
    revision: str | None = None,
    message: str = "Upload a model made with Vitrarium",
) -> str:
    """Upload a model folder: weights, configuration and card, nothing else of the run.

    Args:
        model: a finished run, or what :func:`vitrarium.load` takes. A model in memory is not taken: its card, which
            says what it was trained on and how well it does, lies in its folder.
        repo: "user/name" on the hub; made if it is not there.
        private: whether a repository that is made is for you alone; one that is there stays as it is.
        token: of the hub; None = the one that ``hf auth login`` has left.
        revision: branch; None = the main one.
        message: of the commit.

    Returns:
        The address of the commit.

    Raises:
        UserError: no such model, an unfinished run, a package that is missing, a hub that cannot be reached or refuses.

    Example:
        >>> vt.push_to_hub("runs/cbm", "somebody/cbm-flowers")  # doctest: +SKIP
    """
    from vitrarium.models.folder import model_folder

    _check_name(repo)
    if not isinstance(model, Run | str | Path):
        raise UserError(
            f"a {type(model).__name__} in memory has no model card",
            "give the run or model folder that it was loaded from",
        )
    if isinstance(model, Run) or is_run(model):
        model = (model if isinstance(model, Run) else Run(model)).require_finished().folder
    folder, hub = model_folder(model), _hub()
    with tempfile.TemporaryDirectory() as place:
        _pack(folder, Path(place), repo)
        done = _upload(hub.HfApi(token=token), place, repo, private, revision, message)
    return str(done.commit_url)


def _pack(folder: Path, place: Path, repo: str) -> None:
    """What is uploaded; the card says how the model is loaded from there."""
    from vitrarium.models.folder import CARD, FILES

    for name in FILES:
        # Only a model that people have changed has a journal.
        if name != CARD and (folder / name).exists():
            shutil.copyfile(folder / name, place / name)
    try:
        card = (folder / CARD).read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"'{folder}' has no model card ({CARD})", "evaluate the run: that writes it") from error
    card = re.sub(r'vt\.load\("[^"\n]*"\)', lambda _: f'vt.from_pretrained("{repo}")', card, count=1)
    (place / CARD).write_text(card, encoding="utf-8")


def _upload(interface: Any, place: str, repo: str, private: bool, revision: str | None, message: str) -> Any:
    from vitrarium.models.folder import FILES

    with _talking(f"'{repo}' could not be written"):
        interface.create_repo(repo, private=private, exist_ok=True, repo_type="model")
        return interface.upload_folder(
            repo_id=repo,
            folder_path=place,
            repo_type="model",
            revision=revision,
            commit_message=message,
            allow_patterns=list(FILES),
        )


def from_pretrained(
    repo: str,
    revision: str | None = None,
    *,
    token: str | None = None,
    device: str = "cpu",
    backbone: nn.Module | None = None,
) -> TransparentClassifier:
    """Download a model that :func:`push_to_hub` has uploaded, and load it; nothing in it is executed.

    Args:
        repo: "user/name" on the hub.
        revision: branch, tag or commit; None = the newest. Name a commit to get the same model tomorrow.
        token: for a private one; None = the one that ``hf auth login`` has left.
        device: where to.
        backbone: for a model whose backbone was handed over as an object: such a network again.

    Raises:
        UserError: a package that is missing, a hub that cannot be reached, no such repository or revision, no model of
            ours in it, a backbone whose package is not allowed.

    Example:
        >>> model = vt.from_pretrained("somebody/cbm-flowers")  # doctest: +SKIP
    """
    from vitrarium.models.folder import CONFIG, FILES, WEIGHTS, load_model

    _check_name(repo)
    hub = _hub()
    with _talking(f"'{repo}' could not be had"):
        place = hub.snapshot_download(
            repo, revision=revision, token=token, repo_type="model", allow_patterns=list(FILES)
        )
    if not all((Path(place) / name).is_file() for name in (WEIGHTS, CONFIG)):
        raise UserError(f"'{repo}' holds no model of ours ({CONFIG} and {WEIGHTS})", "check the name")
    return load_model(place, device, backbone)


def _check_name(repo: str) -> None:
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", str(repo)):
        raise UserError(f"'{repo}' is no name on the hub", 'write "user/name"')


def _hub() -> Any:
    try:
        import huggingface_hub
    except ImportError as error:
        raise UserError(
            "the Hugging Face Hub needs the package huggingface_hub",
            "pip install huggingface_hub; without it, hand the model folder on and use vt.load(FOLDER)",
        ) from error
    return huggingface_hub


@contextlib.contextmanager
def _talking(failed: str) -> Iterator[None]:
    """Whatever the hub or the way to it refuses, in one line with a cure."""
    try:
        yield
    except Exception as error:
        kinds = [kind.__name__ for kind in type(error).__mro__]
        cure = next((CURES[kind] for kind in CURES if kind in kinds), NETWORK)
        said = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{failed}: {said[:300]}", cure) from error
