"""Log of the training steps, and the summary of a run."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from rsseg_cli import distributed
from rsseg_cli.data.tiles.tile_stream import Batch
from rsseg_cli.errors import RssegError
from rsseg_cli.memory import peak_memory_mb
from rsseg_cli.settings import Json
from rsseg_cli.threads import Prefetcher

NEVER = 2**62
"""Number of the first step with a loss that is not finite, as long as there is none."""


@dataclass
class TrainingResult:
    """Summary of a finished run, as in `fit --json`."""

    steps: int
    seconds: float
    images_per_s: float
    peak_memory_mb: float
    best: dict[str, Json] | None
    last: dict[str, Json] | None


class StepLog:
    """Sums of losses, kept on the device; only `read` and `check` wait for it.

    Args:
        batch: Images per step.
        folder: Folder of the run, for error messages.
    """

    def __init__(
        self, prefetch: Prefetcher[Batch], *, batch: int, device: torch.device, folder: Path
    ) -> None:
        self.prefetch, self.batch, self.device, self.folder = prefetch, batch, device, folder
        self.started = self.since = time.perf_counter()
        self.waited = 0.0
        self.steps = self.all_steps = 0
        self.sums: dict[str, Tensor] = {}
        self.first_nonfinite = torch.full((), NEVER, device=device)

    def add(self, index: int, terms: dict[str, Tensor]) -> None:
        """Add the loss terms of step `index`, from 0."""
        self.steps += 1
        self.all_steps += 1
        for name, value in terms.items():
            self.sums[name] = self.sums[name] + value if name in self.sums else value
            first = ~torch.isfinite(value) & (self.first_nonfinite == NEVER)
            self.first_nonfinite = torch.where(first, index + 1, self.first_nonfinite)

    def check(self) -> None:
        """Raise an RssegError if a loss on any rank was not finite; all ranks call this."""
        step = int(distributed.reduce_min(self.first_nonfinite))
        if step != NEVER:
            raise RssegError(
                f"the loss is not a finite number at step {step:,}",
                where=str(self.folder),
                fix="a lower learning rate (--set optimizer.lr), optimizer.clip_grad_norm=1.0 or "
                "training.precision=bf16; --resume continues from the last good state",
            )

    def read(self, step: int, lr: float) -> dict[str, Json]:
        """Return the metrics since the last call, and reset the sums."""
        self.check()
        now = time.perf_counter()
        seconds = max(now - self.since, 1e-9)
        sums = distributed.reduce_mean(torch.stack(list(self.sums.values()))).tolist()
        losses = {name: value / self.steps for name, value in zip(self.sums, sums, strict=True)}
        record: dict[str, Json] = {
            "step": step,
            "loss": sum(losses.values()),
            "losses": {**losses},
            "lr": lr,
            "images_per_s": self.steps * self.batch / seconds,
            "wait": (self.prefetch.waited - self.waited) / seconds,
            "memory_mb": peak_memory_mb(self.device),
        }
        self.since, self.waited, self.steps, self.sums = now, self.prefetch.waited, 0, {}
        return record

    def result(
        self, steps: int, best: dict[str, Json] | None, last: dict[str, Json] | None
    ) -> TrainingResult:
        """Return the summary of the run."""
        seconds = time.perf_counter() - self.started
        images = self.all_steps * self.batch
        memory = peak_memory_mb(self.device)
        return TrainingResult(steps, seconds, images / seconds, memory, best, last)
