"""One training run: what `fit` and `adapt` prepare, and what both do with it."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
from dataclasses import dataclass
from dataclasses import field
from pathlib import Path
from rsseg_cli import distributed
from rsseg_cli.commands.fit.dry_run import TrainingPlan
from rsseg_cli.commands.fit.final_evaluation import final_evaluation
from rsseg_cli.commands.fit.final_evaluation import shown_bands
from rsseg_cli.commands.fit.run_folder_checks import open_state
from rsseg_cli.commands.fit.run_report import write_report
from rsseg_cli.config import RunConfig
from rsseg_cli.contract import Bands
from rsseg_cli.data.pair import SourcePairs
from rsseg_cli.data.sources import Sources
from rsseg_cli.data.tiles.class_index import ClassIndex
from rsseg_cli.data.tiles.tile_stream import TileStream
from rsseg_cli.data.tiles.validation_tiles import CoveringTiles
from rsseg_cli.errors import RssegError
from rsseg_cli.training.checkpoint import load_model
from rsseg_cli.training.deadline import Deadline
from rsseg_cli.training.loop import Job
from rsseg_cli.training.loop import Training
from rsseg_cli.training.loop import train
from rsseg_cli.training.precision import Precision
from rsseg_cli.training.progress import Progress
from rsseg_cli.training.run_folder import RunFolder
from rsseg_cli.training.step_log import TrainingResult
from typing import Any
from typing import TYPE_CHECKING
import torch

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PROBE_SEED = 0x9E0BE
"""Added to the seed of the tiles that methods probe, so that they are not the training's."""
MAX_CLASS_WEIGHT = 10.0
"""Largest balanced class weight: a handful of pixels must not dominate the loss."""


@dataclass(frozen=True)
class RunOptions:
    """Options of a run that are not settings: they do not change what it learns.

    Attributes:
        data_root: Folder of the dataset presets.
        folder: Folder of the run; named after method and data when None.
        device: auto, cpu, cuda or cuda:N.
        resume: Continue the interrupted run in `folder`.
        overwrite: Replace an existing run.
        deadline: Time limit of the run.
        quiet: No progress.
    """

    data_root: Path | None = None
    folder: Path | None = None
    device: str = "auto"
    resume: bool = False
    overwrite: bool = False
    deadline: Deadline = field(default_factory=Deadline)
    quiet: bool = False

    def open_folder(self, config: RunConfig, name: str) -> tuple[Path, dict[str, Any] | None]:
        """Return the folder of the run, `runs/name` by default, and the state to resume from.

        Raises:
            RssegError: The folder is in use, or there is no run to resume with these settings.
        """
        path = self.folder or Path("runs") / name
        state = open_state(path, config, resume=self.resume, overwrite=self.overwrite)
        return path, state


@dataclass(frozen=True)
class ReportExtras:
    """What a command adds to the report of a run."""

    figures: Mapping[str, Figure] = field(default_factory=dict)
    remarks: Sequence[str] = ()


@dataclass
class RunJob:
    """A prepared run: data opened and checked, model built. `run` trains it.

    Attributes:
        config: The settings.
        folder: The run folder.
        sources: The labelled data.
        tiles: Opens tiles of the data.
        precision: Number format of the forward pass.
        plan: The answer of `--dry-run`.
        loop: Inputs of the training loop.
        resumed: State of the interrupted run; None for a new run.
        quiet: No progress.
        extras: Returns the command's own part of the report, given the result; the model then
            has the best weights.
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
    """What `fit --json` prints."""

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
    folder, plan, resumed = job.folder, job.plan, job.resumed
    distributed.barrier()  # until all processes have checked the folder
    if resumed is None and distributed.is_main():
        folder.begin(job.config.text())
    start = 0 if resumed is None else resumed["step"]
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
                progress.print(f"classes  were found by looking: name them in {written}")
        result = train(job.loop, progress, resumed)
    if distributed.is_main():
        _report(job, result)
        folder.finish()
    return FitReport(str(folder.path), str(folder.model), result)


def _report(job: RunJob, result: TrainingResult) -> None:
    """Evaluate the best model tile by tile and write the report."""
    model, sources = job.loop.model, job.sources
    model.load_adapter_state(load_model(job.folder.model)[0])
    extras = job.extras(result)
    evaluation = None
    if sources.validation:
        evaluation = final_evaluation(
            model,
            job.tiles.covering(sources.validation, whole=True),
            sources.classes,
            job.precision,
            rgb=shown_bands(sources.bands),
            threads=job.config.training.num_workers,
        )
    write_report(
        job.folder,
        job.config,
        job.plan,
        result,
        figures=extras.figures,
        remarks=extras.remarks,
        evaluation=evaluation,
    )


@dataclass(frozen=True)
class RunTiles:
    """Opens the tiles of a run.

    Attributes:
        config: The settings.
        bands: The model's bands.
        per_pass: Tiles of one forward pass in this process.
    """

    config: RunConfig
    bands: Bands
    per_pass: int

    def covering(
        self, parts: Sequence[SourcePairs], bands: Bands | None = None, *, whole: bool = False
    ) -> CoveringTiles:
        """Open tiles that cover some scenes: this process' shard of them, or the `whole`."""
        return CoveringTiles(
            parts,
            bands or self.bands,
            tile=self.config.data.tile,
            batch=self.per_pass,
            rank=0 if whole else distributed.rank(),
            world=1 if whole else distributed.world_size(),
        )

    def random(
        self,
        parts: Sequence[SourcePairs],
        batch: int,
        *,
        bands: Bands | None = None,
        seed: int = 0,
        index: ClassIndex | None = None,
        micro_batches: int = 1,
    ) -> TileStream:
        """Open random tiles of some scenes; item i is a pure function of i.

        Args:
            parts: The scenes.
            batch: Tiles per item.
            bands: The bands, if they are not the model's.
            seed: Added to the run's seed. With one, the stream is the same in all processes.
            index: Draws tiles by class; None: uniformly.
            micro_batches: Items of one step.
        """
        return TileStream(
            parts,
            bands or self.bands,
            tile=self.config.data.tile,
            batch=batch,
            seed=self.config.training.seed + seed,
            scale=self.config.augment.scale,
            index=index,
            rank=0 if seed else distributed.rank(),
            world=1 if seed else distributed.world_size(),
            micro_batches=micro_batches,
        )

    def micro_batches(self, batch: int) -> int:
        """Return the number of micro-batches of a step with `batch` tiles each."""
        return self.config.training.batch // (batch * distributed.world_size())


def tiles_per_pass(training: Training) -> int:
    """Return the number of tiles of one forward pass in this process.

    Raises:
        RssegError: The batch cannot be split evenly.
    """
    passes = training.grad_accumulation * distributed.world_size()
    if training.batch % passes:
        raise RssegError(
            f"a batch of {training.batch} cannot be cut into {passes} equal parts",
            where="training.batch, training.grad_accumulation",
            fix=f"training.batch={passes * max(1, training.batch // passes)}",
        )
    return training.batch // passes


def balanced_weights(index: ClassIndex) -> torch.Tensor:
    """Return class weights (K): the inverse square root of frequencies, mean 1, capped."""
    frequencies = torch.tensor(index.shares, dtype=torch.float32)
    weights = torch.where(frequencies > 0, frequencies.clamp(min=1e-8).rsqrt(), 0.0)
    weights = weights / weights[frequencies > 0].mean()
    return weights.clamp(max=MAX_CLASS_WEIGHT)
