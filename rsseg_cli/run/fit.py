"""`fit`: settings and sources in, a run folder with a model and a report out."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rsseg_cli import distributed
from rsseg_cli.bands import Bands
from rsseg_cli.config import RunConfig
from rsseg_cli.data.augment import Augment
from rsseg_cli.data.class_index import ClassIndex
from rsseg_cli.data.covering import CoveringTiles
from rsseg_cli.data.pair import Part
from rsseg_cli.data.tiles import Batch, TileStream
from rsseg_cli.errors import RssegError
from rsseg_cli.evaluate.evaluation import Evaluation
from rsseg_cli.plain import Json
from rsseg_cli.run import place, plan
from rsseg_cli.run.model import build, metadata, pick_device
from rsseg_cli.run.plan import Plan
from rsseg_cli.run.reports import write_report
from rsseg_cli.run.review import review, shown_bands
from rsseg_cli.run.sources import Sources
from rsseg_cli.run.validation import Validation
from rsseg_cli.segmenter import Segmenter
from rsseg_cli.threads import Indexed
from rsseg_cli.training.checkpoint import load_model
from rsseg_cli.training.deadline import Deadline
from rsseg_cli.training.folder import RunFolder
from rsseg_cli.training.loop import Job, Training, train
from rsseg_cli.training.meter import Outcome
from rsseg_cli.training.objectives import Objective, Supervised
from rsseg_cli.training.precision import Precision
from rsseg_cli.training.progress import Progress

PROBE_SEED = 0x9E0BE
"""Added to the seed of the tiles that probes see, so that they are not the training's."""
MAX_CLASS_WEIGHT = 10.0
"""Cap on balanced class weights: a handful of pixels must not rule the loss."""


@dataclass
class FitResult:
    """What `fit --json` prints."""

    run: str
    model: str
    outcome: Outcome

    def document(self) -> dict[str, Any]:
        """Give the machine-readable form."""
        return {
            "run": self.run,
            "model": self.model,
            "steps": self.outcome.steps,
            "seconds": self.outcome.seconds,
            "images_per_s": self.outcome.images_per_s,
            "peak_memory_mb": self.outcome.peak_memory_mb,
            "best": self.outcome.best,
            "last": self.outcome.last,
        }


class Fit:
    """One fit, prepared: data found and checked, model built; `run` trains.

    Args:
        config: The resolved settings.
        data_root: Where dataset presets lie.
        folder: Folder of the run; named after method and source when None.
        device: auto, cpu, cuda or cuda:N.
        resume: Go on with an interrupted run in `folder`.
        overwrite: Replace a run that is there.
        deadline: When the run must have come to rest; never when None.
        quiet: No progress.
    """

    def __init__(
        self,
        config: RunConfig,
        *,
        data_root: Path | None = None,
        folder: Path | None = None,
        device: str = "auto",
        resume: bool = False,
        overwrite: bool = False,
        deadline: Deadline | None = None,
        quiet: bool = False,
    ) -> None:
        self.config, self.quiet = config, quiet
        self.deadline = place.since_first_attempt(deadline or Deadline())
        self.batch = per_pass(config.training)
        self.device = pick_device(device)
        self.sources = self.open_sources(data_root)
        self.path = folder or Path("runs") / self.name
        self.resumed = place.open_state(self.path, config, resume=resume, overwrite=overwrite)
        # Reads every label once, so that a wrong id is found now and not in the night.
        self.index = ClassIndex.build(self.sources.train) if self.sources.train else None
        self.model = self.first_model()

    def open_sources(self, data_root: Path | None) -> Sources:
        """Find what is learned from."""
        return Sources.open(self.config.data, data_root=data_root)

    @property
    def name(self) -> str:
        """Name of the run's folder, unless the user gives another."""
        return f"{self.config.method.name}-{self.sources.name}"

    def first_model(self) -> Segmenter:
        """Make the model that the run starts with."""
        return build(self.config, self.sources.bands, len(self.sources.classes))

    def about(self) -> dict[str, Json]:
        """Say what model files tell about themselves."""
        return metadata(self.config, self.model, self.sources.classes, self.sources.fingerprints())

    def objective(self) -> Objective:
        """Say what a step minimises; the model is on its device."""
        return Supervised(Augment(self.config.augment, tile=self.config.data.tile))

    def plan(self) -> plan.Plan:
        """Say what would be done, without doing it."""
        counts = plan.count_parameters(self.model)
        return plan.Plan(
            source=plan.describe_source(self.sources),
            model=plan.describe_model(self.config, counts),
            training=plan.describe_training(self.config, self._device_name(), self._precision()),
            pairs={
                "train": sum(len(pairs) for _, pairs in self.sources.train),
                "validation": sum(len(pairs) for _, pairs in self.sources.validation),
            },
            classes=[
                {"id": one.id, "name": one.name, "share": share}
                for one, share in zip(self.sources.classes, self._shares(), strict=True)
            ],
            parameters=counts,
            memory_mb=plan.estimate_memory_mb(self.config, self.model, counts),
            warnings=self._warnings(),
        )

    def _shares(self) -> list[float | None]:
        """List the share of each class in the labels (K); None without labels."""
        if self.index is None:
            return [None] * len(self.sources.classes)
        return [float(share) for share in self.index.shares]

    def _warnings(self) -> list[str]:
        found = []
        shares = zip(self.sources.classes, self._shares(), strict=True)
        missing = [one.name for one, share in shares if share == 0]
        if missing:
            found.append(
                f"no training pixel of: {', '.join(missing)} (`rsseg data check` compares what "
                "labels hold with what is expected)"
            )
        if not self.sources.validation:
            found.append("nothing to validate on: the last step is kept")
        tile, places = (
            self.config.data.tile,
            [p.place for _, pairs in self.sources.train for p in pairs],
        )
        small = min((min(place.width, place.height) for place in places), default=tile)
        if small < tile:
            found.append(f"scenes of {small} px are padded to tiles of {tile} px")
        return found

    def _device_name(self) -> str:
        if self.device.type == "cuda":
            return torch.cuda.get_device_name(self.device)
        return platform.processor() or "CPU"

    def _precision(self) -> str:
        dtype = self.precision.dtype
        return {torch.bfloat16: "bf16", torch.float16: "fp16"}.get(dtype, "fp32")

    def run(self) -> FitResult:
        """Train, and leave the model and the report in the run's folder."""
        folder, resumed = self._open_folder(), self.resumed
        job = self.job(folder)
        shown, start = self.plan(), 0 if resumed is None else resumed["step"]
        quiet = self.quiet or not distributed.is_main()
        with Progress(self.config.training.steps, start=start, quiet=quiet) as progress:
            progress.say(
                f"source   {shown.source}",
                f"model    {shown.model}",
                f"training {shown.training}, about {shown.memory_mb:,.0f} MB",
                f"run      {folder.path}",
                *(f"warning: {text}" for text in shown.warnings),
            )
            for source in self.sources.sources if distributed.is_main() else ():
                written = source.keep(folder.path)
                if written is not None:
                    progress.say(f"classes  were found by looking: name them in {written}")
            outcome = train(job, progress, resumed)
        if distributed.is_main():
            self.report(folder, shown, outcome)
            folder.finish()
        return FitResult(str(folder.path), str(folder.model), outcome)

    def report(self, folder: RunFolder, shown: Plan, outcome: Outcome) -> None:
        """Write the run's report."""
        write_report(folder, self.config, shown, outcome, review=self.review(folder))

    def review(self, folder: RunFolder) -> Evaluation | None:
        """Look closely at the held-back ground with the kept model; None where there is none."""
        if not self.sources.validation:
            return None
        self.model.unpack(load_model(folder.model)[0])
        return review(
            self.model,
            self.covering(self.sources.validation, whole=True),
            self.sources.classes,
            self.precision,
            rgb=shown_bands(self.sources.bands),
            threads=self.config.training.threads,
        )

    def _open_folder(self) -> RunFolder:
        """Make the folder anew, or take the one to go on in."""
        about = self.about()
        folder = RunFolder(self.path, about)
        if self.resumed is not None:
            place.require_same_data(self.resumed, about, self.path)
        distributed.barrier()  # until all have looked at the folder as it was
        if self.resumed is None and distributed.is_main():
            folder.begin(self.config.text())
        return folder

    def job(self, folder: RunFolder) -> Job:
        """Put together what the loop needs."""
        config = self.config
        if config.data.class_weights == "balanced" and self.index is not None:
            self.model.head.class_weights.copy_(balanced_weights(self.index))
        return Job(
            model=self.model.to(self.device),
            objective=self.objective(),
            batches=self.stream(self.batch),
            open_probes=partial(self.stream, seed=PROBE_SEED),
            validate=self.validation(),
            folder=folder,
            settings=config.training,
            optimization=config.optimizer,
            device=self.device,
            deadline=self.deadline,
        )

    def validation(self) -> Validation | None:
        """Say how the model is scored on the held-back ground; None where there is none."""
        if not self.sources.validation:
            return None
        tiles = self.covering(self.sources.validation)
        return Validation(tiles, self.sources.classes, self.precision, self.config.training.threads)

    @property
    def precision(self) -> Precision:
        """The number format of the forward pass."""
        return Precision.choose(self.config.training.precision, self.device)

    def covering(
        self, parts: Sequence[Part], bands: Bands | None = None, *, whole: bool = False
    ) -> CoveringTiles:
        """Open the tiles that cover some ground: this process' share, or the `whole`."""
        return CoveringTiles(
            parts,
            bands or self.sources.bands,
            tile=self.config.data.tile,
            batch=self.batch,
            rank=0 if whole else distributed.rank(),
            world=1 if whole else distributed.world_size(),
        )

    def stream(self, batch: int, *, seed: int = 0) -> Indexed[Batch]:
        """Open training tiles; item i is a pure function of i.

        Args:
            batch: Tiles per item.
            seed: Added to the run's, for a stream apart from the training.
        """
        index = self.index if self.config.data.sampling == "balanced" else None
        return self.tiles(self.sources.train, self.sources.bands, batch, seed=seed, index=index)

    def tiles(
        self,
        parts: Sequence[Part],
        bands: Bands,
        batch: int,
        *,
        seed: int = 0,
        index: ClassIndex | None = None,
    ) -> TileStream:
        """Open random tiles of some ground: this process' share, of a stream apart all."""
        return TileStream(
            parts,
            bands,
            tile=self.config.data.tile,
            batch=batch,
            seed=self.config.training.seed + seed,
            scale=self.config.augment.scale,
            index=index,
            rank=0 if seed else distributed.rank(),
            world=1 if seed else distributed.world_size(),
        )


def per_pass(training: Training) -> int:
    """Count the tiles of one pass in this process.

    Raises:
        RssegError: The batch cannot be shared out evenly.
    """
    parts = training.accumulate * distributed.world_size()
    if training.batch % parts:
        raise RssegError(
            f"a batch of {training.batch} cannot be cut into {parts} equal parts",
            where="training.batch, training.accumulate",
            fix=f"training.batch={parts * max(1, training.batch // parts)}",
        )
    return training.batch // parts


def balanced_weights(index: ClassIndex) -> Tensor:
    """Weigh classes (K) by the inverse square root of their share, mean 1, capped."""
    shares = torch.tensor(index.shares, dtype=torch.float32)
    weights = torch.where(shares > 0, shares.clamp(min=1e-8).rsqrt(), 0.0)
    weights = weights / weights[shares > 0].mean()
    return weights.clamp(max=MAX_CLASS_WEIGHT)
