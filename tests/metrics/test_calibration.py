"""The calibration error equals torchmetrics'."""

from __future__ import annotations

import json
from dataclasses import asdict

import numpy as np
import pytest
import torch
from torchmetrics.functional.classification import multiclass_calibration_error

from rsseg_cli.metrics.calibration import BINS, Calibration, Reliability


def test_error_is_that_of_torchmetrics() -> None:
    torch.manual_seed(0)
    shares = (3 * torch.randn(4000, 5)).softmax(1)
    truth = torch.where(torch.rand(4000) < 0.6, shares.argmax(1), torch.randint(0, 5, (4000,)))
    expected = multiclass_calibration_error(shares, truth, 5, n_bins=BINS, norm="l1")
    both = Calibration()
    for part in (slice(0, 1500), slice(1500, None)):
        sure, best = shares[part].max(1)
        both.update(sure.numpy(), (best == truth[part]).numpy())
    found = both.reliability()
    assert found.ece == pytest.approx(float(expected), abs=1e-6)
    assert sum(one.pixels for one in found.bins) == 4000
    assert all(0 <= one.accuracy <= 1 for one in found.bins)
    assert [one.confidence for one in found.bins] == sorted(o.confidence for o in found.bins)
    assert Reliability.from_json(json.loads(json.dumps(asdict(found)))) == found


def test_sure_and_right_is_calibrated_sure_and_wrong_is_not() -> None:
    right, wrong = Calibration(), Calibration()
    right.update(np.ones(9), np.ones(9, bool))
    wrong.update(np.ones(9), np.zeros(9, bool))
    assert right.reliability().ece == 0
    assert wrong.reliability().ece == 1
    assert Calibration().reliability() is None
