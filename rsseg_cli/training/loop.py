"""The one training loop: `fit` and `adapt` differ only in the job they hand to it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from pydantic import Field
from torch import Tensor
from torch.optim import Optimizer

from rsseg_cli.contract import Json, Strict
from rsseg_cli.data.tiles import Batch
from rsseg_cli.errors import Interrupted, RssegError
from rsseg_cli.segmenter import Segmenter
from rsseg_cli.training import distributed, optimizer
from rsseg_cli.training.folder import RunFolder
from rsseg_cli.training.memory import peak_memory_mb
from rsseg_cli.training.objectives import Objective
from rsseg_cli.training.precision import Format, Precision
from rsseg_cli.training.prefetch import Indexed, Prefetch
from rsseg_cli.training.progress import Progress
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
            Of several scores the one with the highest `merit`, else `miou`, is the best; a score
            with a `stop` ends the run, and says why.
        folder: Where files go.
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
    rate_start: bool = False


@dataclass
class Outcome:
    """What a finished run says of itself: `fit --json` prints it."""

    steps: int
    seconds: float
    images_per_s: float
    peak_memory_mb: float
    best: dict[str, Json] | None
    last: dict[str, Json] | None


def train(job: Job, progress: Progress, resumed: dict[str, Any] | None = None) -> Outcome:
    """Train `job.model` to the last step and leave the model files.

    Args:
        job: What to train on what.
        progress: Told about every step.
        resumed: A state written by an interrupted run, to go on from.

    Raises:
        Interrupted: Stopped from outside; the folder holds the state to resume from.
        RssegError: The loss is not finite; the last good state stays in the folder.
    """
    settings, model, method = job.settings, job.model, job.model.method
    precision = Precision.choose(settings.precision, job.device)
    model.backbone.recompute = settings.recompute
    if settings.compile:
        model.compile()
    adam = optimizer.build(job.optimization, model)
    scaler = torch.amp.GradScaler(job.device.type, enabled=precision.scaled)
    best, start = _begin(job, adam, scaler, progress, resumed)
    tuned = [parameter for _, parameter in model.tuned()]
    unclipped = {id(parameter) for parameter in method.unclipped()}
    clipped = [parameter for parameter in tuned if id(parameter) not in unclipped]
    passes = range(start * settings.accumulate, settings.steps * settings.accumulate)
    prefetch = Prefetch(job.batches, passes, threads=settings.threads)
    meter = Meter(job, prefetch)
    score: dict[str, Json] | None = None
    model.train()

    with StopSignal() as stop:
        batches: Iterator[Batch] = iter(prefetch)
        for index in range(start, settings.steps):
            lr = optimizer.set_lr(adam, job.optimization, index, settings.steps)
            step = TrainingStep(
                index=index,
                total=settings.steps,
                model=model,
                objective=job.objective,
                precision=precision,
                device=job.device,
                seed=settings.seed,
                open_probes=job.open_probes,
            )
            method.before_step(step)
            # From here on a step is a pure function of weights, seed and index: resuming is exact.
            torch.manual_seed(seed_for(settings.seed, index, distributed.rank()))
            for _ in range(settings.accumulate):
                batch = next(batches).to(job.device)
                with precision.autocast():
                    terms = job.objective(model, batch)
                loss = torch.stack(list(terms.values())).sum() / settings.accumulate
                torch.autograd.backward(scaler.scale(loss))
                meter.add(index, terms)
            scaler.unscale_(adam)
            distributed.average_gradients(tuned)
            method.before_update(step)
            if job.optimization.clip is not None:
                torch.nn.utils.clip_grad_norm_(clipped, job.optimization.clip)
            scaler.step(adam)
            scaler.update()
            adam.zero_grad(set_to_none=True)  # frees the gradients' memory before the next forward
            method.after_step(step)
            job.objective.after_step(model, index)

            done = index + 1
            last = done == settings.steps
            progress.step(done)
            if done % settings.log_every == 0 or last:
                # The only point where the host waits for the device.
                record = meter.read(done, lr) | job.objective.record()
                record["method"] = method.record()
                job.folder.add(record)
                progress.log(record)
            if job.validate and (done % settings.validate_every == 0 or last):
                meter.check(done)
                score, best = _validate(job, job.validate, best, done, progress)
                model.train()
                last = last or "stop" in score
            if last:
                break
            if done % settings.save_every == 0 or stop.wanted:
                meter.check(done)
                job.folder.save_resume(_state(done, job, adam, scaler, best))
            if stop.wanted:
                raise Interrupted(
                    f"stopped after step {done:,} of {settings.steps:,}",
                    where=str(job.folder.path),
                    fix="the same command with --resume",
                )

    _finish(job, best, score, done)
    return meter.outcome(done, best, score)


class Meter:
    """Sums what the log shows, on the device; only `read` and `check` wait for it."""

    def __init__(self, job: Job, prefetch: Prefetch[Batch]) -> None:
        self.job, self.prefetch = job, prefetch
        self.started = self.since = time.perf_counter()
        self.waited = 0.0
        self.passes = self.all_passes = 0
        self.sums: dict[str, Tensor] = {}
        self.bad = torch.full((), -1, device=job.device)

    def add(self, index: int, terms: dict[str, Tensor]) -> None:
        """Count one pass; remember the first step whose loss is not finite."""
        self.passes += 1
        self.all_passes += 1
        for name, term in terms.items():
            value = term.detach().float()
            self.sums[name] = self.sums[name] + value if name in self.sums else value
            broken = ~torch.isfinite(value) & (self.bad < 0)
            self.bad = torch.where(broken, index + 1, self.bad)

    def check(self, step: int) -> None:
        """Stop the run if a loss was not finite up to `step`."""
        bad = int(self.bad)
        if bad >= 0:
            raise RssegError(
                f"the loss is not a finite number at step {bad:,}",
                where=str(self.job.folder.path),
                fix="a lower learning rate (--set optimizer.lr), optimizer.clip=1.0 or "
                "training.precision=bf16; --resume goes on from the last good state",
            )

    def read(self, step: int, lr: float) -> dict[str, Json]:
        """Give the line for the metrics since the last one, and start anew."""
        self.check(step)
        now, settings = time.perf_counter(), self.job.settings
        seconds = max(now - self.since, 1e-9)
        images = self.passes * settings.batch / settings.accumulate
        losses = {name: float(value) / self.passes for name, value in self.sums.items()}
        record: dict[str, Json] = {
            "step": step,
            "loss": sum(losses.values()),
            "losses": {**losses},
            "lr": lr,
            "images_per_s": images / seconds,
            "wait": (self.prefetch.waited - self.waited) / seconds,
            "memory_mb": peak_memory_mb(self.job.device),
        }
        self.since, self.waited, self.passes, self.sums = now, self.prefetch.waited, 0, {}
        return record

    def outcome(
        self, steps: int, best: dict[str, Json] | None, last: dict[str, Json] | None
    ) -> Outcome:
        """Sum the run up."""
        seconds = time.perf_counter() - self.started
        images = self.all_passes * self.job.settings.batch / self.job.settings.accumulate
        memory = peak_memory_mb(self.job.device)
        return Outcome(steps, seconds, images / seconds, memory, best, last)


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
    job.folder.resume.unlink(missing_ok=True)


def _keep_best(
    job: Job, best: dict[str, Json] | None, score: dict[str, Json], step: int
) -> dict[str, Json]:
    """Write the model file if it is the best so far (a score without numbers counts as 0)."""
    if best is not None and _merit(score) <= _merit(best):
        return best
    job.folder.save_model(job.folder.model, job.model, score, step)
    return score | {"step": step}


def _merit(score: dict[str, Json]) -> float:
    value = score.get("merit", score.get("miou"))
    return float(value) if isinstance(value, (int, float)) else 0.0


def _state(
    done: int,
    job: Job,
    adam: Optimizer,
    scaler: torch.amp.GradScaler,
    best: dict[str, Json] | None,
) -> dict[str, Any]:
    return {
        "step": done,
        "model": job.model.pack(),
        "optimizer": adam.state_dict(),
        "scaler": scaler.state_dict(),
        "objective": job.objective.state(),
        "best": best,
    }


def _begin(
    job: Job,
    adam: Optimizer,
    scaler: torch.amp.GradScaler,
    progress: Progress,
    state: dict[str, Any] | None,
) -> tuple[dict[str, Json] | None, int]:
    """Rate the start or put a saved state back; return the best score so far and the first step."""
    if state is None:
        if job.validate and job.rate_start:
            return _validate(job, job.validate, None, 0, progress)[1], 0
        return None, 0
    job.model.unpack(state["model"])
    adam.load_state_dict(state["optimizer"])
    scaler.load_state_dict(state["scaler"])
    job.objective.restore(state["objective"])
    job.folder.cut(state["step"])
    return state["best"], state["step"]
