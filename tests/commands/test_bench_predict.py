"""`rsseg bench predict` prints measurements under the keys that scripts rely on."""

from __future__ import annotations

from pathlib import Path

import pytest
from runs import rsseg


def test_bench_predict_of_a_random_model() -> None:
    call = rsseg(
        "bench", "predict", "--size", "200", "--tile", "64", "--batch", "4", "--rounds", "1",
        "--device", "cpu", "--json",
    )  # fmt: skip
    assert call.code == 0, call.err
    found = call.document
    assert {"device", "versions", "bare", "end_to_end", "ratio", "null", "copy"} <= set(found)
    assert found["device"] == "cpu"
    assert found["ratio"] == pytest.approx(
        found["bare"]["seconds"] / found["end_to_end"]["seconds"]
    )
    assert found["null_ratio"] > 0
    assert found["tiling"]["tiles"] == 16
    assert set(found["end_to_end"]["wait"]) == {"disk", "device", "writer"}


def test_bench_predict_of_a_fitted_model(fitted: Path) -> None:
    call = rsseg(
        "bench", "predict", "--model", fitted, "--size", "96", "--rounds", "1", "--device", "cpu"
    )
    assert call.code == 0, call.err
    assert str(fitted) in call.out
    assert "of bare forward passes" in call.out
