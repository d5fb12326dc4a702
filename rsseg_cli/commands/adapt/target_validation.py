"""Validates a model during adaptation: scores on the source, class distribution on the target."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from rsseg_cli import distributed
from rsseg_cli.classes import IGNORE
from rsseg_cli.commands.fit.validation import Validation, predict_tiles
from rsseg_cli.data.tiles.validation_tiles import CoveringTiles
from rsseg_cli.number_format import counted
from rsseg_cli.segmenter import Segmenter
from rsseg_cli.settings import Json
from rsseg_cli.training.model_selection import TargetStatistics, collapsed, merit, rating
from rsseg_cli.training.precision import Precision
from rsseg_cli.training.pseudo_labels import normalised_entropy

COLLAPSED = "the predicted class distribution on the target has collapsed"


@dataclass
class TargetValidation:
    """Validates without labels of the target; it keeps its earlier scores.

    Attributes:
        tiles: This process' shard of the target's held-out tiles.
        source: Validation on the source, if there is one.
        source_shares: (K) class frequencies in the source's labels, if there is a source.
        start: Step of the first pseudo-label: the last validation up to it is the start.
        step: Returns the number of steps done.
        precision: Number format of the forward pass.
        threads: Number of reading threads.
        limit: Largest change of the class distribution; see `collapsed`.
        patience: Validations without a better model after which the run ends.
        unit_scale: Factor from stored values of the target to the model's unit.
        before: Called with the model at validations up to `start`.
        reported: Validation on labels of the target, for the log and the report only.
        past: Earlier scores.
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
    unit_scale: float
    before: Callable[[Segmenter], None]
    reported: Validation | None = None
    past: list[dict[str, Any]] = field(default_factory=list)

    def remember(self, records: Sequence[dict[str, Json]]) -> None:
        """Take over the scores in some lines of the metrics, to resume a run."""
        for line in records:
            value = line.get("val")
            if isinstance(value, dict):
                self.past.append({"step": line["step"], **value})

    def __call__(self, model: Segmenter) -> dict[str, Json]:
        """Return the scores; the model is left in eval mode."""
        score = {} if self.source is None else self.source(model)
        target, step = self.look(model), self.step()
        score = score | {"target": target.to_json()}
        if step <= self.start:
            self.before(model)
        self._judge(score, target, step)
        self.past.append({"step": step, **score})
        if self.reported is None:
            return score
        # Last, so that nothing above can depend on it.
        return score | {"target_labels": {"use": "reported only"} | self.reported(model)}

    def _judge(self, score: dict[str, Any], target: TargetStatistics, step: int) -> None:
        """Add `rating` and `merit`, and `stop` where the run must stop."""
        start = self._start() if step > self.start else None
        at_start = None if start is None else start.get("miou")
        score["rating"] = rating(target.information, score.get("miou"), at_start)
        ratings = [*(past["rating"] for past in self.past), score["rating"]]
        score["merit"] = merit(ratings, max((past["merit"] for past in self.past), default=None))
        if start is None:
            return
        first = start["target"]["shares"]
        if collapsed(target.shares, first, self.source_shares, self.limit):
            score["merit"], score["stop"] = -1.0, COLLAPSED
            return
        merits = [past["merit"] for past in self.past] + [score["merit"]]
        since = merits[::-1].index(max(merits))
        if self.patience is not None and since >= self.patience:
            score["stop"] = f"{counted(since, 'validation')} brought no better model"

    def _start(self) -> dict[str, Any] | None:
        """Return the last score before the first pseudo-label, else the first score."""
        early = [past for past in self.past if past["step"] <= self.start]
        return early[-1] if early else next(iter(self.past), None)

    @torch.inference_mode()
    def look(self, model: Segmenter) -> TargetStatistics:
        """Compute the class distribution and the confidence on the held-out tiles."""
        classes = model.head.classes
        sums = torch.zeros(2 * classes + 3, dtype=torch.float64, device=self.precision.device)
        for probabilities, label in predict_tiles(
            model, self.tiles, self.precision, threads=self.threads, unit_scale=self.unit_scale
        ):
            valid = label != IGNORE
            pixels = probabilities.float().permute(0, 2, 3, 1)[valid]
            confidence, predicted = pixels.max(1)
            entropy = normalised_entropy(probabilities.float())[valid]
            counts = [
                torch.bincount(predicted, minlength=classes),
                pixels.sum(0, dtype=torch.float64),
                torch.stack([entropy.sum(), confidence.sum(), valid.sum()]),
            ]
            sums += torch.cat([count.double() for count in counts])
        values = distributed.reduce_sum(sums)
        shares, mean, rest = torch.split((values / values[-1]).cpu(), [classes, classes, 3])
        mean_entropy, mean_confidence, _ = rest.tolist()
        return TargetStatistics(shares.tolist(), mean.tolist(), mean_entropy, mean_confidence)
