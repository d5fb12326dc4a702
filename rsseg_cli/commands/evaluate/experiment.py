"""Experiments of the papers: data, rows of the published table, and our scores beside them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator
from rich.console import Console
from rich.table import Table

from rsseg_cli import presets
from rsseg_cli.commands.fit.options import FitOptions
from rsseg_cli.data.source import Source
from rsseg_cli.errors import UnreadableError, unknown
from rsseg_cli.number_format import percent, signed_percent
from rsseg_cli.report.report import Report
from rsseg_cli.settings import Strict


class Row(Strict):
    """One line of a published table."""

    method: str
    """Method preset."""
    settings: tuple[str, ...] = ()
    """Further settings as `--set` takes them."""
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
    """Training data as `--src` takes it."""
    unlabelled: tuple[str, ...] = ()
    """Unlabelled target data that the published rows adapted to."""
    class_map: str | None = None
    """Class map of the sources."""
    targets: dict[str, str] = Field(min_length=1)
    """Test data by name: `DATASET[:split[:domain]]`."""
    bands: Literal["name", "position"] = "name"
    """How bands of targets are matched with those of the sources: by name and wavelength, or by
    position, as in papers that feed infrared for red."""
    metric: Literal["miou"] = "miou"
    settings: tuple[str, ...] = ()
    """Settings of all rows as `--set` takes them."""
    rows: dict[str, Row] = Field(min_length=1)
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
class Chosen:
    """An experiment and one row of it.

    Attributes:
        name: `paper/setting[:row]`.
        experiment: The preset.
        row: The row of the table.
    """

    name: str
    experiment: Experiment
    row: Row

    @classmethod
    def find(cls, name: str) -> Chosen:
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
        return Path("runs") / self.name.replace("/", "-").replace(":", "-")

    def changes(self, *, skip: Mapping[str, str | None]) -> list[str]:
        """Return the settings of the experiment, then those of the row.

        Args:
            skip: Sections and what the user chose for them; settings of those are left out.
        """
        class_map = self.experiment.class_map
        mapped = [] if class_map is None else [f"data.class_map={class_map}"]
        listed = [*mapped, *self.experiment.settings, *self.row.settings]
        return [change for change in listed if not skip.get(change.partition(".")[0])]

    def options(self, options: FitOptions) -> FitOptions:
        """Return the options of a fit with the data, method and settings of the experiment."""
        skip = {"backbone": options.backbone, "head": options.head}
        return replace(
            options,
            experiment=None,
            method=self.row.method,
            src=self.experiment.src,
            output=options.output or self.folder,
            settings=(*self.changes(skip=skip), *options.settings),
        )

    def remarks(self) -> list[str]:
        """Return notes for readers of the scores."""
        notes = []
        if self.experiment.unlabelled:
            targets = ", ".join(self.experiment.unlabelled)
            notes.append(
                f"the published rows adapted to unlabelled images of {targets}; `fit` reads the "
                "sources only (`rsseg adapt` continues from there)"
            )
        return [*notes, *(text for text in (self.experiment.notes, self.row.notes) if text)]


@dataclass(frozen=True)
class TargetScore:
    """Our score on a target and the published one, 0..1."""

    target: str
    on: str
    ours: float | None
    published: float | None

    @property
    def difference(self) -> float | None:
        """Ours minus the published one."""
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

    chosen: Chosen
    model: str
    lines: list[TargetScore] = field(default_factory=list)
    reports: Mapping[str, Report] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return the machine-readable form."""
        metric = self.chosen.experiment.metric
        return {
            "experiment": self.chosen.name,
            "title": self.chosen.experiment.title,
            "model": self.model,
            "source": self.chosen.row.source,
            "targets": [line.to_json(metric) for line in self.lines],
            "scores": {name: report.to_json() for name, report in self.reports.items()},
            "remarks": self.chosen.remarks(),
        }

    def show(self, console: Console | None = None) -> None:
        """Print our scores beside the published ones in percent."""
        console = console or Console(highlight=False)
        console.print(f"{self.chosen.name}  {self.chosen.experiment.title}", markup=False)
        console.print(f"{self.model}\n", markup=False)
        table = Table(box=None, header_style="bold", pad_edge=False)
        for column in ("target", "data"):
            table.add_column(column)
        for column in ("mIoU", "published", "difference"):
            table.add_column(column, justify="right")
        for line in self.lines:
            sign = "" if line.difference is None else signed_percent(line.difference)
            table.add_row(line.target, line.on, percent(line.ours), percent(line.published), sign)
        console.print(table)
        if self.chosen.row.source:
            console.print(f"\npublished: {self.chosen.row.source}", markup=False)
        for remark in self.chosen.remarks():
            console.print(f"note: {remark}", style="yellow", markup=False)

    def write(self, folder: Path) -> None:
        """Write a report per target, and experiment.json."""
        for name, report in self.reports.items():
            report.write(folder / name)
        folder.mkdir(parents=True, exist_ok=True)
        document = json.dumps(self.to_json(), indent=1) + "\n"
        (folder / "experiment.json").write_text(document, encoding="utf-8")


def score(
    chosen: Chosen, evaluate: Callable[..., Report], *, model: Path | None, data_root: Path | None
) -> ExperimentReport:
    """Score a model on every target of an experiment.

    Args:
        chosen: The experiment.
        evaluate: `evaluate_model` with the options of the command line.
        model: Run folder or model file; that of `fit --experiment` when None.
        data_root: Where dataset presets lie.

    Raises:
        RssegError: There is no such run, or a target is not on disk.
    """
    targets, row = chosen.experiment.targets, chosen.row
    where = model or chosen.folder
    if not where.exists():
        raise UnreadableError(
            f"there is no run of {chosen.name}",
            where=str(where),
            fix=f"rsseg fit --experiment {chosen.name}, or --model RUN",
        )
    for on in targets.values():
        Source.locate(on, data_root=data_root).pairs()
    by_position = chosen.experiment.bands == "position"
    reports = {name: evaluate(where, [on], by_position=by_position) for name, on in targets.items()}
    lines = []
    for name, on in targets.items():
        scores = reports[name].scores
        ours = None if scores is None else scores.miou
        lines.append(TargetScore(name, on, ours, _share(row.published.get(name))))
    if len(targets) > 1:
        mine = [line.ours for line in lines if line.ours is not None]
        mean = sum(mine) / len(mine) if len(mine) == len(lines) else None
        lines.append(TargetScore("mean", "", mean, _share(row.mean)))
    return ExperimentReport(chosen, str(where), lines, reports)


def _share(percent: float | None) -> float | None:
    return None if percent is None else percent / 100
