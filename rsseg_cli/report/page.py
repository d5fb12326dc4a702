"""Makes the one self-contained HTML page: no request leaves it, so it opens from a mail."""

from __future__ import annotations

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
from rsseg_cli.report import text
from rsseg_cli.report.curves import curves

_FOLDER = Path(__file__).parent


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
    environment = Environment(
        loader=FileSystemLoader(_FOLDER),
        autoescape=select_autoescape(default=True),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"percent": text.percent, "count": text.count, "share": text.share}
    return environment.get_template("page.html.j2").render(
        title=title,
        subtitle=subtitle,
        scores=scores,
        headline=text.headline(scores) if scores else [],
        rows=text.class_rows(scores) if scores else [],
        notes=text.notes(scores) if scores else [],
        mistakes=text.mistakes(scores) if scores else [],
        soft=text.saliency_rows(scores) if scores else [],
        matrices=_matrices(scores) if scores and len(scores.classes) > 1 else [],
        tables=_tables(scores) if scores else [],
        charts=curves(records),
        pictures={name: _data_uri(png) for name, png in (pictures or {}).items()},
        remarks=remarks,
        about=about or {},
        config=config,
        version=__version__,
        when=(when or datetime.now().astimezone()).strftime("%Y-%m-%d %H:%M %Z"),
        style=Markup((_FOLDER / "page.css").read_text(encoding="utf-8")),
        script=Markup((_FOLDER / "page.js").read_text(encoding="utf-8")),
    )


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


def _tables(scores: Scores) -> list[tuple[str, Mapping[str, Scores]]]:
    """List the tables of parts: groups, and scenes where they are not the same."""
    found = [("Domains" if scores.scenes != scores.groups else "Scenes", scores.groups)]
    if len(scores.scenes) > 1 and scores.scenes.keys() != scores.groups.keys():
        found.append(("Scenes", scores.scenes))
    return [(title, parts) for title, parts in found if parts]
