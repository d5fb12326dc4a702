"""Sums what the log shows, on the device, and says what a run was like."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from rsseg_cli import distributed
from rsseg_cli.data.tiles import Batch
from rsseg_cli.errors import RssegError
from rsseg_cli.plain import Json
from rsseg_cli.threads import Prefetcher
from rsseg_cli.training.memory import peak_memory_mb

NEVER = 2**62
"""The step at which a loss was not finite, as long as all were."""


@dataclass
class Outcome:
    """What a finished run says of itself: `fit --json` prints it."""

    steps: int
    seconds: float
    images_per_s: float
    peak_memory_mb: float
    best: dict[str, Json] | None
    last: dict[str, Json] | None


class Meter:
    """Counts steps and their losses; only `read` and `check` wait for the device.

    Args:
        prefetch: Where the batches come from.
        batch: Images per step.
        device: Where the losses are.
        folder: Folder of the run, for errors.
    """

    def __init__(
        self, prefetch: Prefetcher[Batch], *, batch: int, device: torch.device, folder: Path
    ) -> None:
        self.prefetch, self.batch, self.device, self.folder = prefetch, batch, device, folder
        self.started = self.since = time.perf_counter()
        self.waited = 0.0
        self.steps = self.all_steps = 0
        self.sums: dict[str, Tensor] = {}
        self.bad = torch.full((), NEVER, device=device)

    def add(self, index: int, terms: dict[str, Tensor]) -> None:
        """Count a step; remember the first one whose loss is not finite."""
        self.steps += 1
        self.all_steps += 1
        for name, value in terms.items():
            self.sums[name] = self.sums[name] + value if name in self.sums else value
            broken = ~torch.isfinite(value) & (self.bad == NEVER)
            self.bad = torch.where(broken, index + 1, self.bad)

    def check(self) -> None:
        """Stop the run if a loss was not finite; all processes ask at the same step."""
        bad = int(distributed.reduce_min(self.bad))
        if bad != NEVER:
            raise RssegError(
                f"the loss is not a finite number at step {bad:,}",
                where=str(self.folder),
                fix="a lower learning rate (--set optimizer.lr), optimizer.clip=1.0 or "
                "training.precision=bf16; --resume goes on from the last good state",
            )

    def read(self, step: int, lr: float) -> dict[str, Json]:
        """Give the line for the metrics since the last one, and start anew."""
        self.check()
        now = time.perf_counter()
        seconds = max(now - self.since, 1e-9)
        sums = distributed.average(torch.stack(list(self.sums.values()))).tolist()
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

    def outcome(
        self, steps: int, best: dict[str, Json] | None, last: dict[str, Json] | None
    ) -> Outcome:
        """Sum the run up."""
        seconds = time.perf_counter() - self.started
        images = self.all_steps * self.batch
        memory = peak_memory_mb(self.device)
        return Outcome(steps, seconds, images / seconds, memory, best, last)
