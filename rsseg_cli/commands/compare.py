"""`rsseg compare`: compares the scores of finished runs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from rsseg_cli.atomic_write import write_bytes, write_errors
from rsseg_cli.errors import RssegError, UnreadableError
from rsseg_cli.metrics.scores import Scores
from rsseg_cli.report import seed_groups
from rsseg_cli.report.html import render
from rsseg_cli.report.markdown import section
from rsseg_cli.report.seed_groups import ScoredRun, SeedGroup, comparison_tables, group_runs
from rsseg_cli.report.table import ReportTable, tables_to_csv

NOTES = (
    "Scores in percent: mean \u00b1 standard deviation over seeds. Runs whose settings differ only "
    "in the seed are one row.",
    "Differences to the first are paired by seed where both have it, with the 95 % interval of "
    "Student's t in brackets.",
)


@dataclass(frozen=True)
class RunComparison:
    """Result of `rsseg compare`."""

    groups: list[SeedGroup]
    remarks: list[str]

    @property
    def tables(self) -> list[ReportTable]:
        """All tables, the scores first."""
        return comparison_tables(self.groups)

    def to_json(self) -> dict[str, Any]:
        """Return the machine-readable form."""
        return seed_groups.to_json(self.groups, self.remarks)

    def show(self) -> None:
        """Print the tables to stdout."""
        console = Console(highlight=False)
        for table in self.tables:
            console.print(table.to_rich())
        for remark in self.remarks:
            console.print(f"note: {remark}", style="yellow", markup=False)

    def write(self, folder: Path) -> None:
        """Write compare.html, .md, .csv and .json; those of an earlier comparison are replaced."""
        tables = self.tables
        sections = [text for table in tables for text in section(table)]
        notes = [f"> {remark}" for remark in self.remarks] + [f"- {note}" for note in NOTES]
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
            "compare.md": "\n\n".join(["# Runs compared", *sections, "\n".join(notes)]) + "\n",
            "compare.csv": tables_to_csv(tables),
            "compare.json": json.dumps(self.to_json(), indent=1) + "\n",
        }
        with write_errors("the comparison", folder):
            folder.mkdir(parents=True, exist_ok=True)
            for name, text in texts.items():
                write_bytes(folder / name, text.encode())


def compare(runs: Sequence[Path]) -> RunComparison:
    """Compare the reports of runs; those without scores are left out, with a remark.

    Args:
        runs: Run folders, report folders (`evaluate --report`) or report.json files.

    Raises:
        RssegError: A report is missing or broken, fewer than two have scores, or their classes
            differ.
    """
    reports = {str(run): _read(run) for run in dict.fromkeys(runs)}
    scored = [_scored_run(name, reports[name]) for name in reports if "classes" in reports[name]]
    unscored = ", ".join(name for name in reports if "classes" not in reports[name])
    if len(scored) < 2:
        raise RssegError(
            "a comparison needs two runs with scores",
            where=", ".join(reports),
            fix="another run" + (f"; without scores: {unscored}" if unscored else ""),
        )
    remarks = seed_groups.remarks(scored)
    if unscored:
        remarks.append(f"Without scores, left out: {unscored}.")
    return RunComparison(group_runs(scored), remarks)


def _read(run: Path) -> dict[str, Any]:
    paths = [run] if run.is_file() else [run / "report" / "report.json", run / "report.json"]
    path = next((path for path in paths if path.is_file()), None)
    if path is None:
        raise UnreadableError(
            f"there is no report in {run}",
            where=", ".join(map(str, paths)),
            fix="a finished run, or `rsseg evaluate ... --report DIR`",
        )
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UnreadableError(f"the report is damaged: {error}", where=str(path)) from error
    if not isinstance(report, dict) or "title" not in report:
        raise UnreadableError("this is not a report of rsseg", where=str(path))
    return report


def _scored_run(name: str, report: dict[str, Any]) -> ScoredRun:
    """Return the run of a report; its kind is its settings without the seed, and its data."""
    settings = json.loads(json.dumps(report.get("config") or {}))
    seed = settings.get("training", {}).pop("seed", None)
    settings.pop("title", None)
    data = report["title"].partition(" on ")[2] or report.get("subtitle", "")
    kind = json.dumps([settings, data]) if settings else name
    return ScoredRun(name, Scores.from_json(report), kind, seed)
