"""`compare`: finished runs beside each other."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from rsseg_cli.errors import RssegError, UnreadableError
from rsseg_cli.metrics.scores import Scores
from rsseg_cli.report import seed_groups
from rsseg_cli.report.html import render
from rsseg_cli.report.markdown import section
from rsseg_cli.report.report import replace_file, writing
from rsseg_cli.report.seed_groups import ScoredRun, SeedGroup, comparison_tables, group_runs
from rsseg_cli.report.table import ReportTable, tables_to_csv

NOTES = (
    "Scores in percent: mean \u00b1 standard deviation over seeds. Runs whose settings differ by "
    "the seed alone are one row.",
    "Differences to the first are taken seed by seed where both have the seed, with the 95 % "
    "interval of Student's t in brackets.",
)


@dataclass(frozen=True)
class Compared:
    """Runs beside each other."""

    groups: list[SeedGroup]
    remarks: list[str]

    @property
    def tables(self) -> list[ReportTable]:
        """All tables, the scores first."""
        return comparison_tables(self.groups)

    def to_json(self) -> dict[str, Any]:
        """Give what `--json` prints."""
        return seed_groups.to_json(self.groups, self.remarks)

    def show(self) -> None:
        """Print the tables to stdout."""
        console = Console(highlight=False)
        for table in self.tables:
            console.print(table.to_rich())
        for remark in self.remarks:
            console.print(f"note: {remark}", style="yellow", markup=False)

    def write(self, folder: Path) -> list[Path]:
        """Write compare.html, .md, .csv and .json; those of an earlier comparison are replaced."""
        tables = self.tables
        markdown = [part for table in tables for part in section(table)]
        said = [f"> {remark}" for remark in self.remarks] + [f"- {note}" for note in NOTES]
        page = render(
            "compare.html.j2",
            title="Runs compared",
            subtitle=", ".join(group.name for group in self.groups),
            remarks=self.remarks,
            tables=tables,
            groups=self.groups,
            notes=NOTES,
        )
        texts = {
            "compare.html": page,
            "compare.md": "\n\n".join(["# Runs compared", *markdown, "\n".join(said)]) + "\n",
            "compare.csv": tables_to_csv(tables),
            "compare.json": json.dumps(self.to_json(), indent=1) + "\n",
        }
        with writing("the comparison", folder):
            folder.mkdir(parents=True, exist_ok=True)
            for name, text in texts.items():
                replace_file(folder / name, text.encode())
        return [folder / name for name in texts]


def compare(runs: Sequence[Path]) -> Compared:
    """Read the reports of runs and put them beside each other.

    Runs without scores are left out, and a remark says so.

    Args:
        runs: Run folders, report folders (`evaluate --report`) or report.json files.

    Raises:
        RssegError: A report is missing or broken, fewer than two have scores, or their classes
            differ.
    """
    documents = {str(run): _read(run) for run in dict.fromkeys(runs)}
    bare = [name for name, found in documents.items() if "classes" not in found]
    entries = [_entry(name, found) for name, found in documents.items() if name not in bare]
    if len(entries) < 2:
        raise RssegError(
            "there is nothing to compare: two runs with scores are needed",
            where=", ".join(documents),
            fix=f"without validation: {', '.join(bare)}" if bare else "name another run",
        )
    said = seed_groups.remarks(entries)
    if bare:
        said.append(f"Without validation, so left out: {', '.join(bare)}.")
    return Compared(group_runs(entries), said)


def _read(run: Path) -> dict[str, Any]:
    places = [run] if run.is_file() else [run / "report" / "report.json", run / "report.json"]
    path = next((place for place in places if place.is_file()), None)
    if path is None:
        raise UnreadableError(
            f"{run} holds no report",
            where=", ".join(map(str, places)),
            fix="a finished run, or `rsseg evaluate ... --report DIR`",
        )
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UnreadableError(f"the report is broken: {error}", where=str(path)) from error
    if not isinstance(found, dict) or "title" not in found:
        raise UnreadableError("this is no report of rsseg", where=str(path))
    return found


def _entry(name: str, found: dict[str, Any]) -> ScoredRun:
    """Read a report; its kind are its settings without the seed."""
    settings = json.loads(json.dumps(found.get("config") or {}))
    seed = settings.get("training", {}).pop("seed", None)
    settings.pop("title", None)
    ground = found["title"].partition(" on ")[2] or found.get("subtitle", "")
    kind = json.dumps([settings, ground]) if settings else name
    return ScoredRun(name, Scores.from_json(found), kind, seed)
