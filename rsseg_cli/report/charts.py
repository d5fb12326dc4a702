"""Charts by matplotlib: PNG files, and SVG that takes the colours of the page around it."""

from __future__ import annotations

import io
import math
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal
from xml.etree import ElementTree

from markupsafe import Markup
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.rcsetup import cycler
from matplotlib.text import Text
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from rsseg_cli.report.palette import INK, PAPER, RULE, SERIES_LIGHT, SOFT

DASHES = ("-", (0, (4, 2)), (0, (1.5, 2)), (0, (6, 2, 1.5, 2)), (0, (1, 3)), (0, (8, 3)))
"""Lines differ by dash as well as by colour."""
STYLE: Any = {
    "font.size": 10.5,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": RULE,
    "axes.titlesize": 10.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.prop_cycle": cycler(color=SERIES_LIGHT, linestyle=DASHES),
    "grid.color": RULE,
    "legend.frameon": False,
    "legend.fontsize": 10.5,
    "legend.handlelength": 2.6,
    "xtick.color": RULE,
    "xtick.labelcolor": SOFT,
    "ytick.color": RULE,
    "ytick.labelcolor": SOFT,
    "svg.fonttype": "none",
}
_VARIABLES = {INK: "ink", SOFT: "soft", RULE: "rule", PAPER: "paper"} | {
    color: f"l{index}" for index, color in enumerate(SERIES_LIGHT)
}
"""CSS variables of the page by the colour that stands for them in a figure."""
MOST_MARKERS = 40


@dataclass(frozen=True)
class Series:
    """One line of a chart, with a gap where `y` is None or not finite.

    Without `color` it has the next one of the palette.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float | None]
    color: str | None = None

    def finite(self) -> list[float]:
        """Return the values that can be drawn."""
        return [y for y in self.y if y is not None and math.isfinite(y)]


def new_figure(
    rows: int = 1, columns: int = 1, *, size: tuple[float, float], **options: Any
) -> tuple[Figure, list[Axes]]:
    """Return a figure of `size` inches (width, height) and its axes, row by row.

    `options` are those of `Figure.subplots`.
    """
    with rc_context(STYLE):
        figure = Figure(figsize=size, dpi=130, layout="constrained")
        axes = figure.subplots(rows, columns, squeeze=False, **options)
    return figure, list(axes.ravel())


def line_chart(
    series: Sequence[Series],
    *,
    label: str = "",
    x_label: str = "",
    log: bool = False,
    zero: bool = False,
    legend: Literal["outside lower left", "outside right upper"] = "outside lower left",
) -> Figure | None:
    """Draw lines, except those without a point; return None if no line is left.

    Args:
        series: Lines in drawing order.
        label: Label of the vertical axis.
        x_label: Label of the horizontal axis.
        log: Logarithmic values, if all are positive.
        zero: Start the vertical axis at 0.
        legend: Position of the legend; there is none for a single line.
    """
    drawn = [line for line in series if line.finite()]
    if not drawn:
        return None
    figure, (axes,) = new_figure(size=(6.4, 3.4))
    for line in drawn:
        axes.plot(
            line.x, [math.nan if y is None else y for y in line.y], gid=line.name, label=line.name,
            color=line.color, linestyle=None if line.color is None else "-", linewidth=1.6,
            marker="o" if len(line.x) <= MOST_MARKERS else None, markersize=4,
            markerfacecolor=PAPER, clip_on=False,
        )  # fmt: skip
    values = [y for line in drawn for y in line.finite()]
    _scale(axes, values, log=log and min(values) > 0, zero=zero)
    positions = [x for line in drawn for x in line.x]
    if min(positions) < max(positions):
        axes.set_xlim(min(positions), max(positions))
    axes.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10], integer=True))
    axes.xaxis.set_major_formatter(FuncFormatter(_tick))
    axes.yaxis.set_major_formatter(FuncFormatter(_tick))
    axes.tick_params(length=0)
    axes.grid(axis="y")
    axes.set_axisbelow(True)
    axes.spines[["left", "bottom"]].set_visible(False)
    axes.set(xlabel=x_label, ylabel=label)
    if len(drawn) > 1:
        with rc_context(STYLE):
            figure.legend(loc=legend, ncols=4 if "lower" in legend else 1, labelcolor=SOFT)
    return figure


def _scale(axes: Axes, values: Sequence[float], *, log: bool, zero: bool) -> None:
    """Set the limits of the vertical axis to ticks."""
    low, high = min(values), max(values)
    if log:
        axes.set_yscale("log")
        powers = math.floor(math.log10(low)), math.ceil(math.log10(high))
        axes.set_ylim(10.0 ** powers[0], 10.0 ** max(powers[1], powers[0] + 1))
        axes.yaxis.set_major_locator(LogLocator(numticks=6))
        axes.yaxis.set_minor_locator(NullLocator())
        return
    if low == high:
        low, high = low - (abs(low) or 1) / 10, high + (abs(high) or 1) / 10
    locator = MaxNLocator(5, steps=[1, 2, 5, 10])
    ticks = locator.tick_values(min(low, 0) if zero else low, high)
    axes.set_ylim(ticks[0], ticks[-1])
    axes.set_yticks(ticks)


def _tick(value: float, _: int | None = None) -> str:
    digits = ".0e" if 0 < abs(value) < 1e-3 else ",.6g"
    return f"{value:{digits}}".replace("e-0", "e-")


def to_png(figure: Figure) -> bytes:
    """Return a figure as PNG, drawn without a display or fonts of the system.

    Dollar signs are not read as formulas. Characters that matplotlib's own font lacks become
    boxes; the ids beside the names still distinguish classes.
    """
    return _save(figure, format="png", metadata={"Software": "rsseg"})


def to_svg(figure: Figure, title: str) -> Markup:
    """Return a figure as inline SVG with a caption, in the light or dark colours of the page.

    Text stays text in the font of the page, lines have their names as tooltips, and equal figures
    give equal SVG.
    """
    empty = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    with rc_context({"svg.hashsalt": title}):  # ids are unique in a page with several charts
        svg = _save(figure, format="svg", transparent=True, metadata=empty)
    root = ElementTree.fromstring(svg)
    names = {line.get_gid() for axes in figure.axes for line in axes.lines}
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag.endswith("}style"):
                parent.remove(child)
        _make_inline(parent, names)
    root.attrib = {"viewBox": root.attrib["viewBox"], "role": "img", "aria-label": title}
    inline = Markup(ElementTree.tostring(root, encoding="unicode"))
    caption = Markup('<figure class="chart"><figcaption>{}</figcaption>{}</figure>')
    return caption.format(title, inline)


def _make_inline(element: ElementTree.Element, names: set[str | None]) -> None:
    """Convert an SVG element for HTML: no namespaces or clipping, the page's colours and font."""
    attributes = {name.rpartition("}")[2]: text for name, text in element.attrib.items()}
    attributes.pop("clip-path", None)
    element.tag = element.tag.rpartition("}")[2]
    if element.tag == "g":
        name = attributes.pop("id", None)
        if name in names:
            tooltip = ElementTree.Element("title")
            tooltip.text = name
            element.insert(0, tooltip)
    style = attributes.get("style", "")
    for color, variable in _VARIABLES.items():
        style = style.replace(color, f"var(--{variable})")
    style = re.sub(r"font-family: [^;]*;? ?", "", style)  # as matplotlib 3.11 writes fonts
    style = re.sub(r"font: [^;]*?(\S+px)[^;]*", r"font-size: \1", style)  # as earlier ones do
    if style:
        attributes["style"] = style
    element.attrib = attributes


def _save(figure: Figure, **options: Any) -> bytes:
    for text in figure.findobj(Text):
        text.set_parse_math(False)
    out = io.BytesIO()
    with rc_context(STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        figure.savefig(out, **options)
    return out.getvalue()
