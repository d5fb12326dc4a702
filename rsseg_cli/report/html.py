"""The self-contained HTML page: it loads nothing, so that it opens from a mail."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape

from rsseg_cli import __version__
from rsseg_cli.metrics.scores import Scores
from rsseg_cli.number_format import percent
from rsseg_cli.report.palette import SERIES_DARK, SERIES_LIGHT
from rsseg_cli.report.score_tables import (
    area_table,
    class_table,
    confusion_table,
    fraction,
    group_table,
    saliency_table,
)
from rsseg_cli.report.score_text import (
    FEW,
    WORST,
    area_notes,
    headline,
    mistakes,
    notes,
    worst_first,
)
from rsseg_cli.report.table import ReportTable

if TYPE_CHECKING:
    from rsseg_cli.report.report import Report

_FOLDER = Path(__file__).parent
MOST_ROWS = 1000
"""Scenes in a table of the page; sorting more is slow in a browser."""


def to_html(report: Report, pictures: Mapping[str, bytes]) -> str:
    """Return the page of a report, with `pictures` as PNG by caption."""
    from rsseg_cli.report.training_charts import training_charts  # matplotlib takes half a second

    return render(
        "report.html.j2",
        title=report.title,
        subtitle=report.subtitle,
        remarks=report.remarks,
        scores=report.scores,
        **(_scored(report.scores) if report.scores else {}),
        charts=training_charts(report.records),
        pictures={caption: _data_uri(png) for caption, png in pictures.items()},
        about=report.about_text,
        settings=report.settings,
    )


def render(template: str, **values: Any) -> str:
    """Fill a template that extends `base.html.j2`."""
    environment = Environment(
        loader=FileSystemLoader(_FOLDER),
        autoescape=select_autoescape(default=True),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["percent"] = percent
    return environment.get_template(template).render(
        **values,
        series_light=SERIES_LIGHT,
        series_dark=SERIES_DARK,
        version=__version__,
        when=datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"),
    )


def _scored(scores: Scores) -> dict[str, Any]:
    """Return what the page shows of scores."""
    from rsseg_cli.report.training_charts import calibration_chart

    matrices = {"truth": "% of the true class", "map": "% of the mapped class", "pixels": "pixels"}
    area, calibration = scores.area, scores.calibration
    return {
        "headline": headline(scores),
        "class_table": class_table(scores),
        "notes": notes(scores),
        "mistakes": mistakes(scores),
        "matrices": [(kind, name, confusion_table(scores, kind)) for kind, name in matrices.items()]
        if len(scores.classes) > 1
        else [],
        "proportions": _proportions(scores),
        "folded_tables": _folded_tables(scores),
        "calibration": calibration_chart(calibration) if calibration else "",
        "area": area_table(area) if area else None,
        "area_notes": area_notes(area) if area else [],
        "soft_map": saliency_table(scores) if scores.saliency else None,
    }


def _data_uri(png: bytes) -> str:
    return f"data:image/png;base64,{b64encode(png).decode('ascii')}"


@dataclass(frozen=True)
class ClassProportions:
    """Fractions of the labelled pixels that are a class, and widths of their bars in percent."""

    name: str
    color: tuple[int, int, int]
    bars: tuple[tuple[float, float], tuple[float, float]]
    """(fraction, width) in the reference and in the map."""


def _proportions(scores: Scores) -> list[ClassProportions]:
    pairs = [
        (row, [fraction(pixels, scores.pixels) or 0.0 for pixels in (row.pixels, row.predicted)])
        for row in scores.classes
        if not row.absent
    ]
    widest = max((max(fractions) for _, fractions in pairs), default=0.0) or 1.0
    return [
        ClassProportions(
            row.name, row.color, ((true, 100 * true / widest), (mapped, 100 * mapped / widest))
        )
        for row, (true, mapped) in pairs
    ]


@dataclass(frozen=True)
class FoldedTable:
    """A table of domains or scenes, of which many are folded."""

    first: ReportTable
    """Rows that are always visible; of many scenes only the worst."""
    rest: ReportTable | None
    """All rows, up to `MOST_ROWS`; None if `first` has them all."""
    total: int


def _folded_tables(scores: Scores) -> list[FoldedTable]:
    """Return a table of the groups, and one of the scenes if they differ from the groups."""
    parts = [("Domains" if scores.scenes != scores.groups else "Scenes", scores.groups)]
    if len(scores.scenes) > 1 and scores.scenes.keys() != scores.groups.keys():
        parts.append(("Scenes", scores.scenes))
    return [_folded(title, groups) for title, groups in parts if groups]


def _folded(title: str, groups: Mapping[str, Scores]) -> FoldedTable:
    if len(groups) <= FEW:
        return FoldedTable(group_table(title, groups), None, len(groups))
    ordered = list(worst_first(groups).items())
    first, rest = dict(ordered[:WORST]), dict(ordered[:MOST_ROWS])
    return FoldedTable(group_table(title, first), group_table(title, rest), len(groups))
