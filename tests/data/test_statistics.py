"""Mean and deviation equal numpy's over the usable pixels, missing samples left out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scenes import write_raster

from rsseg_cli.data import statistics
from rsseg_cli.data.pair import Opener, Pair
from rsseg_cli.data.spec.dataset_spec import Reader
from rsseg_cli.errors import RssegError
from rsseg_cli.raster.decode import LabelCode
from rsseg_cli.raster.grid import Window


def pair(path: Path, bands: int, regions: Any = None) -> tuple[Opener, Pair]:
    opener = Opener(tuple(range(1, bands + 1)), Reader(), LabelCode(()))
    return opener, Pair(path.stem, path, None, None, regions, opener.info(path))


@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16", "float32"])
def test_equals_numpy(tmp_path: Path, dtype: str) -> None:
    samples = np.random.default_rng(0).normal(100, 20, (3, 300, 520)).astype(dtype)
    opener, one = pair(write_raster(tmp_path / "a.tif", samples), 3)
    mean, std = statistics.measure(opener, [one])
    flat = samples.reshape(3, -1).astype(np.float64)
    np.testing.assert_allclose(mean, flat.mean(1), rtol=1e-9)
    np.testing.assert_allclose(std, flat.std(1), rtol=1e-9)


@pytest.mark.parametrize(("dtype", "nodata"), [("int16", -99), ("float32", -99), ("uint8", 0)])
def test_missing_samples_do_not_count(tmp_path: Path, dtype: str, nodata: int) -> None:
    rng = np.random.default_rng(0)
    samples = rng.integers(1, 100, (2, 90, 70)).astype(dtype)
    gone = rng.random((90, 70)) < 0.3
    samples[:, gone] = nodata
    if dtype != "uint8":
        samples[1, 5:30] = nodata
    opener, one = pair(write_raster(tmp_path / "a.tif", samples, nodata=nodata), 2)
    mean, std = statistics.measure(opener, [one])
    for band in range(2):
        there = samples[band][~gone if dtype == "uint8" else samples[band] != nodata]
        assert mean[band] == pytest.approx(there.astype(float).mean())
        assert std[band] == pytest.approx(there.astype(float).std())


def test_nan_and_regions_and_constant_bands(tmp_path: Path) -> None:
    samples = np.random.default_rng(0).random((2, 80, 80)).astype("float32")
    samples[0, :10] = np.nan
    samples[1] = 7
    samples[:, 40:] = 1e6
    regions = (Window(0, 0, 80, 40),)
    opener, one = pair(write_raster(tmp_path / "a.tif", samples), 2, regions)
    mean, std = statistics.measure(opener, [one])
    assert mean == pytest.approx((float(samples[0, 10:40].mean(dtype="float64")), 7.0))
    assert std == pytest.approx((float(samples[0, 10:40].std(dtype="float64")), 1.0))


def test_large_datasets_are_sampled_deterministically(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    samples = np.random.default_rng(0).integers(0, 255, (1, 1500, 1500)).astype("uint8")
    opener, one = pair(write_raster(tmp_path / "a.tif", samples), 1)
    monkeypatch.setattr(statistics, "WINDOWS", 6)
    first = statistics.measure(opener, [one])
    assert first == statistics.measure(opener, [one])
    assert first[0] == pytest.approx((samples.mean(),), rel=0.01)


def test_no_valid_pixel_is_an_error(tmp_path: Path) -> None:
    samples = np.zeros((2, 20, 20), "uint8")
    opener, one = pair(write_raster(tmp_path / "a.tif", samples, nodata=0), 2)
    with pytest.raises(RssegError, match="no valid pixel"):
        statistics.measure(opener, [one])
    values = np.ones((2, 20, 20), "float32")
    values[1] = np.nan
    opener, one = pair(write_raster(tmp_path / "b.tif", values), 2)
    with pytest.raises(RssegError, match="band 2 has no valid pixel"):
        statistics.measure(opener, [one])
