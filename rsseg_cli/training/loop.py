"""The one training loop: `fit` and `adapt` differ only in the job they hand to it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import Parameter

from rsseg_cli import distributed
from rsseg_cli.data.tiles import Batch
from rsseg_cli.errors import Interrupted
from rsseg_cli.plain import Json, Strict
from rsseg_cli.segmenter import Segmenter
from rsseg_cli.threads import Indexed, Prefetcher
from rsseg_cli.training import optimizer
from rsseg_cli.training.deadline import Deadline, Work
from rsseg_cli.training.folder import RunFolder
from rsseg_cli.training.meter import Meter, Outcome
from rsseg_cli.training.objectives import Objective
from rsseg_cli.training.passes import StepBatches, backward
from rsseg_cli.training.precision import Format, Precision
from rsseg_cli.training.prefetch import pinned
from rsseg_cli.training.progress import Progress
from rsseg_cli.training.room import Buffers, Room, explained
from rsseg_cli.training.step import TrainingStep, seed_for
from rsseg_cli.training.stop import StopSignal


class Training(Strict):
    """Settings of the loop."""

    steps: int = Field(20_000, ge=1)
    batch: int = Field(4, ge=1)
    """Tiles per update, over all processes."""
    accumulate: int = Field(1, ge=1)
    """Passes that one batch is cut into, to save memory."""
    precision: Format = "auto"
    recompute: bool = False
    """Drop activations inside the backbone's blocks and compute them again in backward."""
    compile: bool = False
    validate_every: int = Field(1_000, ge=1)
    log_every: int = Field(50, ge=1)
    save_every: int = Field(500, ge=1)
    """Steps between two states to resume from."""
    seed: int = Field(42, ge=0)
    threads: int = Field(4, ge=0)
    """Threads that read tiles ahead; 0 reads in the loop."""


@dataclass
class Job:
    """All that a run of the loop needs.

    Attributes:
        model: On its device.
        objective: Names the loss terms of a batch.
        batches: Item i is the i-th pass' batch: a pure function of i.
        open_probes: Opens labelled batches of a given size, apart from the training stream.
        validate: Scores the model; its result has at least `miou`. None: nothing to validate on.
            The last of the scores with the highest `merit`, else `miou`, is the best; a score
            with a `stop` ends the run, and says why.
        folder: Where files go.
        deadline: When the run must have come to rest.
        rate_start: Validate before the first step too: the model as it starts may be the best.
    """

    model: Segmenter
    objective: Objective
    batches: Indexed[Batch]
    open_probes: Callable[[int], Indexed[Batch]]
    validate: Callable[[Segmenter], dict[str, Json]] | None
    folder: RunFolder
    settings: Training
    optimization: optimizer.Optimization
    device: torch.device
    deadline: Deadline = field(default_factory=Deadline)
    rate_start: bool = False

    def works(self, step: int) -> list[Work]:
        """List what comes with step number `step`, from 1, until a state is written after it."""
        due = step % self.settings.validate_every == 0 or step == self.settings.steps
        rated = self.validate is not None and due
        return ["step", "validation", "save"] if rated else ["step", "save"]


def train(job: Job, progress: Progress, resumed: dict[str, Any] | None = None) -> Outcome:
    """Train `job.model` to the last step and leave the model files.

    Args:
        job: What to train on what.
        progress: Told about every step.
        resumed: A state written by an interrupted run, to go on from.

    Raises:
        Interrupted: Stopped from outside; the folder holds the state to resume from.
        RssegError: The loss is not finite or memory ran out; the last good state stays.
    """
    settings, model = job.settings, job.model
    model.backbone.recompute = settings.recompute
    if settings.compile:
        model.compile()
    updates = Updates(job)
    with explained():
        best, start = _begin(job, updates, progress, resumed)
    passes = range(start * settings.accumulate, settings.steps * settings.accumulate)
    prefetch = Prefetcher(pinned(job.batches, job.device), passes, threads=settings.threads)
    meter = Meter(prefetch, batch=settings.batch, device=job.device, folder=job.folder.path)
    score: dict[str, Json] | None = None
    model.train()

    with StopSignal() as stop, explained():
        stream = iter(prefetch)
        for index in range(start, settings.steps):
            # The first step compiles and warms up.
            with job.deadline.timing("step", usual=index > start):
                meter.add(index, updates.take(index, StepBatches(stream, settings.accumulate)))
            done = index + 1
            last = done == settings.steps
            progress.step(done)
            if done % settings.log_every == 0 or last:
                # The only point where the host waits for the device.
                record = meter.read(done, updates.lr) | job.objective.record()
                record["method"] = model.method.record()
                job.folder.add(record)
                progress.log(record)
            if job.validate and (done % settings.validate_every == 0 or last):
                meter.check()
                with job.deadline.timing("validation"):
                    score, best = _validate(job, job.validate, best, done, progress)
                model.train()
                last = last or "stop" in score
            if last:
                break
            late = job.deadline.near(*job.works(done + 1))
            ends = distributed.any_rank(stop.wanted or late)
            if done % settings.save_every == 0 or ends:
                meter.check()
                with job.deadline.timing("save"):
                    job.folder.save_resume(_state(done, job, updates, best))
            if ends:
                distributed.barrier()  # for the one that writes
                if late:
                    distributed.remember("time is up", "yes")
                raise Interrupted(
                    f"stopped after step {done:,} of {settings.steps:,}"
                    + ": the time of --max-time is up" * late,
                    where=str(job.folder.path),
                    fix="the same command with --resume",
                )

    _finish(job, best, score, done)
    return meter.outcome(done, best, score)


class Updates:
    """Takes the steps: gradients of all passes, then one update.

    Attributes:
        adam: The optimizer.
        scaler: Keeps small gradients of fp16 alive.
        room: Knows how many images of a pass fit into memory.
        probe_room: The same for probes, which may be larger.
        lr: Learning rate of the last step.
    """

    def __init__(self, job: Job) -> None:
        self.job, self.lr = job, 0.0
        alone = distributed.world_size() == 1
        self.room, self.probe_room = Room(retry=alone), Room(retry=alone)
        self.precision = Precision.choose(job.settings.precision, job.device)
        self.adam = optimizer.build(job.optimization, job.model)
        self.scaler = torch.amp.GradScaler(job.device.type, enabled=self.precision.scaled)
        self.tuned: list[Parameter] = [parameter for _, parameter in job.model.tuned()]
        unclipped = {id(parameter) for parameter in job.model.method.unclipped()}
        self.clipped = [one for one in self.tuned if id(one) not in unclipped]
        self.buffers = Buffers(job.model.method, job.model.head)

    def take(self, index: int, batches: StepBatches) -> dict[str, Tensor]:
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
            room=self.probe_room,
        )
        model.method.before_step(step)
        self.buffers.keep()
        terms = self.room.run(
            lambda: self._backward(index, batches), self._undo, lambda: batches.kept[0]
        )
        # Scaled as they are: what overflows in one process is skipped in all.
        distributed.average_gradients(self.tuned)
        self.scaler.unscale_(self.adam)
        model.method.before_update(step)
        if job.optimization.clip is not None:
            torch.nn.utils.clip_grad_norm_(self.clipped, job.optimization.clip)
        self.scaler.step(self.adam)
        self.scaler.update()
        # Frees the gradients' memory before the next forward.
        self.adam.zero_grad(set_to_none=True)
        model.method.after_step(step)
        job.objective.after_step(model, index)
        return terms

    def _backward(self, index: int, batches: StepBatches) -> dict[str, Tensor]:
        """Leave the gradients of a step; a pure function of weights, seed and index."""
        job = self.job
        return backward(
            job.model,
            job.objective,
            (self.room.cut(batch.to(job.device)) for batch in batches),
            count=batches.count,
            seed=seed_for(job.settings.seed, index),
            autocast=self.precision.autocast,
            scale=self.scaler.scale,
            together=True,
        )

    def _undo(self) -> None:
        """Put back what half a step has changed."""
        self.adam.zero_grad(set_to_none=True)
        self.buffers.restore()
        self.job.objective.undo()

    def state(self) -> dict[str, Any]:
        """Collect what must survive a restart."""
        return {
            "optimizer": self.adam.state_dict(),
            "scaler": self.scaler.state_dict(),
            "room": [self.room.images, self.probe_room.images],
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Put back what `state` collected, perhaps on another device."""
        optimizer.restore(self.adam, state["optimizer"])
        if state["scaler"]:  # empty where no loss was scaled
            self.scaler.load_state_dict(state["scaler"])
        self.room.images, self.probe_room.images = state["room"]


def _validate(
    job: Job,
    validate: Callable[[Segmenter], dict[str, Json]],
    best: dict[str, Json] | None,
    done: int,
    progress: Progress,
) -> tuple[dict[str, Json], dict[str, Json]]:
    """Score the model and keep it if it is the best; return its score and the best one."""
    score = validate(job.model)
    best = _keep_best(job, best, score, done)
    job.folder.add({"step": done, "val": score})
    progress.scored(done, score, best)
    return score, best


def _finish(
    job: Job, best: dict[str, Json] | None, score: dict[str, Json] | None, done: int
) -> None:
    """Write the last model, also as the model to use when nothing was validated."""
    for path in (job.folder.last,) if best else (job.folder.last, job.folder.model):
        job.folder.save_model(path, job.model, score, done)


def _keep_best(
    job: Job, best: dict[str, Json] | None, score: dict[str, Json], step: int
) -> dict[str, Json]:
    """Write the model file if none was better so far (a score without numbers counts as 0)."""
    if best is not None and _merit(score) < _merit(best):
        return best
    job.folder.save_model(job.folder.model, job.model, score, step)
    return score | {"step": step}


def _merit(score: dict[str, Json]) -> float:
    value = score.get("merit", score.get("miou"))
    return float(value) if isinstance(value, (int, float)) else 0.0


def _state(done: int, job: Job, updates: Updates, best: dict[str, Json] | None) -> dict[str, Any]:
    return updates.state() | {
        "step": done,
        "model": job.model.pack(),
        "objective": job.objective.state(),
        "best": best,
    }


def _begin(
    job: Job, updates: Updates, progress: Progress, state: dict[str, Any] | None
) -> tuple[dict[str, Json] | None, int]:
    """Rate the start or put a saved state back; return the best score so far and the first step."""
    packed = sum(tensor.nbytes for tensor in job.model.pack().values())
    job.deadline.expect_state(packed + sum(2 * tensor.nbytes for tensor in updates.tuned))
    if state is None:
        if job.validate and job.rate_start:
            return _validate(job, job.validate, None, 0, progress)[1], 0
        return None, 0
    job.model.unpack(state["model"])
    updates.restore(state)
    job.objective.restore(state["objective"])
    job.folder.cut(state["step"])
    return state["best"], state["step"]
