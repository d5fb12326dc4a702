"""Tables that are rendered for a terminal, as Markdown, as CSV and as HTML."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass

from rich.box import SIMPLE_HEAD
from rich.table import Table as RichTable
from rich.text import Text

from rsseg_cli.number_format import percent

Color = tuple[int, int, int]


@dataclass(frozen=True)
class Cell:
    """A table cell.

    Attributes:
        text: Displayed text.
        value: Content in CSV and sorting key in HTML; None where a number is not defined.
        color: Colour of the class that the cell is about.
        note: Remark behind a row's name.
        bar: Draw the value, a fraction 0..1, as a bar in HTML.
        shade: Strength of the background in HTML, 0..1.
        strong: Bold.
    """

    text: str
    value: float | str | None = None
    color: Color | None = None
    note: str = ""
    bar: bool = False
    shade: float | None = None
    strong: bool = False


def text_cell(text: str, *, color: Color | None = None, note: str = "") -> Cell:
    """Return a cell whose value is its text."""
    return Cell(text, text, color, note)


def percent_cell(fraction: float | None, *, color: Color | None = None, bar: bool = False) -> Cell:
    """Return a cell that shows a fraction 0..1 in percent."""
    return Cell(percent(fraction), fraction, color, bar=bar)


def count_cell(number: int) -> Cell:
    """Return a cell that shows a whole number with thousands separators."""
    return Cell(f"{number:,}", number)


@dataclass(frozen=True)
class ReportTable:
    """A table whose first column holds the names of the rows.

    Attributes:
        title: Heading.
        header: Names of the columns.
        rows: Cells of each row, as many as the header has names.
        details: Names of columns that a terminal has no room for.
        faint: Indices of the rows without any score.
        most_letters: Longest name of a column in a terminal; None: names are wrapped.
    """

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    details: frozenset[str] = frozenset()
    faint: frozenset[int] = frozenset()
    most_letters: int | None = None

    @classmethod
    def of_text(cls, header: Sequence[str], rows: Sequence[Sequence[str]]) -> ReportTable:
        """Build a table of texts without a title."""
        return cls("", tuple(header), tuple(tuple(map(text_cell, row)) for row in rows))

    def to_markdown(self) -> str:
        """Return a Markdown table without the title; all columns but the first are flush right."""
        lines = [list(self.header)]
        for row in self.rows:
            lines.append([f"{cell.text} ({cell.note})" if cell.note else cell.text for cell in row])
        escaped = [[text.replace("|", "\\|") for text in line] for line in lines]
        head, *body = ["| " + " | ".join(line) + " |" for line in escaped]
        return "\n".join([head, "|---|" + "---:|" * (len(self.header) - 1), *body])

    def to_rich(self) -> RichTable:
        """Return the table as rich prints it, without the `details`."""
        table = RichTable(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0), title=self.title)
        table.title_justify, table.title_style = "left", "bold"
        columns = [index for index, name in enumerate(self.header) if name not in self.details]
        for index in columns:
            table.add_column(
                Text(self.header[index]),
                justify="right" if index else "left",
                max_width=self.most_letters if index else None,
                no_wrap=self.most_letters is not None,
                overflow="ellipsis",
            )
        for number, row in enumerate(self.rows):
            cells = [_rich_cell(row[index]) for index in columns]
            table.add_row(*cells, style="dim" if number in self.faint else "")
        return table

    def csv_rows(self) -> list[list[float | str | None]]:
        """Return the header and the values of all rows."""
        return [list(self.header), *([cell.value for cell in row] for row in self.rows)]

    def to_csv(self) -> str:
        """Return the values of the cells as CSV; undefined values are empty."""
        return write_csv(self.csv_rows())


def tables_to_csv(tables: Sequence[ReportTable]) -> str:
    """Return tables as one CSV file, one below the other, with their title in the first column."""
    lines: list[list[float | str | None]] = []
    for table in tables:
        header, *rows = table.csv_rows()
        lines += [["table", *header], *([table.title, *row] for row in rows)]
    return write_csv(lines)


def write_csv(lines: Sequence[Sequence[float | str | None]]) -> str:
    """Return lines as CSV."""
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows(lines)
    return out.getvalue()


def _rich_cell(cell: Cell) -> Text:
    text = Text(cell.text, style="bold" if cell.strong else "")
    if cell.color is not None and not cell.bar:
        red, green, blue = cell.color
        text = Text.assemble(("■ ", f"rgb({red},{green},{blue})"), cell.text)
    if cell.note:
        text.append(f" ({cell.note})", style="dim")
    return text
