"""A report of scores: printed to a terminal, or written as HTML, Markdown, JSON and CSV."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from rsseg_cli.atomic_write import write_bytes, write_errors
from rsseg_cli.metrics.scores import Scores
from rsseg_cli.presets import to_yaml
from rsseg_cli.report import terminal
from rsseg_cli.report.markdown import to_markdown
from rsseg_cli.report.score_tables import confusion_table, csv_table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FILES = ("report.html", "report.md", "report.json", "report.csv", "confusion.csv")
"""File names of a report, beside its pictures."""
PICTURES = "pictures"
"""Folder of the pictures in that of a report."""


@dataclass
class Report:
    """A report of a map or a run."""

    title: str
    scores: Scores | None
    """None for a run without validation."""
    subtitle: str = ""
    remarks: Sequence[str] = ()
    records: Sequence[Mapping[str, Any]] = ()
    """Lines of `metrics.jsonl`, for the charts."""
    pictures: Mapping[str, bytes | Figure] = field(default_factory=dict)
    """PNG bytes or figures by caption."""
    config: Mapping[str, Any] = field(default_factory=dict)
    about: Mapping[str, Any] = field(default_factory=dict)
    """Versions, hardware and speed by name."""

    def to_json(self) -> dict[str, Any]:
        """Return what `--json` prints: the scores, with the title and the remarks."""
        scores = self.scores.to_json() if self.scores else {}
        return {"title": self.title, **scores, "remarks": list(self.remarks)}

    @property
    def settings(self) -> str:
        """The settings of the run as YAML."""
        return to_yaml(dict(self.config)) if self.config else ""

    @property
    def about_text(self) -> dict[str, str]:
        """Versions, hardware and speed as text."""
        return {name: _text(value) for name, value in self.about.items()}

    def show(self, console: Console | None = None) -> None:
        """Print the report to a terminal, stdout by default."""
        console = console or Console()
        if self.scores is None:
            console.print(f"{self.title}: nothing was validated, there are no scores", markup=False)
            return
        terminal.show(console, self.title, self.scores, remarks=self.remarks)

    def write(self, folder: str | Path) -> list[Path]:
        """Write report.html, .md, .json and .csv, confusion.csv, and the pictures.

        Files of an earlier report in the folder are replaced.

        Returns:
            Paths of the files, the page first.

        Raises:
            RssegError: The folder is not writable.
        """
        # Printing a report needs neither jinja2 nor matplotlib.
        from rsseg_cli.report.charts import to_png
        from rsseg_cli.report.html import to_html

        folder = Path(folder)
        pngs = {
            caption: picture if isinstance(picture, bytes) else to_png(picture)
            for caption, picture in self.pictures.items()
        }
        files = _file_names(pngs)
        texts = {
            "report.html": to_html(self, pngs),
            "report.md": to_markdown(self, files),
            "report.json": json.dumps(self._full_json(), indent=1, ensure_ascii=False) + "\n",
        }
        if self.scores:
            texts["report.csv"] = csv_table(self.scores).to_csv()
            texts["confusion.csv"] = confusion_table(self.scores, "pixels", unmapped=True).to_csv()
        contents = {name: text.encode("utf-8") for name, text in texts.items()}
        contents |= {files[name]: png for name, png in pngs.items()}
        with write_errors("the report", folder):
            folder.mkdir(parents=True, exist_ok=True)
            for name, content in contents.items():
                write_bytes(folder / name, content)
        return [folder / name for name in contents]

    def _full_json(self) -> dict[str, Any]:
        """Return the content of report.json: the scores and the run around them."""
        return self.to_json() | {
            "subtitle": self.subtitle,
            "about": dict(self.about),
            "config": dict(self.config),
            "records": [dict(record) for record in self.records],
        }


def existing_files(folder: Path) -> list[Path]:
    """List the files of an earlier report in a folder; all its pictures count as such."""
    files = [folder / name for name in FILES]
    return [*filter(Path.exists, files), *sorted((folder / PICTURES).glob("*.png"))]


def _file_names(pictures: Mapping[str, bytes]) -> dict[str, str]:
    """Return a unique file name for each caption."""
    names: dict[str, str] = {}
    for caption in pictures:
        stem = re.sub(r"[^a-z0-9]+", "-", caption.lower()).strip("-")[:60] or "picture"
        number, name = 1, f"{PICTURES}/{stem}.png"
        while name in names.values():
            number, name = number + 1, f"{PICTURES}/{stem}-{number + 1}.png"
        names[caption] = name
    return names


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.4g}" if abs(value) < 1000 else f"{value:,.0f}"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
