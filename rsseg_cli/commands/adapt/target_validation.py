"""Validates a model during adaptation: scores on the source, class distribution on the target."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from rsseg_cli import distributed
from rsseg_cli.classes import IGNORE
from rsseg_cli.commands.fit.validation import Validation
from rsseg_cli.number_format import counted
from rsseg_cli.segmenter import Segmenter
from rsseg_cli.settings import Json
from rsseg_cli.training.adaptation import Adaptation
from rsseg_cli.training.model_selection import TargetStatistics, collapsed, merit, rating
from rsseg_cli.training.pseudo_labels import normalised_entropy
from rsseg_cli.training.self_training import SelfTraining

COLLAPSED = "the predicted class distribution on the target has collapsed"


@dataclass
class TargetValidation:
    """Validates without labels of the target, and keeps the scores of earlier validations.

    Attributes:
        target: The target's held-out tiles, without labels.
        source: Validation on the source, if there is one.
        source_shares: (K) class frequencies in the source's labels, if there is a source.
        objective: Counts steps. The scores at the start are those of the last validation before
            its first pseudo-label.
        settings: Limits at which the run stops.
        map_start: Called with the model at validations before the first pseudo-label.
        reported: Validation on labels of the target, for the log and the report only.
        history: Scores of earlier validations.
    """

    target: Validation
    source: Validation | None
    source_shares: Sequence[float] | None
    objective: SelfTraining
    settings: Adaptation
    map_start: Callable[[Segmenter], None]
    reported: Validation | None = None
    history: list[dict[str, Any]] = field(default_factory=list)

    def restore(self, records: Sequence[dict[str, Json]]) -> None:
        """Restore the history from lines of the metrics, to resume a run."""
        for record in records:
            score = record.get("val")
            if isinstance(score, dict):
                self.history.append({"step": record["step"], **score})

    def __call__(self, model: Segmenter) -> dict[str, Json]:
        """Return the scores; the model is left in eval mode."""
        score = {} if self.source is None else self.source(model)
        statistics, step = self.target_statistics(model), self.objective.done
        score = score | {"target": statistics.to_json()}
        if step <= self.objective.start:
            self.map_start(model)
        self._rate(score, statistics, step)
        self.history.append({"step": step, **score})
        if self.reported is None:
            return score
        # Last, so that nothing above can depend on it.
        return score | {"target_labels": {"use": "reported only"} | self.reported(model)}

    def _rate(self, score: dict[str, Any], statistics: TargetStatistics, step: int) -> None:
        """Add `rating` and `merit`, and `stop` where the run must stop."""
        start = self._score_at_start() if step > self.objective.start else None
        miou_at_start = None if start is None else start.get("miou")
        score["rating"] = rating(statistics.information, score.get("miou"), miou_at_start)
        ratings = [*(past["rating"] for past in self.history), score["rating"]]
        merits = [past["merit"] for past in self.history]
        score["merit"] = merit(ratings, max(merits, default=None))
        if start is None:
            return
        shares, shares_at_start = statistics.shares, start["target"]["shares"]
        if collapsed(shares, shares_at_start, self.source_shares, self.settings.max_class_shift):
            score["merit"], score["stop"] = -1.0, COLLAPSED
            return
        merits.append(score["merit"])
        since_best = merits[::-1].index(max(merits))
        if self.settings.patience is not None and since_best >= self.settings.patience:
            score["stop"] = f"no better model in {counted(since_best, 'validation')}"

    def _score_at_start(self) -> dict[str, Any] | None:
        """Return the last score before the first pseudo-label, else the first score."""
        early = [past for past in self.history if past["step"] <= self.objective.start]
        return early[-1] if early else next(iter(self.history), None)

    @torch.inference_mode()
    def target_statistics(self, model: Segmenter) -> TargetStatistics:
        """Compute the class distribution and the confidence on the held-out tiles."""
        classes, device = model.head.classes, self.target.precision.device
        sums = torch.zeros(2 * classes + 3, dtype=torch.float64, device=device)
        for batch, probabilities in self.target.predict(model):
            valid = batch.label.to(device, non_blocking=True) != IGNORE
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
