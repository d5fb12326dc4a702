"""Rates a model that is adapted: its score on the source, and what it says about the target."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from rsseg_cli import distributed
from rsseg_cli.classes import IGNORE
from rsseg_cli.data.covering import CoveringTiles
from rsseg_cli.number_format import counted
from rsseg_cli.plain import Json
from rsseg_cli.run.validation import Validation, inferred
from rsseg_cli.segmenter import Segmenter
from rsseg_cli.training.choice import Look, collapsed, merit, rating
from rsseg_cli.training.precision import Precision
from rsseg_cli.training.pseudo_labels import normalised_entropy

COLLAPSED = "the class shares on the target have run away from the start's"


@dataclass
class TargetValidation:
    """Scores without a label of the target; it remembers what it said before.

    Attributes:
        tiles: This process' share of the target's held-out tiles.
        source: Scores the model on labelled ground, if there is any.
        source_shares: (K) share of each class in the source's labels, if there are any.
        start: Step of the first pseudo-label: the last validation up to it is the start.
        step: Tells the number of steps done.
        limit: How far class shares may run away.
        patience: Validations without a better model after which the run ends.
        gain: Factor from stored values of the target to the model's unit.
        before: Called with the model as long as it is the start.
        reported: Scores the model on labels of the target, for the log and the report only.
    """

    tiles: CoveringTiles
    source: Validation | None
    source_shares: Sequence[float] | None
    start: int
    step: Callable[[], int]
    precision: Precision
    threads: int
    limit: float
    patience: int | None
    gain: float
    before: Callable[[Segmenter], None]
    reported: Validation | None = None
    past: list[dict[str, Any]] = field(default_factory=list)

    def remember(self, records: Sequence[dict[str, Json]]) -> None:
        """Go on after the validations in some lines of the metrics."""
        for line in records:
            value = line.get("val")
            if isinstance(value, dict):
                self.past.append({"step": line["step"], **value})

    def __call__(self, model: Segmenter) -> dict[str, Json]:
        """Give the score object; the model is left in eval mode."""
        score = {} if self.source is None else self.source(model)
        look, step = self.look(model), self.step()
        found = score | {"target": look.to_json()}
        if step <= self.start:
            self.before(model)
        self._judge(found, look, step)
        self.past.append({"step": step, **found})
        if self.reported is None:
            return found
        # Last, so that nothing above can have looked at it.
        return found | {"target_labels": {"use": "reported only"} | self.reported(model)}

    def _judge(self, found: dict[str, Any], look: Look, step: int) -> None:
        """Add `rating` and `merit`, and `stop` where it is time."""
        start = self._start() if step > self.start else None
        at_start = None if start is None else start.get("miou")
        found["rating"] = rating(look.information, found.get("miou"), at_start)
        ratings = [*(one["rating"] for one in self.past), found["rating"]]
        found["merit"] = merit(ratings, max((one["merit"] for one in self.past), default=None))
        if start is None:
            return
        first = start["target"]["shares"]
        if collapsed(look.shares, first, self.source_shares, self.limit):
            found["merit"], found["stop"] = -1.0, COLLAPSED
            return
        merits = [one["merit"] for one in self.past] + [found["merit"]]
        since = merits[::-1].index(max(merits))
        if self.patience is not None and since >= self.patience:
            found["stop"] = f"{counted(since, 'validation')} brought no better model"

    def _start(self) -> dict[str, Any] | None:
        """Find what was said of the model before the first pseudo-label, or soon after."""
        early = [one for one in self.past if one["step"] <= self.start]
        return early[-1] if early else next(iter(self.past), None)

    @torch.inference_mode()
    def look(self, model: Segmenter) -> Look:
        """See what the model says about the held-out tiles."""
        classes = model.head.classes
        sums = torch.zeros(2 * classes + 3, dtype=torch.float64, device=self.precision.device)
        walk = inferred(model, self.tiles, self.precision, threads=self.threads, gain=self.gain)
        for scores, known in walk:
            there = known != IGNORE
            pixels = scores.float().permute(0, 2, 3, 1)[there]
            confidence, label = pixels.max(1)
            entropy = normalised_entropy(scores.float())[there]
            line = [
                torch.bincount(label, minlength=classes),
                pixels.sum(0, dtype=torch.float64),
                torch.stack([entropy.sum(), confidence.sum(), there.sum()]),
            ]
            sums += torch.cat([one.double() for one in line])
        values = distributed.total(sums)
        shares, mean, rest = torch.split((values / values[-1]).cpu(), [classes, classes, 3])
        entropy_, confidence_, _ = rest.tolist()
        return Look(shares.tolist(), mean.tolist(), entropy_, confidence_)
