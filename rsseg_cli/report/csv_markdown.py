"""Scores as CSV and Markdown files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rsseg_cli.metrics.scores import Scores
from rsseg_cli.number_format import percent
from rsseg_cli.report.score_tables import (
    area_table,
    class_table,
    confusion_table,
    csv_table,
    group_table,
    saliency_table,
)
from rsseg_cli.report.score_text import FEW, WORST, area_notes, headline, notes, worst_first
from rsseg_cli.report.table import ReportTable

MOST_CLASSES = 16
"""A confusion matrix of more classes is not readable as a Markdown table."""


def to_csv(scores: Scores) -> str:
    """Return one row per class for everything and for each group and scene."""
    return csv_table(scores).to_csv()


def confusion_csv(scores: Scores) -> str:
    """Return the confusion matrix in pixels: true classes in rows, mapped ones in columns."""
    return confusion_table(scores, "pixels", unmapped=True).to_csv()


def to_markdown(
    title: str,
    scores: Scores | None,
    *,
    remarks: Sequence[str] = (),
    about: Mapping[str, str] | None = None,
    config: str = "",
    pictures: Mapping[str, str] | None = None,
) -> str:
    """Return a report as Markdown.

    Args:
        title: Heading.
        scores: Scores of the run; None for a run without validation.
        remarks: What a reader should know about this comparison.
        about: Versions, hardware, speed.
        config: Settings of the run as YAML.
        pictures: Caption to relative path.
    """
    parts = [f"# {title}"]
    if scores is None:
        parts.append("Nothing was validated: there are no scores.")
    else:
        parts += _scored(scores)
    if remarks:
        parts.append("\n".join(f"> {remark}" for remark in remarks))
    parts += [f"![{name}]({path})" for name, path in (pictures or {}).items()]
    if about:
        rows = list(about.items())
        parts += ["## Run", ReportTable.of_text(("Property", "Value"), rows).to_markdown()]
    if config:
        parts += ["## Settings", f"```yaml\n{config.rstrip()}\n```"]
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
