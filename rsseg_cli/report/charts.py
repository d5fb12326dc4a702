"""Draws line charts as SVG that takes the colours of the page around it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

WIDTH, HEIGHT = 460, 240
LEFT, RIGHT, TOP, BOTTOM = 52, 22, 12, 30
DASHES = ("", "6 3", "2 3", "9 3 2 3", "1 3", "12 4")
"""Lines differ by dash as well as by colour."""


@dataclass(frozen=True)
class Line:
    """One line of a chart; points whose value is None or not finite are left out."""

    name: str
    x: Sequence[float]
    y: Sequence[float | None]

    def points(self) -> list[tuple[float, float]]:
        """List the points that can be drawn."""
        pairs = zip(self.x, self.y, strict=True)
        return [(x, y) for x, y in pairs if y is not None and math.isfinite(y)]


def line_chart(title: str, lines: Sequence[Line], *, log: bool = False) -> Markup:
    """Draw lines over steps; nothing when no line has a point.

    Args:
        title: What the values are.
        lines: Drawn in order, each with its own colour and dash.
        log: Logarithmic values; taken only when all are positive.
    """
    drawn = [(line.name, line.points()) for line in lines]
    drawn = [(name, points) for name, points in drawn if points]
    if not drawn:
        return Markup()
    values = [y for _, points in drawn for _, y in points]
    log = log and min(values) > 0
    across = _Axis.over(
        [x for _, points in drawn for x, _ in points], LEFT, WIDTH - RIGHT, tight=True
    )
    up = _Axis.over(values, HEIGHT - BOTTOM, TOP, log=log)
    parts = [_grid(across, up)]
    for index, (name, points) in enumerate(drawn):
        parts.append(_path(index, name, [(across.place(x), up.place(y)) for x, y in points]))
    legend = Markup().join(
        Markup(
            '<span><svg width="26" height="8"><path class="line l{0}" stroke-dasharray="{1}" '
            'd="M1 4H25"/></svg>{2}</span>'
        ).format(index % len(DASHES), DASHES[index % len(DASHES)], name)
        for index, (name, _) in enumerate(drawn)
    )
    return Markup(
        '<figure class="chart"><figcaption>{}</figcaption><svg viewBox="0 0 {} {}" role="img" '
        'aria-label="{}">{}</svg><div class="legend">{}</div></figure>'
    ).format(title, WIDTH, HEIGHT, title, Markup().join(parts), legend)


@dataclass(frozen=True)
class _Axis:
    """Where values lie on a chart, and which of them get a tick."""

    low: float
    high: float
    start: float
    stop: float
    ticks: tuple[float, ...]
    log: bool

    @classmethod
    def over(
        cls,
        values: Sequence[float],
        start: float,
        stop: float,
        *,
        log: bool = False,
        tight: bool = False,
    ) -> _Axis:
        """Lay an axis; a tight one ends at the values, another one at the ticks around them."""
        low, high = min(values), max(values)
        if log:
            decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
            ticks = tuple(10.0**power for power in decades)
            low, high = min(low, ticks[0]), max(high, ticks[-1])
            return cls(low, max(high, low * 10), start, stop, ticks, log)
        if low == high:
            low, high = low - (abs(low) or 1) / 10, high + (abs(high) or 1) / 10
        step = _nice((high - low) / 4)
        below, above = low / step, high / step
        if tight:
            first, last = math.ceil(below - 1e-9), math.floor(above + 1e-9)
        else:
            first, last = math.floor(below + 1e-9), math.ceil(above - 1e-9)
        ticks = tuple(number * step for number in range(first, last + 1))
        return cls(min(low, ticks[0]), max(high, ticks[-1]), start, stop, ticks, log)

    def place(self, value: float) -> float:
        low, high = self.low, self.high
        if self.log:
            value, low, high = math.log10(value), math.log10(low), math.log10(high)
        return self.start + (value - low) / (high - low) * (self.stop - self.start)


def _nice(step: float) -> float:
    """Round a step up to 1, 2 or 5 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(step))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= step * (1 - 1e-9))


def _grid(across: _Axis, up: _Axis) -> Markup:
    rows = [
        Markup('<path class="grid" d="M{} {:.1f}H{}"/><text x="{}" y="{:.1f}">{}</text>').format(
            LEFT, y, WIDTH - RIGHT, LEFT - 6, y + 4, _short(tick)
        )
        for tick in up.ticks
        if TOP - 1 <= (y := up.place(tick)) <= HEIGHT - BOTTOM + 1
    ]
    columns = [
        Markup('<text class="x" x="{:.1f}" y="{}">{}</text>').format(
            across.place(tick), HEIGHT - BOTTOM + 18, _short(tick)
        )
        for tick in across.ticks
    ]
    return Markup().join([*rows, *columns])


def _path(index: int, name: str, points: Sequence[tuple[float, float]]) -> Markup:
    steps = " ".join(f"{x:.1f} {y:.1f}" for x, y in points)
    dash = DASHES[index % len(DASHES)]
    line = Markup('<path class="line l{}" stroke-dasharray="{}" d="M{}"><title>{}</title></path>')
    drawn = line.format(index % len(DASHES), dash, steps, escape(name))
    if len(points) > 40:
        return drawn
    dots = Markup().join(
        Markup('<circle class="dot l{}" cx="{:.1f}" cy="{:.1f}" r="2.4"/>').format(
            index % len(DASHES), x, y
        )
        for x, y in points
    )
    return drawn + dots


def _short(value: float) -> str:
    """Write a tick in few characters."""
    if value == 0:
        return "0"
    if abs(value) < 1e-3:
        return f"{value:.0e}".replace("e-0", "e-")
    if abs(value) >= 10_000:
        return f"{value / 1000:,.6g}k"
    return f"{value:.6g}"
