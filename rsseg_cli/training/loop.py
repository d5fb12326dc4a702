"""The training loop of `fit` and `adapt`, which pass different jobs to it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import Parameter

from rsseg_cli import distributed
from rsseg_cli.choices import Format
from rsseg_cli.contract import batch_shard
from rsseg_cli.data.tiles.tile_stream import Batch
from rsseg_cli.errors import Interrupted, RssegError
from rsseg_cli.number_format import counted
from rsseg_cli.segmenter import Segmenter
from rsseg_cli.settings import Json, Strict
from rsseg_cli.threads import Indexed, Prefetcher
from rsseg_cli.training import optimizer
from rsseg_cli.training.deadline import Deadline, Work
from rsseg_cli.training.gradient_accumulation import accumulate_gradients
from rsseg_cli.training.micro_batch import (
    explaining_out_of_memory,
    find_micro_batch,
    is_out_of_memory,
    memory_is_limited,
    probe_update,
)
from rsseg_cli.training.objectives import Objective
from rsseg_cli.training.precision import Precision
from rsseg_cli.training.prefetch import pinned
from rsseg_cli.training.progress import Progress
from rsseg_cli.training.run_folder import RunFolder
from rsseg_cli.training.signals import StopSignal
from rsseg_cli.training.step_log import StepLog, TrainingResult
from rsseg_cli.training.training_step import TrainingStep, seed_for


class Training(Strict):
    """Settings of the training loop."""

    steps: int = Field(20_000, ge=1)
    batch: int = Field(4, ge=1)
    """Tiles per update, over all processes."""
    grad_accumulation: int = Field(1, ge=1)
    """Minimum number of micro-batches per update; more if one does not fit into memory."""
    precision: Format = "auto"
    activation_checkpointing: bool = False
    """Recompute the activations of the backbone's blocks in backward, instead of storing them."""
    compile: bool = False
    validate_every: int = Field(1_000, ge=1)
    log_every: int = Field(50, ge=1)
    save_every: int = Field(500, ge=1)
    """Number of steps between two resume states."""
    seed: int = Field(42, ge=0)
    num_workers: int = Field(4, ge=0)
    """Number of threads that prefetch tiles; 0 reads them in the loop."""


@dataclass
class Job:
    """Model, data and settings of a run of the loop.

    Attributes:
        model: On its device.
        open_batches: Opens this rank's micro-batches of a given size. Item i is a pure function of
            i; the tiles of a step do not depend on the size.
        open_probes: Opens labelled batches of a given size, outside the training stream.
        validate: Computes the scores of the model, at least `miou`; None without validation data.
            The best score is the last one with the highest `merit`, else `miou`. A score with a
            `stop` ends the run, for the reason given in it.
        deadline: Time limit of the run.
        validate_start: Also validate before the first step: the initial model may be the best.
        multiple: Micro-batches are a multiple of this: 2 if each holds two domains.
    """

    model: Segmenter
    objective: Objective
    open_batches: Callable[[int], Indexed[Batch]]
    open_probes: Callable[[int], Indexed[Batch]]
    validate: Callable[[Segmenter], dict[str, Json]] | None
    folder: RunFolder
    settings: Training
    optimization: optimizer.Optimization
    device: torch.device
    deadline: Deadline = field(default_factory=Deadline)
    validate_start: bool = False
    multiple: int = 1

    def work_of(self, step: int) -> list[Work]:
        """List the work of step number `step`, from 1, up to a resume state after it."""
        due = step % self.settings.validate_every == 0 or step == self.settings.steps
        return ["step", "validation", "save"] if self.validate and due else ["step", "save"]


def train(job: Job, progress: Progress, resumed: dict[str, Any] | None = None) -> TrainingResult:
    """Train `job.model` to the last step and write the model files.

    Args:
        job: The model, the data and the settings.
        progress: Shows the progress.
        resumed: Resume state of an interrupted run.

    Raises:
        Interrupted: By a signal or the time limit, after writing a resume state.
        RssegError: The loss is not finite, or memory ran out.
    """
    settings, model = job.settings, job.model
    model.backbone.recompute = settings.activation_checkpointing
    if settings.compile:
        model.compile()
    trainer = Trainer(job)
    with explaining_out_of_memory():
        trainer.choose_micro_batch(progress, resumed)
        best, start = _begin(job, trainer, progress, resumed)
    per_step = trainer.micro_batches
    batches = pinned(job.open_batches(trainer.micro_batch), job.device)
    numbers = range(start * per_step, settings.steps * per_step)
    prefetch = Prefetcher(batches, numbers, threads=settings.num_workers)
    log = StepLog(prefetch, batch=settings.batch, device=job.device, folder=job.folder.path)
    score: dict[str, Json] | None = None
    model.train()

    with StopSignal() as stop, explaining_out_of_memory():
        stream = iter(prefetch)
        for index in range(start, settings.steps):
            # The first step takes longer.
            with job.deadline.timing("step", usual=index > start):
                log.add(index, trainer.step(index, stream))
            done = index + 1
            last = done == settings.steps
            progress.step(done)
            if done % settings.log_every == 0 or last:
                # The only point where the host waits for the device.
                record = log.read(done, trainer.lr) | job.objective.record()
                record["method"] = model.method.log_entry()
                job.folder.append_metrics(record)
                progress.log(record)
            if job.validate and (done % settings.validate_every == 0 or last):
                log.check()
                with job.deadline.timing("validation"):
                    score, best = _validate(job, best, done, progress)
                model.train()
                last = last or "stop" in score
            if last:
                break
            late = job.deadline.near(*job.work_of(done + 1))
            ends = distributed.any_rank(stop.received or late)
            if done % settings.save_every == 0 or ends:
                log.check()
                with job.deadline.timing("save"):
                    job.folder.save_resume(trainer.state(done, best))
            if ends:
                distributed.barrier()  # until rank 0 has written the resume state
                if late:
                    distributed.save_for_restart("time is up", "yes")
                raise Interrupted(
                    f"stopped after step {done:,} of {settings.steps:,}"
                    + ": the time of --max-time is up" * late,
                    where=str(job.folder.path),
                    fix="the same command with --resume",
                )

    job.folder.save_model(job.folder.last, model, score, done)
    if best is None:
        job.folder.save_model(job.folder.model, model, score, done)
    return log.result(done, best, score)


class Trainer:
    """Runs training steps: accumulates the gradients of all micro-batches, then updates.

    Attributes:
        adam: The optimizer.
        scaler: Scales the loss, so that small gradients do not underflow in fp16.
        largest: Configured number of tiles per micro-batch and rank.
        micro_batch: Actual number of tiles per micro-batch and rank.
        lr: Learning rate of the last step.
    """

    def __init__(self, job: Job) -> None:
        self.job, self.lr = job, 0.0
        count = job.settings.grad_accumulation * distributed.world_size()
        self.micro_batch = self.largest = job.settings.batch // count
        self.precision = Precision.choose(job.settings.precision, job.device)
        self.adam = optimizer.build(job.optimization, job.model)
        self.scaler = torch.amp.GradScaler(job.device.type, enabled=self.precision.scaled)
        self.parameters: list[Parameter] = [p for _, p in job.model.trainable_parameters()]
        not_clipped = {id(parameter) for parameter in job.model.method.no_grad_clip()}
        self.clipped = [p for p in self.parameters if id(p) not in not_clipped]

    @property
    def micro_batches(self) -> int:
        """Number of micro-batches per step."""
        return self.job.settings.grad_accumulation * self.largest // self.micro_batch

    def step(self, index: int, stream: Iterator[Batch]) -> dict[str, Tensor]:
        """Run step `index`, from 0; return the mean of each loss term, on the device."""
        job, model = self.job, self.job.model
        self.lr = optimizer.set_lr(self.adam, job.optimization, index, job.settings.steps)
        step = TrainingStep(
            index=index,
            total=job.settings.steps,
            model=model,
            objective=job.objective,
            precision=self.precision,
            device=job.device,
            seed=job.settings.seed,
            open_probes=job.open_probes,
        )
        model.method.before_step(step)
        with batch_shard.sharded():
            terms = accumulate_gradients(
                model,
                job.objective,
                self._read(stream),
                seeds=self._seeds(index),
                autocast=self.precision.autocast,
                scale=self.scaler.scale,
            )
        # Before unscaling, so that an overflow on one rank skips the update on all.
        distributed.average_gradients(self.parameters)
        self.scaler.unscale_(self.adam)
        model.method.before_update(step)
        if job.optimization.clip_grad_norm is not None:
            torch.nn.utils.clip_grad_norm_(self.clipped, job.optimization.clip_grad_norm)
        self.scaler.step(self.adam)
        self.scaler.update()
        # Frees the gradients' memory before the next forward.
        self.adam.zero_grad(set_to_none=True)
        model.method.after_step(step)
        job.objective.after_step(model, index)
        return terms

    def _seeds(self, index: int) -> list[int]:
        """Return the seeds of the model's random numbers, one per micro-batch."""
        rank, seed = distributed.rank(), self.job.settings.seed
        return [seed_for(seed, index, rank << 16 | n) for n in range(self.micro_batches)]

    def _read(self, stream: Iterator[Batch]) -> Iterator[Batch]:
        """Yield micro-batches on the device."""
        while True:
            try:
                batch = next(stream)
            except (RuntimeError, MemoryError) as error:  # of the host, not of the device
                if not is_out_of_memory(error):
                    raise
                raise RssegError(
                    "out of memory while reading tiles",
                    where="training.num_workers, training.batch",
                    fix="--set training.num_workers=1, or a smaller --batch",
                ) from error
            yield batch.to(self.job.device)

    def choose_micro_batch(self, progress: Progress, resumed: dict[str, Any] | None) -> None:
        """Choose the micro-batch: that of the resumed run, else one that fits into memory.

        A run that is resumed with another number of processes chooses anew.
        """
        job = self.job
        if resumed is not None and resumed["largest"] == self.largest:
            self.micro_batch = resumed["micro_batch"]
            return
        if not memory_is_limited(job.device):
            return

        def probe(size: int) -> None:
            batch = job.open_batches(size)[0].to(job.device)
            probe_update(job.model, job.objective, batch, self.adam, self.precision)

        self.micro_batch = find_micro_batch(self.largest, job.multiple, probe)
        tiles = counted(self.micro_batch, "tile")
        progress.print(f"memory   micro-batches of {tiles}, {self.micro_batches} per step")

    def state(self, done: int, best: dict[str, Json] | None) -> dict[str, Any]:
        """Return the resume state after `done` steps."""
        return {
            "step": done,
            "best": best,
            "model": self.job.model.adapter_state(),
            "objective": self.job.objective.state(),
            "optimizer": self.adam.state_dict(),
            "scaler": self.scaler.state_dict(),
            "largest": self.largest,
            "micro_batch": self.micro_batch,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Load a resume state, perhaps from another device."""
        self.job.model.load_adapter_state(state["model"], where=self.job.folder.resume)
        self.job.objective.restore(state["objective"])
        optimizer.restore(self.adam, state["optimizer"])
        if state["scaler"]:  # empty unless fp16
            self.scaler.load_state_dict(state["scaler"])


def _validate(
    job: Job, best: dict[str, Json] | None, done: int, progress: Progress
) -> tuple[dict[str, Json], dict[str, Json]]:
    """Validate the model and save it if none was better; return its score and the best score."""
    assert job.validate is not None
    score = job.validate(job.model)
    if best is None or _merit(score) >= _merit(best):
        job.folder.save_model(job.folder.model, job.model, score, done)
        best = score | {"step": done}
    job.folder.append_metrics({"step": done, "val": score})
    progress.scored(done, score, best)
    return score, best


def _merit(score: dict[str, Json]) -> float:
    """Return the number by which models are compared; 0 if the score has none."""
    value = score.get("merit", score.get("miou"))
    return float(value) if isinstance(value, (int, float)) else 0.0


def _begin(
    job: Job, trainer: Trainer, progress: Progress, state: dict[str, Any] | None
) -> tuple[dict[str, Json] | None, int]:
    """Validate the initial model or load a resume state; return the best score and first step."""
    packed = sum(tensor.nbytes for tensor in job.model.adapter_state().values())
    job.deadline.expect_state(packed + sum(2 * tensor.nbytes for tensor in trainer.parameters))
    if state is None:
        if job.validate and job.validate_start:
            return _validate(job, None, 0, progress)[1], 0
        return None, 0
    trainer.restore(state)
    job.folder.truncate_metrics(state["step"])
    return state["best"], state["step"]
