"""A prepared training run of `fit` or `adapt`, and its execution."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from rsseg_cli import distributed
from rsseg_cli.commands.fit.dry_run import TrainingPlan
from rsseg_cli.commands.fit.final_evaluation import final_evaluation, shown_bands
from rsseg_cli.commands.fit.run_report import write_report
from rsseg_cli.commands.fit.run_tiles import RunTiles
from rsseg_cli.commands.fit.validation import Validation
from rsseg_cli.config import RunConfig
from rsseg_cli.data.sources import Sources
from rsseg_cli.data.tiles.class_index import ClassIndex
from rsseg_cli.training.checkpoint import load_model
from rsseg_cli.training.loop import Job, train
from rsseg_cli.training.precision import Precision
from rsseg_cli.training.progress import Progress
from rsseg_cli.training.run_folder import RunFolder
from rsseg_cli.training.step_log import TrainingResult

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MAX_CLASS_WEIGHT = 10.0
"""Largest balanced class weight: a handful of pixels must not dominate the loss."""


@dataclass(frozen=True)
class ReportExtras:
    """Figures and remarks that a command adds to the report of a run."""

    figures: Mapping[str, Figure] = field(default_factory=dict)
    remarks: Sequence[str] = ()


@dataclass
class RunJob:
    """A prepared run: data opened and checked, model built. `run` trains it.

    Attributes:
        plan: Output of `--dry-run`.
        loop: Inputs of the training loop.
        resumed: State of the interrupted run; None for a new run.
        quiet: Show no progress.
        extras: Returns the command's additions to the report; called with the result when the
            model has the best weights.
    """

    config: RunConfig
    folder: RunFolder
    sources: Sources
    tiles: RunTiles
    precision: Precision
    plan: TrainingPlan
    loop: Job
    resumed: dict[str, Any] | None
    quiet: bool
    extras: Callable[[TrainingResult], ReportExtras] = lambda result: ReportExtras()


@dataclass
class FitReport:
    """Output of `fit --json`."""

    run: str
    model: str
    result: TrainingResult

    def to_json(self) -> dict[str, Any]:
        """Return the machine-readable form."""
        return {
            "run": self.run,
            "model": self.model,
            "steps": self.result.steps,
            "seconds": self.result.seconds,
            "images_per_s": self.result.images_per_s,
            "peak_memory_mb": self.result.peak_memory_mb,
            "best": self.result.best,
            "last": self.result.last,
        }


def run(job: RunJob) -> FitReport:
    """Train, and write the models and the report into the run folder."""
    folder, plan = job.folder, job.plan
    distributed.barrier()  # until all processes have checked the folder
    if job.resumed is None and distributed.is_main():
        folder.begin(job.config.text())
    start = 0 if job.resumed is None else job.resumed["step"]
    quiet = job.quiet or not distributed.is_main()
    with Progress(job.config.training.steps, start=start, quiet=quiet) as progress:
        progress.print(
            f"source   {plan.source}",
            f"model    {plan.model}",
            f"training {plan.training}, about {plan.memory_mb:,.0f} MB",
            f"run      {folder.path}",
            *(f"warning: {text}" for text in plan.warnings),
        )
        for source in job.sources.sources if distributed.is_main() else ():
            written = source.save_inferred_spec(folder.path)
            if written is not None:
                progress.print(f"classes  were inferred from the labels: name them in {written}")
        result = train(job.loop, progress, job.resumed)
    if distributed.is_main():
        _report(job, result)
        folder.finish()
    return FitReport(str(folder.path), str(folder.model), result)


def _report(job: RunJob, result: TrainingResult) -> None:
    """Evaluate the best model tile by tile and write the report."""
    model = job.loop.model
    model.load_adapter_state(load_model(job.folder.model)[0], where=job.folder.model)
    extras = job.extras(result)
    validation = Validation.of(job.sources, job.tiles, job.precision, whole=True)
    evaluation = None
    if validation is not None:
        evaluation = final_evaluation(model, validation, shown_bands(job.sources.bands))
    write_report(
        job.folder,
        job.config,
        job.plan,
        result,
        figures=extras.figures,
        remarks=extras.remarks,
        evaluation=evaluation,
    )


def balanced_weights(index: ClassIndex) -> torch.Tensor:
    """Return class weights (K): the inverse square root of frequencies, mean 1, capped."""
    frequencies = torch.tensor(index.shares, dtype=torch.float32)
    weights = torch.where(frequencies > 0, frequencies.clamp(min=1e-8).rsqrt(), 0.0)
    weights = weights / weights[frequencies > 0].mean()
    return weights.clamp(max=MAX_CLASS_WEIGHT)
