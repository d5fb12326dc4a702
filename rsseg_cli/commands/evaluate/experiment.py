"""Experiments of papers: data, rows of the published table, and scores of models beside them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator
from rich.console import Console
from rich.table import Table

from rsseg_cli import presets
from rsseg_cli.commands.evaluate.model_evaluation import evaluate_model
from rsseg_cli.commands.evaluate.options import EvaluateOptions
from rsseg_cli.commands.fit.options import FitOptions
from rsseg_cli.commands.model import RUNS
from rsseg_cli.data.source import Source
from rsseg_cli.errors import UnreadableError, unknown
from rsseg_cli.number_format import percent, signed_percent
from rsseg_cli.report.report import Report, existing_files
from rsseg_cli.settings import Strict

SUMMARY = "experiment.json"
"""File name of the scores of all targets."""


class PublishedRow(Strict):
    """A row of a published table."""

    method: str
    """Method preset."""
    settings: tuple[str, ...] = ()
    """Settings of this row, as for `--set`."""
    published: dict[str, float] = Field(default_factory=dict)
    """Published score per target in percent."""
    mean: float | None = None
    """Published mean over the targets, in percent."""
    source: str = ""
    """Table or page of the published numbers."""
    notes: str = ""


class Experiment(Strict):
    """The YAML of presets/experiments/<paper>/<setting>.yaml."""

    title: str
    paper: str
    src: tuple[str, ...] = Field(min_length=1)
    """Training data, as for `--src`."""
    unlabelled: tuple[str, ...] = ()
    """Unlabelled target data that the published methods adapted to."""
    class_map: str | None = None
    """Class map of the sources."""
    targets: dict[str, str] = Field(min_length=1)
    """Test data by name: `DATASET[:split[:domain]]`."""
    bands: Literal["name", "position"] = "name"
    """Matching of bands of targets and sources: by name and wavelength; or by position, as in
    papers that use infrared in place of red."""
    metric: Literal["miou"] = "miou"
    settings: tuple[str, ...] = ()
    """Settings of all rows, as for `--set`."""
    rows: dict[str, PublishedRow] = Field(min_length=1)
    """Rows of the table; the first is the paper's own method."""
    notes: str = ""

    @model_validator(mode="after")
    def _fits_together(self) -> Experiment:
        for name, row in self.rows.items():
            unknown_targets = sorted(set(row.published) - set(self.targets))
            if unknown_targets:
                raise ValueError(f"rows.{name}.published: {unknown_targets[0]} is not a target")
            if (row.published or row.mean is not None) and not row.source:
                raise ValueError(f"rows.{name}: published numbers need a source")
        return self


@dataclass(frozen=True)
class ExperimentRow:
    """An experiment and one row of its table; `name` is `paper/setting[:row]`."""

    name: str
    experiment: Experiment
    table_row: PublishedRow

    @classmethod
    def find(cls, name: str) -> ExperimentRow:
        """Load `paper/setting[:row]`; without a row, the paper's own method.

        Raises:
            RssegError: There is no such experiment or row.
        """
        preset, _, row = name.partition(":")
        experiment = presets.read(presets.find("experiments", preset)).parse(Experiment)
        if row and row not in experiment.rows:
            raise unknown("row", row, experiment.rows, where=preset)
        return cls(name, experiment, experiment.rows[row or next(iter(experiment.rows))])

    @property
    def folder(self) -> Path:
        """Default folder of the run."""
        return RUNS / self.name.replace("/", "-").replace(":", "-")

    def changes(self, *, skip: Mapping[str, str | None]) -> list[str]:
        """Return the settings of the experiment, then those of the row, as for `--set`.

        Args:
            skip: The user's choice for some sections; settings of a chosen section are left out.
        """
        changes = [*self.experiment.settings, *self.table_row.settings]
        if self.experiment.class_map is not None:
            changes.insert(0, f"data.class_map={self.experiment.class_map}")
        return [change for change in changes if not skip.get(change.partition(".")[0])]

    def options(self, options: FitOptions) -> FitOptions:
        """Return the options of a fit with the data and the method of the experiment."""
        return replace(
            options,
            experiment=None,
            method=self.table_row.method,
            src=self.experiment.src,
            output=options.output or self.folder,
        )

    def remarks(self) -> list[str]:
        """Return remarks on the comparison with the published scores."""
        notes = []
        if self.experiment.unlabelled:
            targets = ", ".join(self.experiment.unlabelled)
            notes.append(
                f"the published methods adapted to unlabelled images of {targets}; `fit` trains "
                "on the sources only (then use `rsseg adapt`)"
            )
        return [*notes, *(text for text in (self.experiment.notes, self.table_row.notes) if text)]


@dataclass(frozen=True)
class TargetScore:
    """Score of a model on a target and the published score, 0..1."""

    target: str
    on: str
    ours: float | None
    published: float | None

    @property
    def difference(self) -> float | None:
        """Score of the model minus the published score."""
        if self.ours is None or self.published is None:
            return None
        return self.ours - self.published

    def to_json(self, metric: str) -> dict[str, Any]:
        """Return the machine-readable form."""
        scores = {metric: self.ours, "published": self.published, "difference": self.difference}
        return {"target": self.target, "on": self.on} | scores


@dataclass
class ExperimentReport:
    """Result of `rsseg evaluate --experiment`."""

    row: ExperimentRow
    model: str
    targets: list[TargetScore] = field(default_factory=list)
    reports: Mapping[str, Report] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return the machine-readable form."""
        metric = self.row.experiment.metric
        return {
            "experiment": self.row.name,
            "title": self.row.experiment.title,
            "model": self.model,
            "source": self.row.table_row.source,
            "targets": [target.to_json(metric) for target in self.targets],
            "scores": {name: report.to_json() for name, report in self.reports.items()},
            "remarks": self.row.remarks(),
        }

    def show(self) -> None:
        """Print the scores beside the published ones in percent."""
        console = Console(highlight=False)
        console.print(f"{self.row.name}  {self.row.experiment.title}", markup=False)
        console.print(f"{self.model}\n", markup=False)
        table = Table(box=None, header_style="bold", pad_edge=False)
        for column in ("target", "data"):
            table.add_column(column)
        for column in ("mIoU", "published", "difference"):
            table.add_column(column, justify="right")
        for score in self.targets:
            difference = "" if score.difference is None else signed_percent(score.difference)
            scores = percent(score.ours), percent(score.published)
            table.add_row(score.target, score.on, *scores, difference)
        console.print(table)
        if self.row.table_row.source:
            console.print(f"\npublished: {self.row.table_row.source}", markup=False)
        for remark in self.row.remarks():
            console.print(f"note: {remark}", style="yellow", markup=False)

    def write(self, folder: Path) -> None:
        """Write a report per target, and experiment.json."""
        for name, report in self.reports.items():
            report.write(folder / name)
        folder.mkdir(parents=True, exist_ok=True)
        document = json.dumps(self.to_json(), indent=1) + "\n"
        (folder / SUMMARY).write_text(document, encoding="utf-8")


def existing_experiment_files(folder: Path, name: str) -> list[Path]:
    """List the files that an earlier report of an experiment has written into a folder."""
    targets = ExperimentRow.find(name).experiment.targets
    files = [file for target in targets for file in existing_files(folder / target)]
    return [*filter(Path.exists, [folder / SUMMARY]), *files]


def evaluate_experiment(options: EvaluateOptions, name: str) -> ExperimentReport:
    """Evaluate a model on every target of an experiment; by default that of `fit --experiment`.

    Raises:
        RssegError: There is no such run, or a target is not on disk.
    """
    row = ExperimentRow.find(name)
    targets, path = row.experiment.targets, options.model or row.folder
    if not path.exists():
        raise UnreadableError(
            f"there is no run of {row.name}",
            where=str(path),
            fix=f"rsseg fit --experiment {row.name}, or --model RUN",
        )
    for on in targets.values():
        Source.locate(on, data_root=options.data_root).pairs()
    by_position = row.experiment.bands == "position"
    reports = {}
    for target, on in targets.items():
        target_options = replace(options, experiment=None, model=path, on=(on,))
        reports[target] = evaluate_model(target_options, by_position=by_position)
    rows = []
    for target, on in targets.items():
        scores = reports[target].scores
        ours = None if scores is None else scores.miou
        rows.append(TargetScore(target, on, ours, _fraction(row.table_row.published.get(target))))
    if len(targets) > 1:
        defined = [score.ours for score in rows if score.ours is not None]
        mean = sum(defined) / len(defined) if len(defined) == len(rows) else None
        rows.append(TargetScore("mean", "", mean, _fraction(row.table_row.mean)))
    return ExperimentReport(row, str(path), rows, reports)


def _fraction(percent: float | None) -> float | None:
    return None if percent is None else percent / 100
