"""`rsseg data`: lists, describes, checks and measures datasets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from rsseg_cli import presets
from rsseg_cli.data.check.check_dataset import Check, check
from rsseg_cli.data.source import Source
from rsseg_cli.data.spec.dataset_spec import DatasetSpec
from rsseg_cli.data.statistics import WINDOWS, measure
from rsseg_cli.data.tiles.class_index import ClassIndex
from rsseg_cli.number_format import counted

MARKS = {True: "[green]fits[/green]", False: "[red]no[/red]", None: "[yellow]note[/yellow]"}
"""Result of a check in the terminal."""


def list_presets() -> list[dict[str, Any]]:
    """Return the dataset presets: title, size, bands, classes, licence, page."""
    rows = []
    for name in presets.names("datasets"):
        spec = presets.read(presets.find("datasets", name)).parse(DatasetSpec)
        rows.append(
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
    return rows


def _table(*names: str, numbers: Sequence[str] = ()) -> Table:
    """Return a table with columns of texts, then of numbers."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    for name in (*names, *numbers):
        table.add_column(name, justify="right" if name in numbers else "left", overflow="fold")
    return table


def show_presets(rows: list[dict[str, Any]]) -> None:
    """Print the dataset presets."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("name", no_wrap=True)
    table.add_column("what", ratio=3)
    table.add_column("size", ratio=2)
    table.add_column("licence", ratio=2)
    table.add_column("page", ratio=2, overflow="fold")
    for row in rows:
        table.add_row(row["name"], row["title"], row["size"], row["licence"], row["url"])
    Console().print(table, markup=False)


def describe(text: str, *, data_root: Path | None) -> str:
    """Return the dataset.yaml of a preset or folder, with an absolute root.

    Raises:
        RssegError: The dataset is not found.
    """
    source = Source.locate(text, data_root=data_root)
    spec = source.spec.model_copy(update={"root": str(source.root.resolve())})
    return spec.to_yaml(source.remark)


def check_dataset(text: str, *, data_root: Path | None, sample: int) -> Check:
    """Check a dataset on disk against its preset or dataset.yaml.

    Raises:
        RssegError: The dataset is not found.
    """
    return check(Source.locate(text, data_root=data_root), sample=sample)


def show_check(result: Check, text: str) -> None:
    """Print the counts and a line per finding; `text` is the name of the dataset."""
    console = Console(highlight=False)
    console.print(f"[bold]{result.name}[/bold]  {result.title}\n{result.root}\n", highlight=False)
    counts = _table("split", "domain", numbers=("images", "with label"))
    for count in result.counts:
        split, domain = count.split or "(none)", count.domain or "-"
        counts.add_row(split, domain, f"{count.images:,}", f"{count.labelled:,}")
    console.print(counts, "")
    table = _table("", "what", "expected", "found", "what to do")
    table.columns[0].no_wrap = True
    for finding in result.findings:
        cells = (finding.what, finding.expected, finding.found, finding.fix)
        table.add_row(MARKS[finding.fits], *(cell.replace("[", r"\[") for cell in cells))
    console.print(table)
    if not result.fits:
        console.print(
            f"\nTo change how it is read: rsseg data describe {text} > mine.yaml, edit these lines "
            "there, and pass mine.yaml as the dataset.",
            highlight=False,
        )
    if result.notes:
        console.print(f"\nnote: {result.notes}", style="dim", markup=False)


@dataclass(frozen=True)
class DatasetStatistics:
    """Statistics of a dataset.

    Attributes:
        mean: Mean per band in stored units, without missing samples.
        std: Standard deviation per band, likewise.
        whole: True if every pixel was read, not only windows of all images.
        classes: Id, name, labelled pixels and frequency of each class.
    """

    source: str
    images: int
    bands: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    whole: bool
    classes: list[dict[str, Any]]

    def norm(self) -> str:
        """Return the section `norm` of a dataset.yaml."""
        mean, std = (", ".join(f"{v:.6g}" for v in values) for values in (self.mean, self.std))
        return f"norm:\n  mean: [{mean}]\n  std: [{std}]"

    def show(self) -> None:
        """Print bands, classes and the section `norm` of a dataset.yaml."""
        console = Console(highlight=False)
        pixels = "every pixel" if self.whole else "windows of all images"
        console.print(f"{self.source}  {counted(self.images, 'image')}, {pixels}\n", markup=False)
        bands = _table("band", numbers=("mean", "std"))
        for name, mean, std in zip(self.bands, self.mean, self.std, strict=True):
            bands.add_row(name, f"{mean:,.4g}", f"{std:,.4g}")
        classes = _table(numbers=("id", "share", "pixels"))
        classes.add_column("class")
        for row in self.classes:
            cells = str(row["id"]), f"{row['share']:.2%}", f"{row['pixels']:,}", row["name"]
            classes.add_row(*cells)
        console.print(bands, "", classes, "")
        console.print(self.norm(), markup=False)


def measure_source(
    text: str, *, data_root: Path | None, every: bool, class_map: str | None = None
) -> DatasetStatistics:
    """Compute mean and std of the bands and the class frequencies, window by window.

    Args:
        text: `NAME|DIR[:split[:domain]]`; the whole dataset without a split.
        data_root: Folder of the dataset presets.
        every: Read every pixel of the images, not only `statistics.WINDOWS` windows.
        class_map: Class map, applied before counting.

    Raises:
        RssegError: The dataset is not found, or its files do not match its description.
    """
    source = Source.locate(text, data_root=data_root, class_map=class_map)
    pairs = source.pairs()
    mean, std = measure(source.opener, pairs, most=None if every else WINDOWS)
    labelled = [pair for pair in pairs if pair.label is not None]
    index = ClassIndex.build([(source.opener, labelled)]) if labelled else None
    rows = [
        {
            "id": cls.id,
            "name": cls.name,
            "pixels": 0 if index is None else int(index.counts[number]),
            "share": 0.0 if index is None else float(index.shares[number]),
        }
        for number, cls in enumerate(source.classes)
    ]
    names = tuple(band.name for band in source.spec.bands)
    return DatasetStatistics(text, len(pairs), names, mean, std, every, rows)
