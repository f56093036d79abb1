from __future__ import annotations

import pytest
import torch

from vitrarium.configs.errors import UserError
from vitrarium.models.backbones.layouts import Layout, detect, grid


@pytest.mark.parametrize(
    ("layout", "shape"),
    [(Layout("first"), (2, 5, 3, 4)), (Layout("last"), (2, 3, 4, 5)), (Layout("tokens", 2), (2, 14, 5))],
)
def test_write_undoes_read(layout, shape):
    value = torch.randn(shape)
    map, extra = layout.read(value, (3, 4))
    assert map.shape == (2, 5, 3, 4)
    assert torch.equal(layout.write(map, extra), value)


def test_tokens_fill_the_grid_row_by_row_after_the_prefix():
    tokens = torch.arange(7.0).reshape(1, 7, 1).expand(2, 7, 3)
    map, (prefix,) = Layout("tokens", 1).read(tokens, (20, 30))
    assert prefix[0, :, 0].tolist() == [0]
    assert map[0, 0].tolist() == [[1, 2, 3], [4, 5, 6]]
    with pytest.raises(UserError, match="7 tokens make no grid"):
        Layout("tokens").read(tokens, (20, 30))


@pytest.mark.parametrize(
    ("tokens", "size", "expected"),
    [(16, (64, 64), (4, 4)), (8, (64, 128), (2, 4)), (12, (64, 64), None), (0, (8, 8), None), (15, (64, 64), None)],
)
def test_grid_has_the_aspect_of_the_image(tokens, size, expected):
    assert grid(tokens, size) == expected


@pytest.mark.parametrize(
    ("shape", "size", "usual", "expected"),
    [
        ((2, 64, 8, 16), (64, 128), Layout(), Layout("first")),
        ((2, 8, 16, 64), (64, 128), Layout(), Layout("last")),
        ((2, 31, 63, 64), (64, 128), Layout(), Layout("last")),  # convolutions without padding
        ((2, 1536, 2, 6), (128, 256), Layout(), Layout("first")),  # many of them: the end of Inception
        ((2, 64, 8, 27), (128, 256), Layout(), None),
        ((2, 64, 1, 1), (64, 128), Layout(), Layout("first")),
        ((2, 8, 8, 8), (64, 64), Layout(), Layout("first")),
        ((2, 8, 8, 8), (64, 64), Layout("last"), Layout("last")),
        ((2, 17, 6), (64, 64), Layout("tokens", 1), Layout("tokens", 1)),
        ((2, 16, 6), (64, 64), Layout("tokens", 1), Layout("tokens", 0)),
        ((2, 3, 17, 64), (64, 64), Layout("tokens", 1), None),  # heads of an attention
        ((2, 18, 6), (64, 64), Layout("tokens", 1), None),
        ((2, 64), (64, 64), Layout(), None),
    ],
)
def test_detect_tells_rows_from_channels(shape, size, usual, expected):
    assert detect(shape, size, usual) == expected
