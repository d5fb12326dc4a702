"""Area-adjusted accuracy, against the published example of Olofsson et al. (2014)."""

from __future__ import annotations

import json
from dataclasses import asdict

import numpy as np
import pytest

from rsseg_cli.classes import Class
from rsseg_cli.metrics.area import AreaEstimate, Z, estimate_area, standard_errors, stratified
from rsseg_cli.metrics.bootstrap import Units

NAMES = ["deforestation", "forest gain", "stable forest", "stable non-forest"]
CLASSES = [Class(index, name, (0, 0, 0)) for index, name in enumerate(NAMES)]
# The paper's table has the map in rows; here the truth is in rows.
COUNTS = np.array([[66, 0, 5, 4], [0, 55, 8, 12], [1, 0, 153, 11], [2, 1, 9, 313]]).T
MAPPED = np.array([200_000, 150_000, 3_200_000, 6_450_000])
HECTARES = 0.09
"""A Landsat pixel."""


def test_published_accuracies() -> None:
    found, error = stratified(COUNTS, MAPPED), standard_errors(COUNTS, MAPPED)
    assert found.accuracy == pytest.approx(0.95, abs=0.005)
    assert Z * error.accuracy == pytest.approx(0.02, abs=0.005)
    np.testing.assert_allclose(found.users, [0.88, 0.73, 0.93, 0.96], atol=0.005)
    np.testing.assert_allclose(Z * error.users, [0.07, 0.10, 0.04, 0.02], atol=0.005)
    np.testing.assert_allclose(found.producers, [0.75, 0.85, 0.93, 0.96], atol=0.005)
    # The paper prints 0.23 and 0.01 for the second and fourth; its equation 7, as other
    # implementations have found too, gives 0.25 and 0.02.
    np.testing.assert_allclose(Z * error.producers, [0.21, 0.25, 0.03, 0.02], atol=0.005)


def test_published_areas() -> None:
    found, error = stratified(COUNTS, MAPPED), standard_errors(COUNTS, MAPPED)
    ground = MAPPED.sum() * HECTARES
    np.testing.assert_allclose(found.area * ground, [21_158, 11_686, 285_770, 581_386], rtol=1e-4)
    np.testing.assert_allclose(Z * error.area * ground, [6_158, 3_756, 15_510, 16_282], rtol=2e-3)


def test_a_hand_calculation() -> None:
    """Two classes: 100 px mapped a (8 of 10 labels right), 300 px mapped b (9 of 10 right)."""
    counts, mapped = np.array([[8, 1], [2, 9]]), np.array([100, 300])
    found, error = stratified(counts, mapped), standard_errors(counts, mapped)
    assert found.accuracy == pytest.approx(0.25 * 0.8 + 0.75 * 0.9)
    np.testing.assert_allclose(found.area, [0.25 * 0.8 + 0.75 * 0.1, 0.25 * 0.2 + 0.75 * 0.9])
    np.testing.assert_allclose(found.producers, [0.2 / 0.275, 0.675 / 0.725])
    own, other = 0.25**2 * 0.8 * 0.2 / 9, 0.75**2 * 0.9 * 0.1 / 9
    assert error.accuracy == pytest.approx((own + other) ** 0.5)
    producers = (0.075 / 0.275) ** 2 * own + (0.2 / 0.275) ** 2 * other
    assert error.producers[0] == pytest.approx(producers**0.5 / 0.275)


def test_intervals_hold_as_often_as_they_say() -> None:
    """Draw samples from a known ground: some 95 % of the intervals cover the truth."""
    rng = np.random.default_rng(0)
    share = np.array([[0.85, 0.04], [0.15, 0.96]])  # of true classes within mapped ones
    mapped = np.array([2_000_000, 8_000_000])
    truth = stratified(share * 1e9, mapped).area[0]
    covered = 0
    for _ in range(400):
        counts = np.stack([rng.multinomial(150, share[:, i]) for i in range(2)], axis=1)
        row = estimate_area(CLASSES[:2], counts, mapped).classes[0].area
        covered += row.low <= truth <= row.high
    assert 0.91 < covered / 400 < 0.98


def test_patches_are_resampled_points_are_not() -> None:
    counts = np.array([[90, 10, 0], [5, 95, 0]])
    units = Units("blocks", np.stack([counts] * 20))
    whole = counts[:, :2] * 20
    points = estimate_area(CLASSES[:2], whole, np.array([10**7, 10**7]), units=units)
    patches = estimate_area(CLASSES[:2], whole, np.array([3000, 3000]), units=units)
    assert (points.interval, patches.interval) == ("sample", "blocks")
    # Equal blocks give no spread at all.
    assert patches.accuracy.low == pytest.approx(patches.accuracy.value)
    assert points.accuracy.low < points.accuracy.value - 0.005
    assert AreaEstimate.from_json(json.loads(json.dumps(asdict(points)))) == points


def test_what_no_label_says_anything_about() -> None:
    counts = np.array([[5, 0, 0], [0, 1, 0], [0, 0, 0]])
    found = estimate_area(CLASSES[:3], counts, np.array([50, 30, 20]))
    assert found.unsampled == ["stable forest"]
    assert sum(row.area.value for row in found.classes) == pytest.approx(1)
    assert found.classes[2].users is None
    assert found.classes[2].producers is None
    assert found.accuracy.low is None  # one label of a class has no spread
    assert estimate_area(CLASSES[:3], counts * 0, np.array([5, 3, 2])) is None
