"""The demo: properties of the sample, a complete run, and reproducibility."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import geopandas
import numpy as np
import pytest
import rasterio
from runs import rsseg

from rsseg_cli.demo import guide, sample

QUICK = {"training.steps": 6, "training.batch": 2, "training.validate_every": 6, "data.tile": 64}
SMALL = partial(sample.write_sample, side=128, scenes=2)
ANSWER = {"map", "report", "quicklook", "miou", "baseline_miou", "seconds"}


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shorten the demo: few steps on small scenes."""
    monkeypatch.setattr(guide, "SETTINGS", guide.SETTINGS | QUICK)
    monkeypatch.setattr(guide, "write_sample", SMALL)


def contents(folder: Path) -> dict[str, bytes]:
    rasters = sorted(folder.rglob("*.tif"))
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in rasters}


def test_the_sample_is_the_same_for_the_same_seed(tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        SMALL(tmp_path / name, seed=seed)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    assert contents(tmp_path / "a") != contents(tmp_path / "c")


def test_the_sample_has_the_properties_of_real_scenes(tmp_path: Path) -> None:
    folders = SMALL(tmp_path)
    assert [folder.name for folder in folders] == ["north", "south"]
    means = []
    for folder in folders:
        with rasterio.open(folder / "images" / f"{folder.name}_1.tif") as file:
            image = file.read()
            assert (file.count, file.dtypes[0], file.nodata) == (4, "uint16", 0)
            assert file.crs.to_epsg() == 32633
            assert file.width != file.height
        missing = (image == 0).all(0)
        assert missing[0, 0]
        assert 0.001 < missing.mean() < 0.2
        means.append(image[:, ~missing].mean(1))
        polygons = geopandas.read_file(folder / "labels" / f"{folder.name}_1.gpkg")
        assert set(polygons["cover"]) <= {one.name for one in sample.CLASSES}
        with rasterio.open(folder / "labels" / f"{folder.name}_2.tif") as file:
            assert set(np.unique(file.read())) == {0, 1, 2, 3, 4}
    # Season and haze: the regions differ by far more than their scenes do.
    assert means[1][0] > 1.2 * means[0][0]


@pytest.mark.usefixtures("quick")
def test_the_demo_is_reproducible(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    first = rsseg("demo", "--json", "--device", "cpu")
    assert (first.code, first.err) == (0, "")
    answer = first.document
    assert set(answer) == ANSWER
    assert Path("rsseg-demo") in Path(answer["map"]).parents
    assert Path(answer["quicklook"]).read_bytes().startswith(b"\x89PNG")
    assert "<html" in Path(answer["report"]).read_text()
    with rasterio.open(answer["map"]) as file:
        assert set(np.unique(file.read())) <= {1, 2, 3, 4, 255}
    refused = rsseg("demo")
    assert refused.code == 1
    assert "--overwrite" in refused.err
    second = rsseg("demo", "-o", "again", "--json", "--device", "cpu").document
    for key in ("miou", "baseline_miou"):
        assert second[key] == answer[key]
    other = rsseg("demo", "--overwrite", "--seed", "5", "--device", "cpu", "-q")
    assert other.code == 0
    assert "rsseg-demo/quicklook.png" in other.out
    assert "mIoU" in other.out


@pytest.mark.slow
def test_the_map_is_better_than_the_nearest_mean(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A third of the real demo's steps is enough to beat single pixels by far.
    changes = {"training.steps": 100, "training.validate_every": 100}
    monkeypatch.setattr(guide, "SETTINGS", guide.SETTINGS | changes)
    answer = rsseg("demo", "-o", tmp_path, "--json", "--device", "cpu").document
    assert answer["miou"] > answer["baseline_miou"] + 0.05
