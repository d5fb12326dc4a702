"""Reports of fits and of models: intervals, calibration, areas and tiles, from the same pixels."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from PIL import Image
from runs import SMALL, rsseg, write_city

from rsseg_cli.classes import IGNORE


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that has seen half of a city of three scenes."""
    root = tmp_path_factory.mktemp("review")
    write_city(root / "city", scenes=3)
    done = rsseg(
        "fit", "--method", "full", "--src", root / "city", *SMALL, "--steps", "3",
        "--no-pretrained", "--set", "data.val_fraction=0.5", "--output", root / "run",
    )  # fmt: skip
    assert done.code == 0, done.err
    return root / "run"


def document(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "report.json").read_text())
    return found


def test_a_fit_ends_with_a_close_look(fitted: Path) -> None:
    found = document(fitted / "report")
    assert sum(one["pixels"] for one in found["calibration"]["bins"]) == found["pixels"]
    assert sum(one["pixels"] for one in found["scenes"].values()) == found["pixels"]
    scenes = [np.array(one["confusion"]) for one in found["scenes"].values()]
    np.testing.assert_array_equal(sum(scenes), found["confusion"])
    assert found["intervals"]["kind"] == "blocks"
    span = found["intervals"]["scores"]["miou"]
    assert span["value"] == pytest.approx(found["miou"])
    assert span["low"] <= span["value"] <= span["high"]
    assert "area" not in found  # tiles of the holdout are not a map
    pictures = {path.name for path in (fitted / "report" / "pictures").iterdir()}
    assert {"worst-tiles.png", "best-tiles.png"} <= pictures


def test_a_model_is_evaluated_with_all_there_is(fitted: Path, tmp_path: Path) -> None:
    city = fitted.parent / "city"
    done = rsseg(
        "evaluate", "--model", fitted, "--on", city, "--device", "cpu", "--boundary", "2",
        "--report", tmp_path / "out", "--json",
    )  # fmt: skip
    found = done.document
    assert found["boundary_px"] == 2
    assert sum(one["pixels"] for one in found["calibration"]["bins"]) == found["pixels"]
    area = found["area"]
    assert area["hectares"] == pytest.approx(3 * 96 * 112 * 0.01, rel=1e-3)
    assert sum(one["area"]["value"] for one in area["classes"]) == pytest.approx(1)
    # Everything is labelled: the estimate is the truth.
    for row, one in zip(found["classes"], area["classes"], strict=True):
        assert one["area"]["value"] == pytest.approx(row["pixels"] / found["pixels"])
        assert one["mapped"] == pytest.approx(row["predicted"] / found["pixels"])
    with Image.open(tmp_path / "out" / "pictures" / "worst-tiles.png") as image:
        assert image.width > 1000
    assert document(tmp_path / "out")["config"]["method"]["name"] == "full"


def test_a_map_is_shown_with_its_image_and_named_by_a_file(fitted: Path, tmp_path: Path) -> None:
    city = fitted.parent / "city"
    truth, image = city / "labels" / "a.tif", city / "images" / "a.tif"
    made = tmp_path / "map.tif"
    with rasterio.open(truth) as file:
        labels, profile = file.read(), file.profile
    labels[0, :20] = IGNORE
    with rasterio.open(made, "w", **profile) as file:
        file.write(labels)
    done = rsseg(
        "evaluate", made, truth, "--classes", city / "dataset.yaml", "--boundary", "0",
        "--image", image, "--report", tmp_path / "out", "--json",
    )  # fmt: skip
    found = done.document
    assert [one["name"] for one in found["classes"]] == ["water", "forest", "town"]
    assert "boundary_px" not in found
    assert found["remarks"] == []
    pictures = {path.name for path in (tmp_path / "out" / "pictures").iterdir()}
    assert {"map-against-truth.png", "worst-tiles.png"} <= pictures
    other = tmp_path / "other.tif"
    with rasterio.open(other, "w", **{**profile, "width": 50}) as file:
        file.write(labels[:, :, :50])
    refused = rsseg("evaluate", made, truth, "--image", other)
    assert refused.code == 1
    assert "image (50 x 96" in refused.err
