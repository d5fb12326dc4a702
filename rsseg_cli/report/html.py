"""Makes the one self-contained HTML page: no request leaves it, so it opens from a mail."""

from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape
from markupsafe import Markup

from rsseg_cli import __version__
from rsseg_cli.metrics.scores import Scores
from rsseg_cli.report import score_text as text
from rsseg_cli.report.charts import Line, line_chart
from rsseg_cli.report.curves import curves

_FOLDER = Path(__file__).parent
MOST_ROWS = 1000
"""Scenes in a table of the page; a browser sorts no more with ease."""


def to_html(
    title: str,
    scores: Scores | None,
    *,
    subtitle: str = "",
    remarks: Sequence[str] = (),
    records: Sequence[Mapping[str, Any]] = (),
    pictures: Mapping[str, bytes] | None = None,
    about: Mapping[str, str] | None = None,
    config: str = "",
    when: datetime | None = None,
) -> str:
    """Write the page.

    Args:
        title: Its heading.
        scores: What was measured; None for a run that was not validated.
        subtitle: What was compared with what.
        remarks: What a reader should know about this comparison.
        records: Lines of `metrics.jsonl`.
        pictures: Caption to PNG.
        about: Versions, hardware, speed.
        config: Settings of the run as YAML.
        when: When it was made; now when None.
    """
    return render(
        "report.html.j2",
        when=when,
        title=title,
        subtitle=subtitle,
        scores=scores,
        **(_scored(scores) if scores else {}),
        charts=curves(records),
        pictures={name: _data_uri(png) for name, png in (pictures or {}).items()},
        remarks=remarks,
        about=about or {},
        config=config,
    )


def render(template: str, *, when: datetime | None = None, **values: Any) -> str:
    """Fill a template that extends `base.html.j2`."""
    environment = Environment(
        loader=FileSystemLoader(_FOLDER),
        autoescape=select_autoescape(default=True),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "percent": text.percent,
        "count": text.count,
        "share": text.share,
        "span": text.span,
        "score_span": text.score_span,
        "number": _number,
    }
    return environment.get_template(template).render(
        **values,
        version=__version__,
        when=(when or datetime.now().astimezone()).strftime("%Y-%m-%d %H:%M %Z"),
    )


def _scored(scores: Scores) -> dict[str, Any]:
    """Collect what the page says about scores."""
    rows = text.class_rows(scores)
    shares = [share or 0.0 for row in rows for share in (row.truth_share, row.map_share)]
    area = scores.area
    return {
        "headline": text.headline(scores),
        "spans": text.headline_spans(scores),
        "rows": rows,
        "widest": max(shares) or 1.0,
        "notes": text.notes(scores),
        "mistakes": text.mistakes(scores),
        "soft": text.saliency_rows(scores),
        "matrices": _matrices(scores) if len(scores.classes) > 1 else [],
        "tables": _tables(scores),
        "calibration": _calibration(scores),
        "area_header": text.area_header(area) if area else [],
        "area_rows": text.area_rows(area) if area else [],
        "area_notes": text.area_notes(area) if area else [],
    }


def _calibration(scores: Scores) -> Markup:
    """Chart how often the model is right against how sure it is."""
    if scores.calibration is None:
        return Markup()
    bins = scores.calibration.bins
    sure = [100 * one.confidence for one in bins]
    return line_chart(
        "Right, %, by how sure the model is, %",
        [
            Line("model", sure, [100 * one.accuracy for one in bins]),
            Line("as it should be", [min(sure), 100.0], [min(sure), 100.0]),
        ],
    )


def _number(cell: str) -> str:
    """Find the number that a cell begins with, for sorting."""
    found = re.match(r"[\d.,]+", cell)
    return found[0].replace(",", "") if found else "-1"


def _data_uri(png: bytes) -> str:
    return f"data:image/png;base64,{b64encode(png).decode('ascii')}"


@dataclass(frozen=True)
class _Matrix:
    """A confusion matrix as shown: what a cell says, and how strong its colour is (0..1)."""

    key: str
    title: str
    cells: list[list[tuple[str, float]]]


def _matrices(scores: Scores) -> list[_Matrix]:
    """Lay the confusion out by true class, by mapped class and in pixels; unmapped comes last."""
    empty = bool(scores.unmapped)
    counts = [
        [*row, one.unmapped] if empty else row
        for row, one in zip(scores.confusion, scores.classes, strict=True)
    ]
    columns = [sum(column) for column in zip(*counts, strict=True)]
    most = max(max(row) for row in counts) or 1
    of_truth = [
        [text.share(n, one.pixels) for n in row]
        for row, one in zip(counts, scores.classes, strict=True)
    ]
    of_map = [
        [text.share(n, whole) for n, whole in zip(row, columns, strict=True)] for row in counts
    ]
    return [
        _Matrix("truth", "% of the true class", _shares(of_truth)),
        _Matrix("map", "% of the mapped class", _shares(of_map)),
        _Matrix("pixels", "pixels", [[(text.count(n), n / most) for n in row] for row in counts]),
    ]


def _shares(rows: list[list[float | None]]) -> list[list[tuple[str, float]]]:
    return [[(text.percent(value), value or 0.0) for value in row] for row in rows]


@dataclass(frozen=True)
class _Parts:
    """A table of domains or scenes.

    Attributes:
        title: Heading.
        first: Rows that are always seen; of many only the worst.
        rest: All rows, behind a fold, where `first` are not all.
        spanned: Whether there are intervals.
        left_out: Rows that are in the other files only.
    """

    title: str
    first: Mapping[str, Scores]
    rest: Mapping[str, Scores]
    spanned: bool
    left_out: int


def _tables(scores: Scores) -> list[_Parts]:
    """List the tables of parts: groups, and scenes where they are not the same."""
    found = [("Domains" if scores.scenes != scores.groups else "Scenes", scores.groups)]
    if len(scores.scenes) > 1 and scores.scenes.keys() != scores.groups.keys():
        found.append(("Scenes", scores.scenes))
    return [_folded(title, parts) for title, parts in found if parts]


def _folded(title: str, parts: Mapping[str, Scores]) -> _Parts:
    """Show a long table's worst rows, and all up to a bound behind a fold, worst first."""
    spanned = any(part.intervals for part in parts.values())
    if len(parts) <= text.FEW:
        return _Parts(title, parts, {}, spanned, 0)
    ordered = list(text.worst_first(parts).items())
    first, rest = dict(ordered[: text.WORST]), dict(ordered[:MOST_ROWS])
    return _Parts(title, first, rest, spanned, len(parts) - len(rest))
