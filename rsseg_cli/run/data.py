"""`data`: which datasets are known, what of one is on disk, and what its numbers are."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from rsseg_cli import presets
from rsseg_cli.data.check import Check, check
from rsseg_cli.data.class_index import ClassIndex
from rsseg_cli.data.source import Source
from rsseg_cli.data.spec import DatasetSpec
from rsseg_cli.data.statistics import WINDOWS, measure
from rsseg_cli.number_format import counted

MARKS = {True: "[green]fits[/green]", False: "[red]no[/red]", None: "[yellow]note[/yellow]"}


def known() -> list[dict[str, Any]]:
    """List the dataset presets with what a user wants to know before a download."""
    found = []
    for name in presets.names("datasets"):
        spec = presets.read(presets.find("datasets", name)).parse(DatasetSpec)
        found.append(
            {
                "name": name,
                "title": spec.title,
                "size": spec.size,
                "bands": [band.name for band in spec.bands],
                "classes": len(spec.classes),
                "gsd_m": spec.gsd_m,
                "folder": spec.root,
                "splits": list(spec.splits),
                "domains": list(spec.domains),
                "licence": spec.licence,
                "url": spec.url,
                "notes": spec.notes,
            }
        )
    return found


def show_known(rows: list[dict[str, Any]], console: Console | None = None) -> None:
    """Print the list."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("name", no_wrap=True)
    table.add_column("what", ratio=3)
    table.add_column("size", ratio=2)
    table.add_column("licence", ratio=2)
    table.add_column("page", ratio=2, overflow="fold")
    for row in rows:
        table.add_row(row["name"], row["title"], row["size"], row["licence"], row["url"])
    (console or Console()).print(table, markup=False)


def describe(text: str, *, data_root: Path | None) -> str:
    """Write down how a dataset is read, as a dataset.yaml that can stand anywhere.

    Raises:
        RssegError: There is no such dataset.
    """
    source = Source.locate(text, data_root=data_root)
    spec = source.spec.model_copy(update={"root": str(source.root.resolve())})
    return spec.to_yaml(source.remark)


def examine(text: str, *, data_root: Path | None, sample: int) -> Check:
    """Compare a dataset on disk with its preset or dataset.yaml.

    Raises:
        RssegError: It is not there at all; the error says where it was looked for.
    """
    return check(Source.locate(text, data_root=data_root), sample=sample)


def show_check(found: Check, text: str, console: Console | None = None) -> None:
    """Print the counts and one line per thing that was looked at; `text` named the dataset."""
    console = console or Console(highlight=False)
    console.print(f"[bold]{found.name}[/bold]  {found.title}\n{found.root}\n", highlight=False)
    counts = Table(box=None, header_style="bold", pad_edge=False)
    for column in ("split", "domain"):
        counts.add_column(column)
    for column in ("images", "with label"):
        counts.add_column(column, justify="right")
    for count in found.counts:
        split, domain = count.split or "(none)", count.domain or "-"
        counts.add_row(split, domain, f"{count.images:,}", f"{count.labelled:,}")
    console.print(counts, "")
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("", no_wrap=True)
    for column in ("what", "expected", "found", "what to do"):
        table.add_column(column, overflow="fold")
    for one in found.findings:
        cells = (one.what, one.expected, one.found, one.fix)
        table.add_row(MARKS[one.fits], *(cell.replace("[", r"\[") for cell in cells))
    console.print(table)
    if not found.fits:
        console.print(
            f"\nTo change how it is read: rsseg data describe {text} > mine.yaml, change "
            "these lines there, and use mine.yaml as its name.",
            highlight=False,
        )
    if found.notes:
        console.print(f"\nnote: {found.notes}", style="dim", markup=False)


@dataclass(frozen=True)
class Statistics:
    """Numbers of the usable ground of a dataset.

    Attributes:
        source: What was measured.
        images: How many images.
        mean: Per band, in stored units, missing samples left out.
        std: Likewise.
        whole: Whether every pixel was read, not windows spread over all of it.
        classes: Id, name, labelled pixels and share of each class.
    """

    source: str
    images: int
    bands: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    whole: bool
    classes: list[dict[str, Any]]

    def to_json(self) -> dict[str, Any]:
        """Give the machine-readable form."""
        return asdict(self)

    def norm(self) -> str:
        """Write the lines for a dataset.yaml."""
        mean, std = (", ".join(f"{v:.6g}" for v in values) for values in (self.mean, self.std))
        return f"norm:\n  mean: [{mean}]\n  std: [{std}]"

    def show(self, console: Console | None = None) -> None:
        """Print bands, classes and the lines for a dataset.yaml."""
        console = console or Console(highlight=False)
        read = "every pixel" if self.whole else "windows spread over all images"
        console.print(f"{self.source}  {counted(self.images, 'image')}, {read}\n", markup=False)
        bands = Table(box=None, header_style="bold", pad_edge=False)
        bands.add_column("band")
        for column in ("mean", "std"):
            bands.add_column(column, justify="right")
        for name, mean, std in zip(self.bands, self.mean, self.std, strict=True):
            bands.add_row(name, f"{mean:,.4g}", f"{std:,.4g}")
        classes = Table(box=None, header_style="bold", pad_edge=False)
        for column in ("id", "share", "pixels"):
            classes.add_column(column, justify="right")
        classes.add_column("class")
        for row in self.classes:
            share, pixels = f"{row['share']:.2%}", f"{row['pixels']:,}"
            classes.add_row(str(row["id"]), share, pixels, row["name"])
        console.print(bands, "", classes, "")
        console.print(self.norm(), markup=False)


def measure_source(
    text: str, *, data_root: Path | None, every: bool, class_map: str | None = None
) -> Statistics:
    """Measure bands and count classes, window by window.

    Args:
        text: `NAME|DIR[:split[:domain]]`; all of it without a split.
        data_root: Where dataset presets lie.
        every: Read every pixel of the images, not up to `statistics.WINDOWS` windows.
        class_map: Map to count other classes.

    Raises:
        RssegError: The dataset is not there or does not hold together; see `rsseg data check`.
    """
    source = Source.locate(text, data_root=data_root, class_map=class_map)
    pairs = source.pairs()
    mean, std = measure(source.opener, pairs, most=None if every else WINDOWS)
    labelled = [pair for pair in pairs if pair.label is not None]
    index = ClassIndex.build([(source.opener, labelled)]) if labelled else None
    rows = [
        {
            "id": one.id,
            "name": one.name,
            "pixels": 0 if index is None else int(index.counts[place]),
            "share": 0.0 if index is None else float(index.shares[place]),
        }
        for place, one in enumerate(source.classes)
    ]
    names = tuple(band.name for band in source.spec.bands)
    return Statistics(text, len(pairs), names, mean, std, every, rows)
