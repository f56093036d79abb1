"""The picture of intervention curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitrarium.configs.errors import UserError
from vitrarium.configs.files import whole_file
from vitrarium.eval.interventions.curve import Curve

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Told apart with any colour vision (Okabe and Ito, 2008), and by marker and dash when printed in grey.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
DASHES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1)), (0, (1, 1)))


def plot_curves(curves: Sequence[Curve] | Mapping[str, Sequence[Curve]], path: str | Path, title: str = "") -> Path:
    """Draw curves as PNG: class accuracy against corrected attributes, with 95 % bands.

    Args:
        curves: curves of one panel, or panels by name ("all", "grey" ...).
        path: of the PNG; it appears whole or not at all.
        title: above the picture, for instance the name of the run.

    Returns:
        ``path``.

    Raises:
        UserError: nothing to draw.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    panels = {"": curves} if not isinstance(curves, Mapping) else dict(curves)
    panels = {name: list(drawn) for name, drawn in panels.items() if len(drawn)}
    if not panels:
        raise UserError("there is no intervention curve to draw", "run at least one policy on a model with concepts")
    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    width = 6.4 if columns == 1 else 4.2 * columns
    figure = Figure(figsize=(width, 3.6 * rows + 0.9), dpi=150, layout=ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.08))
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    styles = _styles(panels)
    for axis, (name, drawn) in zip(axes, panels.items(), strict=False):
        _panel(axis, name, drawn, styles)
    for axis in axes[len(panels) :]:
        axis.set_axis_off()
    handles, labels = _legend(list(axes[: len(panels)]))
    figure.legend(handles, labels, loc="outside lower center", ncols=min(4, len(labels)), frameon=False, fontsize=9)
    figure.suptitle("\n".join(filter(None, [title, _caption(panels)])), fontsize=9, x=0.01, ha="left")
    path = Path(path)
    with whole_file(path) as beside:
        figure.savefig(beside, format="png")
    return path


def _styles(panels: Mapping[str, Sequence[Curve]]) -> dict[str, dict[str, Any]]:
    """One look per policy, the same in every panel."""
    names = list(dict.fromkeys(curve.policy for drawn in panels.values() for curve in drawn))
    return {
        name: {
            "color": COLOURS[i % len(COLOURS)],
            "marker": MARKERS[i % len(MARKERS)],
            "linestyle": DASHES[i % len(DASHES)],
        }
        for i, name in enumerate(names)
    }


def _panel(axis: Axes, name: str, curves: Sequence[Curve], styles: Mapping[str, dict[str, Any]]) -> None:
    """One set of axes."""
    from matplotlib.ticker import MaxNLocator

    for curve in curves:
        style = styles[curve.policy]
        accuracy = curve.accuracy.numpy()
        every = max(1, len(curve.budgets) // 12)
        axis.plot(curve.budgets, accuracy, label=curve.policy, linewidth=1.6, markersize=4, markevery=every, **style)
        axis.fill_between(curve.budgets, curve.low.numpy(), curve.high.numpy(), color=style["color"], alpha=0.15, lw=0)
    most = max(curve.budgets[-1] for curve in curves)
    axis.set_xlim(-0.02 * max(1, most), 1.02 * max(1, most))
    if most <= 12:
        axis.set_xticks(range(most + 1))
    else:
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.set_xlabel(f"attributes corrected (of {curves[0].groups})")
    axis.set_ylabel("class accuracy")
    axis.grid(alpha=0.3, linewidth=0.6)
    axis.spines[["top", "right"]].set_visible(False)
    if name:
        axis.set_title(f"{name} ({len(curves[0].right):,} images)", fontsize=10)


def _legend(axes: Sequence[Axes]) -> tuple[list[Any], list[str]]:
    """Each policy once."""
    found: dict[str, Any] = {}
    for axis in axes:
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True):
            found.setdefault(label, handle)
    return list(found.values()), list(found)


def _caption(panels: Mapping[str, Sequence[Curve]]) -> str:
    """What was averaged, in words."""
    curves = [curve for drawn in panels.values() for curve in drawn]
    orders = {curve.policy: curve.trials for curve in curves if curve.trials > 1}
    said = [f"{name}: mean of {trials} orders" for name, trials in orders.items()]
    scales = ["each panel has its own scale"] if len(panels) > 1 else []
    return "; ".join([*said, "bands: 95 % bootstrap over images", *scales])
