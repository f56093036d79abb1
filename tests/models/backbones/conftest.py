from __future__ import annotations

import pytest

# Architectures as they are, with fewer numbers where timm lets us: the suite stays quick.
NARROW = {
    "swin_tiny_patch4_window7_224": {"embed_dim": 16, "num_heads": (1, 2, 4, 8)},
    "vgg11_bn": {"mlp_ratio": 1 / 512},
    "vit_tiny_patch16_224": {"depth": 4},
    "densenet121": {"block_config": (2, 2, 2, 2)},
}


@pytest.fixture(scope="module")
def small_timm():
    """Makes timm build some large architectures smaller."""
    import timm

    patch, create = pytest.MonkeyPatch(), timm.create_model
    patch.setattr(timm, "create_model", lambda name, **options: create(name, **{**NARROW.get(name, {}), **options}))
    yield
    patch.undo()
