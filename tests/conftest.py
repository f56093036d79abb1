"""What all tests share: one CPU thread, caches of their own, tiny flowers."""

from __future__ import annotations

import os
from contextlib import contextmanager
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")

import pytest
import torch

torch.set_num_threads(1)

# Images of 32 pixels, a handful of them, a model of three thousand numbers: seconds, not minutes.
TINY = (
    "data.size=32",
    "data.train=48",
    "data.val=24",
    "data.test=24",
    "backbone.widths=[8,8]",
    "train.epochs=2",
    "train.batch_size=8",
    "train.progress=false",
    "evaluation.bootstrap=20",
    "evaluation.trials=2",
)


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory):
    """Decoded images of the tests go to a folder that goes away with them."""
    before = os.environ.get("VITRARIUM_CACHE")
    os.environ["VITRARIUM_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    yield
    if before is None:
        del os.environ["VITRARIUM_CACHE"]
    else:
        os.environ["VITRARIUM_CACHE"] = before


@pytest.fixture(scope="session")
def tiny():
    """Overrides of a run that takes a second."""
    return TINY


@pytest.fixture
def dying(monkeypatch):
    """``dying(n)``: a context in which training must die right after its n-th save, as when the power fails."""

    @contextmanager
    def context(saves):
        from vitrarium.train.callbacks import Keeper

        save, calls = Keeper.save, []

        def save_then_die(self, *args, **kwargs):
            save(self, *args, **kwargs)
            calls.append(1)
            if len(calls) == saves:
                raise BaseException("gone")

        with monkeypatch.context() as patch:
            patch.setattr(Keeper, "save", save_then_die)
            with pytest.raises(BaseException, match="gone"):
                yield

    return context


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory):
    """A finished and measured joint CBM on tiny flowers."""
    import vitrarium as vt

    run = vt.fit("model=cbm", *TINY, out=tmp_path_factory.mktemp("runs") / "cbm")
    vt.evaluate(run)
    return run


@pytest.fixture(scope="session")
def real_data():
    """The folder of real data sets, where there is one."""
    folder = os.environ.get("VITRARIUM_DATA")
    if not folder or not Path(folder).is_dir():
        pytest.skip("needs VITRARIUM_DATA")
    return Path(folder)
