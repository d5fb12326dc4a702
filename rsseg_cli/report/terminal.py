"""Prints scores to a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console, Group, RenderableType
from rich.text import Text

from rsseg_cli.metrics.scores import Scores
from rsseg_cli.report.score_tables import (
    class_table,
    confusion_table,
    group_table,
    saliency_table,
)
from rsseg_cli.report.score_text import headline, notes

MOST_CLASSES = 9
"""A confusion matrix of more classes does not fit a terminal."""


def show(console: Console, title: str, scores: Scores, *, remarks: Sequence[str] = ()) -> None:
    """Print headline, classes, confusion, groups and notes."""
    line = "   ".join(f"{score.name} [bold]{score.text}[/bold]" for score in headline(scores))
    tables = [class_table(scores)]
    if 1 < len(scores.classes) <= MOST_CLASSES:
        tables.append(confusion_table(scores))
    if scores.groups:
        tables.append(group_table("Groups", scores.groups))
    if scores.saliency:
        tables.append(saliency_table(scores))
    parts: list[RenderableType] = [Text(title, style="bold"), Text.from_markup(line)]
    parts += [table.to_rich() for table in tables]
    parts += [Text(note, style="dim") for note in notes(scores)]
    parts += [Text(f"note: {remark}", style="yellow") for remark in remarks]
    console.print(Group(*parts), highlight=False)
