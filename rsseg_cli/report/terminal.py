"""Shows scores in a terminal."""

from __future__ import annotations

from collections.abc import Mapping

from rich.box import SIMPLE_HEAD
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from rsseg_cli.metrics.scores import Scores
from rsseg_cli.report import score_text as text

MATRIX_MOST = 9
"""More classes than this make a confusion matrix that no terminal shows well."""


def show(
    console: Console, title: str, scores: Scores, *, remarks: tuple[str, ...] | list[str] = ()
) -> None:
    """Print headline, classes, confusion, groups and notes."""
    line = "   ".join(f"{name} [bold]{value}[/bold]" for name, value in text.headline(scores))
    parts: list[RenderableType] = [
        Text(title, style="bold"),
        Text.from_markup(line),
        classes(scores),
    ]
    if 1 < len(scores.classes) <= MATRIX_MOST:
        parts.append(confusion(scores))
    if scores.groups:
        parts.append(groups(scores.groups))
    if scores.saliency:
        parts.append(_pairs(text.saliency_rows(scores)))
    parts += [Text(note, style="dim") for note in text.notes(scores)]
    parts += [Text(f"note: {remark}", style="yellow") for remark in remarks]
    console.print(Group(*parts), highlight=False)


def classes(scores: Scores) -> Table:
    """Lay the classes out as a table, each beside its colour."""
    bounded = scores.boundary_px is not None
    table = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("class", no_wrap=True, overflow="ellipsis")
    names = ("IoU", "F1", "precision", "recall", *(["boundary"] if bounded else []))
    for name in (*names, "truth %", "map %"):
        table.add_column(name, justify="right")
    for row in text.class_rows(scores):
        one = row.score
        red, green, blue = one.color
        label = Text.assemble(("■ ", f"rgb({red},{green},{blue})"), one.name)
        if row.mark:
            label.append(f" ({row.mark})", style="dim")
        shares = [one.iou, one.f1, one.precision, one.recall]
        shares += [one.boundary_iou] if bounded else []
        cells = [text.percent(value) for value in (*shares, row.truth_share, row.map_share)]
        table.add_row(label, *cells, style="dim" if one.absent else "")
    return table


def confusion(scores: Scores) -> Table:
    """Lay out where the pixels of every true class went, in percent of the class."""
    table = Table(
        box=SIMPLE_HEAD,
        pad_edge=False,
        padding=(0, 1, 0, 0),
        title="truth in rows, map in columns, %",
    )
    table.title_justify, table.title_style = "left", "dim"
    table.add_column("")
    empty = bool(scores.unmapped)
    for name in [*(row.name for row in scores.classes), *(["unmapped"] if empty else [])]:
        table.add_column(
            Text(name), justify="right", max_width=12, overflow="ellipsis", no_wrap=True
        )
    for index, (row, counts) in enumerate(zip(scores.classes, scores.confusion, strict=True)):
        cells = [*counts, *([row.unmapped] if empty else [])]
        shown = [Text(text.percent(text.share(pixels, row.pixels))) for pixels in cells]
        shown[index].stylize("bold")
        table.add_row(Text(row.name), *shown)
    return table


def groups(parts: Mapping[str, Scores]) -> Table:
    """Lay the scores of domains or scenes out as a table."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("group")
    for name in ("mIoU", "mAcc", "accuracy", "F1", "pixels"):
        table.add_column(name, justify="right")
    for name, part in parts.items():
        values = (part.miou, part.macc, part.accuracy, part.f1)
        table.add_row(Text(name), *map(text.percent, values), text.count(part.pixels))
    return table


def _pairs(rows: list[tuple[str, str]]) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0), show_header=False)
    table.add_column("")
    table.add_column("", justify="right")
    for row in rows:
        table.add_row(*row)
    return table
