"""Bootstrap intervals: the scores are those of the confusion matrix, the spread that of theory."""

from __future__ import annotations

import json
from dataclasses import asdict

import numpy as np
import pytest

from rsseg_cli.classes import Class
from rsseg_cli.metrics.bootstrap import (
    MIN_UNITS,
    Intervals,
    Units,
    intervals,
    resample,
    scores_of_counts,
)
from rsseg_cli.metrics.confusion import ConfusionMatrix

CLASSES = [Class(index, name, (0, 0, 0)) for index, name in enumerate("abcd")]


def counts(units: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    found = rng.integers(0, 40, (units, 4, 5)) + 60 * np.eye(4, 5, dtype=int)
    found[:, 3] = 0  # never true,
    found[::2, 1] = 0  # not true everywhere
    return found


def test_scores_of_draws_are_those_of_the_matrix() -> None:
    drawn = counts(6)
    found = scores_of_counts(drawn)
    for index, one in enumerate(drawn):
        expected = ConfusionMatrix(CLASSES, one).scores()
        for name in ("miou", "macc", "accuracy", "f1"):
            assert found[name][index] == pytest.approx(getattr(expected, name)), name
        ious = [row.iou for row in expected.classes]
        np.testing.assert_allclose(found["iou"][index], [np.nan if v is None else v for v in ious])


def test_draws_sum_units() -> None:
    units = np.array([1, 10, 100])[:, None, None] * np.ones((3, 1, 2), int)
    drawn = np.concatenate(list(resample(units, draws=200)))
    assert drawn.shape == (200, 1, 2)
    digits = [(int(v) % 10, int(v) // 10 % 10, int(v) // 100) for v in drawn[:, 0, 0]]
    assert {sum(one) for one in digits} == {3}
    assert np.array_equal(drawn, np.concatenate(list(resample(units, draws=200))))


def test_spread_is_that_of_the_mean_of_shares() -> None:
    rng = np.random.default_rng(1)
    hits = rng.binomial(100, 0.7 + 0.2 * rng.random(200))
    units = np.zeros((200, 2, 3), int)
    units[:, 0, 0], units[:, 0, 1] = hits, 100 - hits
    found = intervals(Units("scenes", units)).scores["accuracy"]
    error = (hits / 100).std(ddof=1) / 200**0.5
    assert found.value == pytest.approx((hits / 100).mean())
    assert found.high - found.low == pytest.approx(2 * 1.96 * error, rel=0.1)


def test_undefined_scores_have_no_interval() -> None:
    found = intervals(Units("blocks", counts(12)))
    assert found.iou[3].value == 0  # mapped, not true
    empty = counts(12)
    empty[:, 3], empty[:, :, 3] = 0, 0
    whole = intervals(Units("blocks", empty))
    assert whole.iou[3] is None
    assert whole.units == 12
    assert Intervals.from_json(json.loads(json.dumps(asdict(whole)))) == whole


def test_scenes_come_before_blocks_and_few_units_give_nothing() -> None:
    many, few = list(counts(MIN_UNITS)), list(counts(MIN_UNITS - 1))
    nothing = [np.zeros_like(many[0])] * 5
    assert Units.choose(many, few).kind == "scenes"
    assert Units.choose(few + nothing, many).kind == "blocks"
    assert Units.choose(few, few) is None
