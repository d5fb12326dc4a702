"""The training loop; `fit` and `adapt` differ only in the job that they pass to it."""

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
    """Settings of the loop."""

    steps: int = Field(20_000, ge=1)
    batch: int = Field(4, ge=1)
    """Tiles per update, over all processes."""
    grad_accumulation: int = Field(1, ge=1)
    """Least number of micro-batches per update; more where memory is short."""
    precision: Format = "auto"
    activation_checkpointing: bool = False
    """Drop activations inside the backbone's blocks and compute them again in backward."""
    compile: bool = False
    validate_every: int = Field(1_000, ge=1)
    log_every: int = Field(50, ge=1)
    save_every: int = Field(500, ge=1)
    """Steps between two states to resume from."""
    seed: int = Field(42, ge=0)
    num_workers: int = Field(4, ge=0)
    """Threads that read tiles ahead; 0 reads in the loop."""


@dataclass
class Job:
    """Everything that a run of the loop needs.

    Attributes:
        model: On its device.
        objective: Computes the loss terms of a batch.
        open_batches: Opens micro-batches of so many tiles of this process. Item i is the i-th
            one, a pure function of i; the tiles of a step do not depend on the size.
        open_probes: Opens labelled batches of a given size, apart from the training stream.
        validate: Scores the model; its result has at least `miou`. None: nothing to validate on.
            The last of the scores with the highest `merit`, else `miou`, is the best; a score
            with a `stop` ends the run, and gives the reason.
        folder: Folder of the run's files.
        deadline: The time by which the run must have stopped.
        rate_start: Validate before the first step too: the model as it starts may be the best.
        multiple: Tiles of a micro-batch are a multiple of this: 2 where each holds two domains.
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
    rate_start: bool = False
    multiple: int = 1

    def works(self, step: int) -> list[Work]:
        """List what comes with step number `step`, from 1, until a state is written after it."""
        due = step % self.settings.validate_every == 0 or step == self.settings.steps
        rated = self.validate is not None and due
        return ["step", "validation", "save"] if rated else ["step", "save"]


def train(job: Job, progress: Progress, resumed: dict[str, Any] | None = None) -> TrainingResult:
    """Train `job.model` to the last step and write the model files.

    Args:
        job: The model, the data and the settings.
        progress: Shows every step.
        resumed: The state of an interrupted run to continue.

    Raises:
        Interrupted: Stopped from outside; the folder holds the state to resume from.
        RssegError: The loss is not finite or memory ran out; the last good state stays.
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
            # The first step compiles and warms up.
            with job.deadline.timing("step", usual=index > start):
                log.add(index, trainer.step(index, stream))
            done = index + 1
            last = done == settings.steps
            progress.step(done)
            if done % settings.log_every == 0 or last:
                # The only point where the host waits for the device.
                record = log.read(done, trainer.lr) | job.objective.record()
                record["method"] = model.method.log_entry()
                job.folder.add(record)
                progress.log(record)
            if job.validate and (done % settings.validate_every == 0 or last):
                log.check()
                with job.deadline.timing("validation"):
                    score, best = _validate(job, job.validate, best, done, progress)
                model.train()
                last = last or "stop" in score
            if last:
                break
            late = job.deadline.near(*job.works(done + 1))
            ends = distributed.any_rank(stop.wanted or late)
            if done % settings.save_every == 0 or ends:
                log.check()
                with job.deadline.timing("save"):
                    job.folder.save_resume(_state(done, job, trainer, best))
            if ends:
                distributed.barrier()  # for the one that writes
                if late:
                    distributed.save_for_restart("time is up", "yes")
                raise Interrupted(
                    f"stopped after step {done:,} of {settings.steps:,}"
                    + ": the time of --max-time is up" * late,
                    where=str(job.folder.path),
                    fix="the same command with --resume",
                )

    _finish(job, best, score, done)
    return log.outcome(done, best, score)


class Trainer:
    """Takes the steps: the gradients of all micro-batches, then one update.

    Attributes:
        adam: The optimizer.
        scaler: Scales the loss so that small gradients survive in fp16.
        largest: Tiles of a micro-batch as configured.
        micro_batch: Tiles of a micro-batch, in this process.
        lr: Learning rate of the last step.
    """

    def __init__(self, job: Job) -> None:
        self.job, self.lr = job, 0.0
        parts = job.settings.grad_accumulation * distributed.world_size()
        self.micro_batch = self.largest = job.settings.batch // parts
        self.precision = Precision.choose(job.settings.precision, job.device)
        self.adam = optimizer.build(job.optimization, job.model)
        self.scaler = torch.amp.GradScaler(job.device.type, enabled=self.precision.scaled)
        self.tuned: list[Parameter] = [
            parameter for _, parameter in job.model.trainable_parameters()
        ]
        outside = {id(parameter) for parameter in job.model.method.no_grad_clip()}
        self.clipped = [p for p in self.tuned if id(p) not in outside]

    @property
    def micro_batches(self) -> int:
        """Number of micro-batches per step."""
        return self.job.settings.grad_accumulation * self.largest // self.micro_batch

    def step(self, index: int, stream: Iterator[Batch]) -> dict[str, Tensor]:
        """Take step `index`, from 0; return the mean of each loss term, on the device."""
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
        # Scaled as they are: what overflows in one process is skipped in all.
        distributed.average_gradients(self.tuned)
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
        """List the seeds of the model's random numbers, one per micro-batch."""
        rank, seed = distributed.rank(), self.job.settings.seed
        return [seed_for(seed, index, rank << 16 | n) for n in range(self.micro_batches)]

    def _read(self, stream: Iterator[Batch]) -> Iterator[Batch]:
        """Yield micro-batches on the device."""
        while True:
            try:
                batch = next(stream)
            except (RuntimeError, MemoryError) as error:  # no smaller micro-batch would help
                if not is_out_of_memory(error):
                    raise
                raise RssegError(
                    "out of memory while tiles were read",
                    where="training.num_workers, training.batch",
                    fix="--set training.num_workers=1, or a smaller --batch",
                ) from error
            yield batch.to(self.job.device)

    def choose_micro_batch(self, progress: Progress, resumed: dict[str, Any] | None) -> None:
        """Take the micro-batch of a resumed run, else find one that fits if memory is limited.

        A run that is resumed by another number of processes starts from another size.
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
        progress.say(f"memory   micro-batches of {tiles}, {self.micro_batches} per step")

    def state(self) -> dict[str, Any]:
        """Return what must survive a restart."""
        return {
            "optimizer": self.adam.state_dict(),
            "scaler": self.scaler.state_dict(),
            "largest": self.largest,
            "micro_batch": self.micro_batch,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Load the optimizer and the scaler of a state, perhaps of another device."""
        optimizer.restore(self.adam, state["optimizer"])
        if state["scaler"]:  # empty where no loss was scaled
            self.scaler.load_state_dict(state["scaler"])


def _validate(
    job: Job,
    validate: Callable[[Segmenter], dict[str, Json]],
    best: dict[str, Json] | None,
    done: int,
    progress: Progress,
) -> tuple[dict[str, Json], dict[str, Json]]:
    """Validate the model and save it if it is the best; return its score and the best one."""
    score = validate(job.model)
    best = _keep_best(job, best, score, done)
    job.folder.add({"step": done, "val": score})
    progress.scored(done, score, best)
    return score, best


def _finish(
    job: Job, best: dict[str, Json] | None, score: dict[str, Json] | None, done: int
) -> None:
    """Save the last model, also as the best one when nothing was validated."""
    for path in (job.folder.last,) if best else (job.folder.last, job.folder.model):
        job.folder.save_model(path, job.model, score, done)


def _keep_best(
    job: Job, best: dict[str, Json] | None, score: dict[str, Json], step: int
) -> dict[str, Json]:
    """Save the model if none was better so far (a score without numbers counts as 0)."""
    if best is not None and _merit(score) < _merit(best):
        return best
    job.folder.save_model(job.folder.model, job.model, score, step)
    return score | {"step": step}


def _merit(score: dict[str, Json]) -> float:
    value = score.get("merit", score.get("miou"))
    return float(value) if isinstance(value, (int, float)) else 0.0


def _state(done: int, job: Job, trainer: Trainer, best: dict[str, Json] | None) -> dict[str, Any]:
    return trainer.state() | {
        "step": done,
        "model": job.model.adapter_state(),
        "objective": job.objective.state(),
        "best": best,
    }


def _begin(
    job: Job, trainer: Trainer, progress: Progress, state: dict[str, Any] | None
) -> tuple[dict[str, Json] | None, int]:
    """Validate the start or load a saved state; return the best score and the first step."""
    packed = sum(tensor.nbytes for tensor in job.model.adapter_state().values())
    job.deadline.expect_state(packed + sum(2 * tensor.nbytes for tensor in trainer.tuned))
    if state is None:
        if job.validate and job.rate_start:
            return _validate(job, job.validate, None, 0, progress)[1], 0
        return None, 0
    job.model.load_adapter_state(state["model"])
    trainer.restore(state)
    job.objective.restore(state["objective"])
    job.folder.cut(state["step"])
    return state["best"], state["step"]
