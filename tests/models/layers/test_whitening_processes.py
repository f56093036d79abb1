"""Two processes whiten what one process whitens that has their whole batch."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from vitrarium.configs.errors import UserError
from vitrarium.models.layers.whitening import Whitening

METHODS = ("eigh", "cholesky", "iternorm")


def everything() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The whole batch, what its result is weighed by in the loss, and a rotation of each group."""
    draw = torch.Generator().manual_seed(0)
    mix = torch.randn(6, 6, generator=draw, dtype=torch.float64)
    map = torch.randn(9, 6, 2, 3, generator=draw, dtype=torch.float64)
    map = torch.einsum("dc,bchw->bdhw", mix, map) + 5
    weight = torch.randn(map.shape, generator=draw, dtype=torch.float64)
    return map, weight, torch.linalg.qr(torch.randn(2, 3, 3, generator=draw, dtype=torch.float64)).Q


def training(method: str, images: torch.Tensor) -> dict[str, torch.Tensor]:
    """Two steps on some of the images: results, gradients, second derivatives and running statistics."""
    map, weight, rotation = everything()
    layer, found = Whitening(6, 2, method, momentum=0.3).double(), {}
    for step in range(2):
        own, given = (map[images] * (1 + step)).requires_grad_(), weight[images]
        white = layer(own, rotation if step else None)
        (gradient,) = torch.autograd.grad((white**2 * given).sum(), own, create_graph=True)
        (second,) = torch.autograd.grad((gradient**2).sum(), own)
        found |= {f"white{step}": white, f"gradient{step}": gradient, f"second{step}": second}
    return {name: tensor.detach() for name, tensor in found.items()} | {
        f"state.{name}": buffer.clone() for name, buffer in layer.state_dict().items()
    }


def share(rank: int) -> torch.Tensor:
    """Images of each process; the first has fewer values than a group has channels need, so it needs the other."""
    return torch.arange(9)[:1] if rank == 0 else torch.arange(9)[1:]


WORKER = """
import sys
from datetime import timedelta
import torch
import torch.distributed as dist
torch.set_num_threads(1)
rank, folder = int(sys.argv[1]), sys.argv[2]
sys.path.insert(0, sys.argv[3])
from test_whitening_processes import METHODS, few, share, training
dist.init_process_group(
    "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2, timeout=timedelta(seconds=90)
)
found = {method: training(method, share(rank)) for method in METHODS}
found["few"] = few()
torch.save(found, f"{folder}/{rank}.pt")
dist.destroy_process_group()
"""


def few() -> dict[str, torch.Tensor]:
    """Each process has 2 values for 6 channels: too few, even together. The message, as the name of something."""
    try:
        Whitening(6)(torch.randn(1, 6, 1, 2))
    except UserError as error:
        return {str(error): torch.ones(1)}
    return {}


@pytest.mark.skipif(not torch.distributed.is_available(), reason="needs torch.distributed")
def test_two_processes_whiten_as_one(tmp_path):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", WORKER]
    running = [
        subprocess.Popen(
            [*command, str(rank), str(tmp_path), str(Path(__file__).parent)],
            env=environment, stderr=subprocess.PIPE, text=True,
        )
        for rank in range(2)
    ]  # fmt: skip
    for process in running:
        _, error = process.communicate(timeout=120)
        assert process.returncode == 0, error[-2000:]
    found = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    for method in METHODS:
        alone = training(method, torch.arange(9))
        assert set(alone) == set(found[0][method])
        for name, expected in alone.items():
            for rank in range(2):
                mine = found[rank][method][name]
                whole = expected if name.startswith("state.") else expected[share(rank)]
                torch.testing.assert_close(mine, whole, msg=lambda text, where=(method, name): f"{where}: {text}")
    for rank in range(2):
        assert "4 values for each of 6 channels" in next(iter(found[rank]["few"]))
