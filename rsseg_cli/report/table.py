"""Tables that show themselves as HTML, Markdown, CSV and in a terminal."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rich.box import SIMPLE_HEAD
from rich.table import Table as RichTable
from rich.text import Text

from rsseg_cli.report import score_text as text
from rsseg_cli.report.seed_groups import Difference, Group, Pick, Spread


@dataclass(frozen=True)
class Cell:
    """What a cell shows, and the number that it is sorted by (None: nothing is known)."""

    shown: str
    value: float | None = None


@dataclass(frozen=True)
class Table:
    """A table whose first column holds names.

    Attributes:
        title: Heading.
        header: Names of the columns.
        rows: The first cell of each is its name.
    """

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]

    def to_markdown(self) -> str:
        """Write it as Markdown."""
        rows = [[cell.shown for cell in row] for row in self.rows]
        return f"## {self.title}\n\n" + text.table(self.header, rows)

    def to_rich(self) -> RichTable:
        """Lay it out for a terminal."""
        table = RichTable(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0), title=self.title)
        table.title_justify, table.title_style = "left", "bold"
        for index, name in enumerate(self.header):
            table.add_column(Text(name), justify="right" if index else "left")
        for row in self.rows:
            table.add_row(*(Text(cell.shown) for cell in row))
        return table


def to_csv(tables: Sequence[Table]) -> str:
    """Write tables one below the other, with their title in the first column."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    for table in tables:
        writer.writerow(["table", *table.header])
        for row in table.rows:
            cells = ["" if cell.value is None else cell.value for cell in row[1:]]
            writer.writerow([table.title, row[0].shown, *cells])
    return out.getvalue()


def compared(groups: Sequence[Group], sections: Mapping[str, Mapping[str, Pick]]) -> list[Table]:
    """Lay groups of runs out: the scores with groups in rows, all else with groups in columns."""
    titles = list(sections)
    found = [_summary(groups, sections[titles[0]])]
    for title in titles[1:]:
        if sections[title]:
            found.append(_details(title, groups, sections[title]))
    return found


def _summary(groups: Sequence[Group], picks: Mapping[str, Pick]) -> Table:
    first, headline = groups[0], next(iter(picks))
    rows = []
    for own in groups:
        difference = None if own is first else own.minus(first, picks[headline])
        cells = [_spread(own.spread(pick)) for pick in picks.values()]
        seeds = Cell(str(len(own.entries)), float(len(own.entries)))
        rows.append((Cell(own.name), seeds, *cells, _difference(difference)))
    header = ("run", "seeds", *picks, f"{headline} less the first")
    return Table("Scores", header, tuple(rows))


def _details(title: str, groups: Sequence[Group], picks: Mapping[str, Pick]) -> Table:
    first, others = groups[0], groups[1:]
    rows = []
    for name, pick in picks.items():
        values = [_spread(own.spread(pick)) for own in groups]
        changes = [_difference(own.minus(first, pick)) for own in others]
        rows.append((Cell(name), *values, *changes))
    less = (f"{own.name} less the first" for own in others)
    return Table(title, (title.partition(",")[0], *(g.name for g in groups), *less), tuple(rows))


def _spread(spread: Spread | None) -> Cell:
    if spread is None:
        return Cell(text.NOTHING)
    shown = text.percent(spread.mean)
    if spread.deviation is not None:
        shown += f" \u00b1 {text.percent(spread.deviation)}"
    return Cell(shown, spread.mean)


def _difference(difference: Difference | None) -> Cell:
    if difference is None:
        return Cell(text.NOTHING)
    shown = f"{100 * difference.mean:+.1f}"
    if difference.low is not None and difference.high is not None:
        shown += f" ({100 * difference.low:+.1f} to {100 * difference.high:+.1f})"
    elif not difference.pairs:
        shown += " (not paired)"
    return Cell(shown, difference.mean)
