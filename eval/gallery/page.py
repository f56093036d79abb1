"""A gallery as an HTML page with its pictures inside."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from PIL import Image

from vitrarium.eval.explanations import heat
from vitrarium.eval.gallery.exhibits import Exhibit, Gallery, Tile


def page_of(gallery: Gallery) -> str:
    """The text of an HTML file that needs nothing else."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("vitrarium.eval.gallery", "."), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    return environment.get_template("gallery.html").render(
        title=gallery.title,
        credit=gallery.credit,
        notes=gallery.notes,
        legend=[("#{:02x}{:02x}{:02x}".format(*colour), said) for colour, said in gallery.legend],
        in_rows=gallery.in_rows,
        rooms=[{"name": name, "exhibits": [_exhibit(e) for e in exhibits]} for name, exhibits in gallery.rooms],
    )


def _exhibit(e: Exhibit) -> dict[str, Any]:
    return {
        "unit": e.title,
        "tiles": [{"picture": _address(t.picture), "caption": t.caption, "alt": _alt(e, t)} for t in e.tiles],
        "source": e.source,
        "drift": e.drift,
        "said": e.said,
        "speaks": e.speaks,
        "findings": e.findings,
    }


def _alt(e: Exhibit, tile: Tile) -> str:
    """What a picture shows, for those who cannot see it."""
    if tile.kind == "image":
        return f"{tile.label}, image {tile.index}, on which {e.title} is {tile.activation:.2f}"
    return f"{e.title}, as the model draws it" if tile.kind == "decoded" else f"the source image of {e.title}"


def _address(picture: np.ndarray) -> str:
    """A tile as it stands in the page: a fifth of the size of a PNG, thin lines kept."""
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "JPEG", quality=90, subsampling=0)
    return heat.data_address(buffer.getvalue(), "image/jpeg")
