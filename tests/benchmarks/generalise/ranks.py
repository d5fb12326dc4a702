"""Dependence of FisherTune's scores on chance: two estimations after the same warm-up."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn
from unittest.mock import patch

import torch
from scipy.stats import spearmanr
from torch import Tensor

from generalise.runs import Job, Workshop
from rsseg_cli.commands.fit.fit import prepare_fit
from rsseg_cli.commands.fit.job import run
from rsseg_cli.commands.fit.options import FitOptions
from rsseg_cli.methods._fisher.sparse import Sparse
from rsseg_cli.methods.fishertune import FisherTune
from rsseg_cli.training.training_step import TrainingStep

FAR = 1_000
"""Steps between the places in the stream of probes at which two estimations start."""


@dataclass
class _Estimated(Exception):
    """Ends a run with what it was for: the scores (E,) of each seed."""

    scores: list[Tensor]


def estimate(job: Job, shop: Workshop, seeds: Sequence[int], more: Sequence[str]) -> list[Tensor]:
    """Warm a model up, and score its candidates once for each seed.

    Seeds differ in the samples, their crops and all noise; weights are the same.

    Args:
        job: A run of FisherTune.
        shop: Where it takes place.
        seeds: Of the estimation.
        more: Settings, in the form of `--set`; they win.

    Returns:
        The scores of all elements (E,), per seed.
    """

    def select(self: FisherTune, step: TrainingStep) -> NoReturn:
        found = []
        for number, seed in enumerate(seeds):
            centre = [weight.detach().clone() for weight in self.candidates.weights]
            self.draws.fill_(seed)
            other = replace(step, seed=seed, index=step.index + FAR * number)
            scores = self.score(other, centre).values
            found.append(torch.cat([part.flatten().cpu() for part in scores]))
        raise _Estimated(found)

    pair = shop.ground(job)
    changes = [*shop.changes(job, pair.tile), *more]
    with (
        tempfile.TemporaryDirectory(dir=shop.work, prefix="run-") as folder,
        patch.object(Sparse, "_select", select),
    ):
        prepared = prepare_fit(
            shop.settings(job, pair.source, changes),
            FitOptions(output=Path(folder), device=shop.device, overwrite=True, quiet=True),
        )
        try:
            run(prepared)
        except _Estimated as end:
            return end.scores
    raise AssertionError("the run ended without a selection")


def overlap(one: Tensor, other: Tensor, share: float) -> float:
    """Return the fraction of the top `share` of one list that is in the top of the other."""
    count = max(1, round(share * len(one)))
    best = [set(values.topk(count).indices.tolist()) for values in (one, other)]
    return len(best[0] & best[1]) / count


def measure(job: Job, shop: Workshop, seeds: Sequence[int], more: Sequence[str]) -> dict[str, Any]:
    """Compare the scores of two seeds: correlation of ranks, common part of the highest."""
    one, other = estimate(job, shop, seeds, more)
    return {
        "elements": len(one),
        "spearman": round(float(spearmanr(one.numpy(), other.numpy()).statistic), 3),
        "top_1": round(overlap(one, other, 0.01), 3),
        "top_5": round(overlap(one, other, 0.05), 3),
    }
