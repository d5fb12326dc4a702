"""`rsseg evaluate`: a map against its truth, and a model on datasets in other forms."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import geopandas
import numpy as np
import pytest
import rasterio
from rasterio.features import shapes
from runs import BANDS, CLASSES, Call, describe, ground, rsseg, seen, write_city
from scenes import NORTH_UP, write_raster
from shapely.geometry import shape

KEYS = {"miou", "macc", "accuracy", "f1", "classes", "confusion", "groups"}


@pytest.fixture(scope="module")
def mapped(tmp_path_factory: pytest.TempPathFactory, city: Path, fitted: Path) -> Path:
    """The map of a scene of `city`."""
    path = tmp_path_factory.mktemp("maps") / "a.seg.tif"
    call = rsseg("predict", city / "images" / "a.tif", "--model", fitted, "-o", path, "-q")
    assert call.code == 0
    return path


def read(path: Path) -> np.ndarray:
    with rasterio.open(path) as file:
        found: np.ndarray = file.read(1)
    return found


def test_scores_are_those_of_the_pixels(city: Path, mapped: Path) -> None:
    call = rsseg("evaluate", mapped, city / "labels" / "a.tif", "--json")
    assert (call.code, call.err) == (0, "")
    score = call.document
    assert set(score) >= KEYS
    predicted, true = read(mapped), read(city / "labels" / "a.tif")
    ious = []
    for row, (number, name) in zip(score["classes"], CLASSES.items(), strict=True):
        both = ((predicted == number) & (true == number)).sum()
        either = ((predicted == number) | (true == number)).sum()
        assert (row["id"], row["name"]) == (number, name)
        assert {"iou", "f1", "precision", "recall", "pixels"} <= set(row)
        assert row["iou"] == pytest.approx(both / either)
        assert row["pixels"] == (true == number).sum()
        ious.append(both / either)
    assert score["miou"] == pytest.approx(np.mean(ious))
    assert score["accuracy"] == pytest.approx((predicted == true).mean())


def test_what_a_person_sees(city: Path, mapped: Path) -> None:
    call = rsseg("evaluate", mapped, city / "labels" / "a.tif")
    assert call.code == 0
    for part in ("mIoU", *CLASSES.values()):
        assert part in call.out


def test_reports_are_written(city: Path, mapped: Path, tmp_path: Path) -> None:
    call = rsseg(
        "evaluate", mapped, city / "labels" / "a.tif", "--report", tmp_path / "r", "--json"
    )
    assert call.code == 0
    assert {"report.json", "report.csv", "report.md", "report.html"} <= {
        path.name for path in (tmp_path / "r").iterdir()
    }
    written = json.loads((tmp_path / "r" / "report.json").read_text())
    assert written["miou"] == call.document["miou"]


def test_reports_are_not_replaced_unasked(city: Path, mapped: Path, tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    page.write_text("mine")
    arguments = ["evaluate", mapped, city / "labels" / "a.tif", "--report", tmp_path]
    call = rsseg(*arguments)
    assert call.code == 1
    assert f"in: {page}" in call.err
    assert "--overwrite" in call.err
    assert {path.name for path in tmp_path.iterdir()} == {"report.html"}
    assert page.read_text() == "mine"
    assert rsseg(*arguments, "--overwrite").code == 0
    assert page.read_text() != "mine"


@pytest.mark.parametrize("place", ["file", "file/below", "/proc/report"])
def test_reports_that_cannot_be_written(
    city: Path, mapped: Path, tmp_path: Path, place: str
) -> None:
    (tmp_path / "file").write_text("")
    call = rsseg("evaluate", mapped, city / "labels" / "a.tif", "--report", tmp_path / place)
    assert call.code == 1
    assert "the report cannot be written" in call.err


def test_polygons_in_another_crs_are_truth_too(city: Path, mapped: Path, tmp_path: Path) -> None:
    labels = read(city / "labels" / "a.tif")
    found = [(shape(g), CLASSES[int(v)]) for g, v in shapes(labels, transform=NORTH_UP)]
    geometry, names = zip(*found, strict=True)
    table = geopandas.GeoDataFrame({"cover": names}, geometry=list(geometry), crs="EPSG:32633")
    table.to_file(tmp_path / "truth.gpkg")
    table.to_crs("EPSG:4326").to_file(tmp_path / "degrees.geojson")
    raster = rsseg("evaluate", mapped, city / "labels" / "a.tif", "--json").document
    same = rsseg("evaluate", mapped, tmp_path / "truth.gpkg", "--field", "cover", "--json")
    assert same.document["confusion"] == raster["confusion"]
    other = rsseg("evaluate", mapped, tmp_path / "degrees.geojson", "--json")
    assert other.document["miou"] == pytest.approx(raster["miou"], abs=0.02)
    wrong = rsseg("evaluate", mapped, tmp_path / "truth.gpkg", "--field", "covr")
    assert wrong.code == 1
    assert "covr" in wrong.err


def test_other_grids_are_aligned_on_demand(city: Path, mapped: Path, tmp_path: Path) -> None:
    fine = read(city / "labels" / "a.tif").repeat(2, 0).repeat(2, 1)
    path = write_raster(
        tmp_path / "fine.tif", fine[None], transform=NORTH_UP @ rasterio.Affine.scale(0.5)
    )
    call = rsseg("evaluate", mapped, path)
    assert call.code == 1
    assert "different grids" in call.err
    assert "--align" in call.err
    aligned = rsseg("evaluate", mapped, path, "--align", "--json").document
    plain = rsseg("evaluate", mapped, city / "labels" / "a.tif", "--json").document
    assert aligned["confusion"] == plain["confusion"]


def test_absent_classes_are_neither_0_nor_1(mapped: Path, tmp_path: Path) -> None:
    only = np.where(read(mapped) == 1, 1, 255).astype(np.uint8)
    path = write_raster(tmp_path / "truth.tif", only[None])
    score = rsseg("evaluate", mapped, path, "--json").document
    assert [row["iou"] for row in score["classes"]] == [1.0, None, None]
    assert score["miou"] == 1.0


def test_ids_may_be_ignored(city: Path, mapped: Path) -> None:
    truth = city / "labels" / "a.tif"
    score = rsseg("evaluate", mapped, truth, "--ignore", "5", "--json").document
    assert sum(map(sum, score["confusion"])) == (read(truth) != 5).sum()


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        ([], "nothing to compare"),
        (["a.tif"], "nothing to compare"),
        (["a.tif", "b.tif", "--on", "x"], "nothing to compare"),
        (["none.tif", "none.tif"], "none.tif"),
    ],
)
def test_calls_that_say_too_little(arguments: list[str], what: str) -> None:
    call = rsseg("evaluate", *arguments)
    assert call.code == 1
    assert what in call.err


def test_truth_that_is_no_class_or_no_raster(city: Path, mapped: Path, tmp_path: Path) -> None:
    odd = write_raster(tmp_path / "odd.tif", np.full((1, 96, 112), 77, np.uint8))
    call = rsseg("evaluate", mapped, odd)
    assert call.code == 1
    assert "77" in call.err
    void = write_raster(tmp_path / "void.tif", np.full((1, 96, 112), 255, np.uint8))
    assert "no pixel" in rsseg("evaluate", mapped, void).err
    (tmp_path / "text.tif").write_text("no raster")
    assert "text.tif" in rsseg("evaluate", mapped, tmp_path / "text.tif").err
    image = rsseg("evaluate", city / "images" / "a.tif", city / "labels" / "a.tif")
    assert image.code == 1
    assert "uint16 in 3 bands" in image.err


def on(fitted: Path, *datasets: str | Path) -> Call:
    options = [part for one in datasets for part in ("--on", str(one))]
    return rsseg("evaluate", "--model", fitted, *options, "--json")


@pytest.mark.parametrize(
    ("arguments", "option"),
    [
        (["--on", "city", "--align"], "--align"),
        (["--on", "city", "--no-soft"], "--soft"),
        (["--experiment", "weft/eorssd", "--field", "cover"], "--field"),
        (["map.tif", "truth.tif", "--model", "run"], "--model"),
    ],
)
def test_options_that_would_do_nothing(arguments: list[str], option: str) -> None:
    call = rsseg("evaluate", *arguments)
    assert call.code == 1
    assert f"{option} does nothing when" in call.err


def test_a_model_on_the_ground_held_back(city: Path, fitted: Path) -> None:
    whole, held = on(fitted, city), on(fitted, f"{city}:val")
    assert whole.code == held.code == 0
    count = [sum(map(sum, call.document["confusion"])) for call in (whole, held)]
    assert count[0] == 2 * 96 * 112
    assert 0 < count[1] < count[0] / 2
    assert set(held.document) >= KEYS
    assert set(whole.document["groups"]) == {"a", "b"}


def test_the_score_of_val_is_that_of_the_fit(city: Path, fitted: Path) -> None:
    kept = json.loads((fitted / "report" / "report.json").read_text())
    held = on(fitted, f"{city}:val").document
    # The fit scores tile by tile, this whole blended scenes: the same pixels either way.
    assert sum(map(sum, held["confusion"])) == sum(map(sum, kept["confusion"]))
    assert held["miou"] == pytest.approx(kept["miou"], abs=0.15)


def test_several_datasets_add_up(city: Path, fitted: Path, tmp_path: Path) -> None:
    other = write_city(tmp_path / "town", scenes=1)
    one, two, both = on(fitted, city), on(fitted, other), on(fitted, city, other)
    total = np.add(one.document["confusion"], two.document["confusion"])
    assert np.array_equal(both.document["confusion"], total)


def test_bands_are_matched_by_name(city: Path, fitted: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(city, tmp_path / "other"))
    for name in "ab":
        with rasterio.open(city / "images" / f"{name}.tif") as file:
            samples = file.read()
        extra = np.full_like(samples[0], 60_000)
        write_raster(
            other / "images" / f"{name}.tif", np.stack([samples[2], extra, samples[1], samples[0]])
        )
    bands = {"nir": 842.0, "swir": 1610.0, "green": 560.0, "blue": 490.0}
    describe(other, bands=bands)
    assert on(fitted, other).document["confusion"] == on(fitted, city).document["confusion"]
    describe(other, bands={"b8": 835.0, "b11": 1610.0, "b3": 565.0, "b2": 480.0})
    assert on(fitted, other).document["confusion"] == on(fitted, city).document["confusion"]
    describe(other, bands=bands | {"nir": 2200.0})
    describe(other, bands={"x": 2200.0, "swir": 1610.0, "green": 560.0, "blue": 490.0})
    call = on(fitted, other)
    assert call.code == 1
    assert "has no band nir" in call.err


def test_scales_are_matched(city: Path, fitted: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(city, tmp_path / "other"))
    for name in "ab":
        with rasterio.open(city / "images" / f"{name}.tif") as file:
            samples = file.read()
        write_raster(other / "images" / f"{name}.tif", (samples * 1e-4).astype(np.float32))
    describe(other, scale="1.0")
    one, two = (np.array(on(fitted, where).document["confusion"]) for where in (city, other))
    assert np.abs(one - two).sum() < 0.002 * one.sum()
    describe(other, scale="1.0e-4")  # and a wrong scale is not healed by chance
    assert np.abs(one - on(fitted, other).document["confusion"]).sum() > 0.1 * one.sum()


def test_other_classes_are_refused(city: Path, fitted: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(city, tmp_path / "other"))
    spec = other / "dataset.yaml"
    spec.write_text(spec.read_text().replace("forest", "wood"))
    call = on(fitted, other)
    assert call.code == 1
    for part in ("classes", "forest", "wood"):
        assert part in call.err


@pytest.mark.parametrize(
    ("dataset", "what"),
    [("none", "none"), ("CITY:vla", "vla is not a known split"), ("CITY::north", "north")],
)
def test_datasets_that_are_not_there(city: Path, fitted: Path, dataset: str, what: str) -> None:
    call = on(fitted, dataset.replace("CITY", str(city)))
    assert call.code == 1
    assert what in call.err


def test_a_dataset_without_labels(city: Path, fitted: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(city, tmp_path / "other"))
    shutil.rmtree(other / "labels")
    call = on(fitted, other)
    assert call.code == 1
    assert "error: " in call.err


def test_the_toy_is_not_trivial() -> None:
    labels = ground()
    assert set(np.unique(labels)) == set(CLASSES)
    assert len(seen(labels)) == len(BANDS)
