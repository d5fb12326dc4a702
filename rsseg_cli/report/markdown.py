"""Reports as Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from rsseg_cli.metrics.scores import Scores
from rsseg_cli.number_format import percent
from rsseg_cli.report.score_tables import (
    area_table,
    class_table,
    confusion_table,
    group_table,
    saliency_table,
)
from rsseg_cli.report.score_text import FEW, WORST, area_notes, headline, notes, worst_first
from rsseg_cli.report.table import ReportTable

if TYPE_CHECKING:
    from rsseg_cli.report.report import Report

MOST_CLASSES = 16
"""A confusion matrix of more classes is not readable as a Markdown table."""


def to_markdown(report: Report, pictures: Mapping[str, str]) -> str:
    """Return a report as Markdown, with `pictures` by caption and relative path."""
    parts = [f"# {report.title}"]
    if report.scores is None:
        parts.append("Nothing was validated: there are no scores.")
    else:
        parts += _scored(report.scores)
    if report.remarks:
        parts.append("\n".join(f"> {remark}" for remark in report.remarks))
    parts += [f"![{caption}]({path})" for caption, path in pictures.items()]
    if report.about:
        rows = list(report.about_text.items())
        parts += ["## Run", ReportTable.of_text(("Property", "Value"), rows).to_markdown()]
    if report.config:
        parts += ["## Settings", f"```yaml\n{report.settings.rstrip()}\n```"]
    return "\n\n".join(parts) + "\n"


def _scored(scores: Scores) -> list[str]:
    summary = [
        f"{score.name} **{score.text}**" + (f" ({score.interval})" if score.interval else "")
        for score in headline(scores)
    ]
    parts = [" · ".join(summary), *section(class_table(scores)), _bullets(notes(scores))]
    if scores.groups:
        parts += _groups("Groups", scores.groups)
    if len(scores.scenes) > 1 and scores.scenes.keys() != scores.groups.keys():
        parts += _groups("Scenes", scores.scenes)
    if scores.area:
        parts += [*section(area_table(scores.area)), _bullets(area_notes(scores.area))]
    if scores.calibration:
        error = percent(scores.calibration.ece)
        parts.append(f"Expected calibration error **{error}** % (Guo et al. 2017).")
    if scores.saliency:
        parts += section(saliency_table(scores))
    if 1 < len(scores.classes) <= MOST_CLASSES:
        table = confusion_table(scores)
        parts += ["## Confusion", f"{table.title}.", table.to_markdown()]
    return parts


def section(table: ReportTable) -> list[str]:
    """Return a table below its title."""
    return [f"## {table.title}", table.to_markdown()]


def _bullets(sentences: Sequence[str]) -> str:
    return "\n".join(f"- {sentence}" for sentence in sentences)


def _groups(title: str, groups: Mapping[str, Scores]) -> list[str]:
    if len(groups) <= FEW:
        return section(group_table(title, groups))
    worst = dict(list(worst_first(groups).items())[:WORST])
    note = f"The {WORST} worst of {len(groups)}; all are in report.json."
    return [*section(group_table(title, worst)), note]
