"""The target of `rsseg adapt`: labels that are reported only, other pixel sizes, what is left."""

from __future__ import annotations

import gc
import json
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from folders import folder, label
from numpy.typing import NDArray
from runs import CLASSES, Call, describe, ground, rsseg, seen, write_pair
from scenes import write_raster
from training_jobs import same, weights

from rsseg_cli.classes import IGNORE, Class
from rsseg_cli.commands.adapt.target_labels import labelled
from rsseg_cli.commands.adapt.targets import Targets
from rsseg_cli.contract import Bands
from rsseg_cli.data.pair import Opener, Pair, SourcePairs
from rsseg_cli.errors import RssegWarning
from rsseg_cli.raster.grid import Window
from rsseg_cli.report.training_charts import TARGET_LABELS, draw_adaptation
from rsseg_cli.training.adaptation import Adaptation

QUICK = ["--steps", "3", "--set", "training.num_workers=0", "--device", "cpu", "--json"]
REPORT = "--report-labels"
KNOWN = [Class(number, name, (0, 0, 0)) for number, name in CLASSES.items()]


def target(root: Path, labels: str = "true") -> Path:
    """Write a described target with labels, all of one class, or of unreadable ones."""
    for index, name in enumerate("ab"):
        write_pair(root, name, seed=40 + index)
        path = root / "labels" / f"{name}.tif"
        if labels == "one class":
            path.unlink()
            write_raster(path, np.full((1, 96, 112), 5, np.uint8))
        elif labels == "unreadable":
            path.write_bytes(b"no raster at all")
    describe(root)
    return root


def adapt(model: Path, tgt: Path | str, run: Path, *more: str) -> Call:
    return rsseg("adapt", "--model", model, "--tgt", tgt, "--output", run, *QUICK, *more)


def lines(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


# --- labels that are reported ------------------------------------------------------------------
def test_reported_labels_change_neither_the_model_nor_the_choice(
    fitted: Path, tmp_path: Path
) -> None:
    scores, merits, models = [], [], []
    for name, labels, more in (
        ("plain", "unreadable", ()),
        ("true", "true", (REPORT,)),
        ("one", "one class", (REPORT,)),
    ):
        run, root = tmp_path / f"run-{name}", tmp_path / name / "suburb"
        call = adapt(fitted, target(root, labels), run, *more)
        assert call.code == 0, call.err
        models.append([weights(run / f"{one}.safetensors") for one in ("model", "last")])
        said = [line["val"] for line in lines(run) if "val" in line]
        merits.append([one["merit"] for one in said])
        scores.append([one.get("target_labels") for one in said])
    assert merits[0] == merits[1] == merits[2]
    for other in models[1:]:
        assert all(same(a, b) for a, b in zip(models[0], other, strict=True))
    assert scores[0] == [None] * len(merits[0])
    true, one = scores[1][0], scores[2][0]
    assert true["use"] == one["use"] == "reported only"
    assert true["pixels"] == one["pixels"] > 0
    assert true["miou"] > 0.9 > one["miou"]  # the model was trained on this area
    page = (tmp_path / "run-true" / "report" / "report.md").read_text()
    assert TARGET_LABELS in page
    assert TARGET_LABELS not in (tmp_path / "run-plain" / "report" / "report.md").read_text()
    assert (tmp_path / "run-true/report/pictures/target-labels-reported-only.png").is_file()


def test_labels_beside_plain_images_are_found(fitted: Path, tmp_path: Path) -> None:
    root = target(tmp_path / "suburb")
    (root / "dataset.yaml").unlink()
    call = adapt(fitted, root / "images", tmp_path / "run", REPORT)
    assert call.code == 0, call.err
    assert call.document["last"]["target_labels"]["miou"] > 0.9


LAYOUTS = {
    "imgs/{}.tif": "masks/{}.tif",
    "Images/{}.tif": "gt/{}_gt.tif",
    "{}.tif": "{}_mask.tif",
}


@pytest.mark.parametrize("image", LAYOUTS)
@pytest.mark.parametrize("inside", [False, True])
def test_labels_are_found_by_the_usual_names(tmp_path: Path, image: str, inside: bool) -> None:
    """The argument is the folder or that of its images; labels are not taken for scenes."""
    root = tmp_path / "suburb"
    for index, name in enumerate("ab"):
        write_pair(tmp_path / "made", name, seed=index)
        for kind, pattern in (("images", image), ("labels", LAYOUTS[image])):
            path = root / pattern.format(name)
            path.parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "made" / kind / f"{name}.tif").rename(path)
    named = (root / image).parent if inside else root
    opener, pairs = report_on(named)
    assert {pair.image.name for pair in pairs} == {"a.tif", "b.tif"}
    for pair in pairs:
        seed = "ab".index(pair.image.stem)
        index = labels_of(opener, pair)
        assert np.array_equal(np.array(list(CLASSES))[index], ground(seed=seed)), pair.name


@pytest.mark.parametrize(("count", "meant"), [(2, [0, 1]), (3, [0, IGNORE])])
def test_0_and_255_are_a_mask_for_two_classes_only(
    tmp_path: Path, count: int, meant: list[int]
) -> None:
    known = [Class(number, f"class {number}", (0, 0, 0)) for number in range(count)]
    folder(tmp_path, 2, dtype="uint16")
    for name in "ab":
        (tmp_path / f"labels/{name}.tif").unlink()
        label(tmp_path, f"labels/{name}.tif", (0, 255))
    opener, pairs = report_on(tmp_path, known)
    assert np.unique(labels_of(opener, pairs[0])).tolist() == meant


def report_on(path: Path, known: Sequence[Class] = KNOWN) -> SourcePairs:
    """Open a target and give its held-out ground the labels that are there."""
    given = Adaptation(tgt=(str(path),), holdout=0.0)
    found = Targets.open(given, BANDS, known, tile=32, data_root=None)
    [part] = labelled(found.holdout, given, BANDS, known, None)
    return part


def labels_of(opener: Opener, pair: Pair) -> NDArray[np.uint8]:
    """Read all labels (h, w) of a pair."""
    reader = opener.labels(pair)
    assert reader is not None
    found = reader.read(Window(0, 0, pair.info.width, pair.info.height))
    reader.close()
    return found


def test_labels_that_cannot_be_reported_are_a_mistake(fitted: Path, tmp_path: Path) -> None:
    bare = write_raster(tmp_path / "bare.tif", seen(ground()))
    unreadable = target(tmp_path / "unreadable", "unreadable")
    named = target(tmp_path / "named")
    text = (named / "dataset.yaml").read_text()
    (named / "dataset.yaml").write_text(text.replace("name: town", "name: city"))
    for tgt, more, said in (
        (bare, (), "no labels to report on"),
        (unreadable, (), "a.tif"),
        (named, (), "classes of model and target labels differ: 1 water, 2 forest, 5 town / "),
        (named, ("--gsd", "20"), "not resampled"),
    ):
        call = adapt(fitted, tgt, tmp_path / "run", REPORT, *more)
        assert (call.code, said in call.err) == (1, True), call.err
        assert "Traceback" not in call.err


def test_a_score_that_is_undefined_leaves_a_gap() -> None:
    def drawn(scores: list[float | None]) -> dict[str, Any]:
        records = [
            {"step": step, "val": {"target": {"shares": [1.0]}, "target_labels": {"miou": miou}}}
            for step, miou in enumerate(scores)
        ]
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            figures = draw_adaptation(records, KNOWN[:1])
            for figure in figures.values():
                figure.canvas.draw()
        return figures

    [line] = drawn([0.5, None, 0.25])[TARGET_LABELS].axes[0].get_lines()
    np.testing.assert_array_equal(line.get_ydata(), [0.5, np.nan, 0.25])
    assert drawn([None, None, None]).keys() == {"class shares on the target"}


# --- pixels of another size ---------------------------------------------------------------------
BANDS = Bands(
    names=("blue", "green", "nir"), wavelengths_nm=(490.0, 560.0, 842.0), mean=(0.0,) * 3,
    std=(1.0,) * 3, dtype="uint16", gsd_m=10.0,
)  # fmt: skip


def coarse(path: Path) -> Path:
    """Write a scene with pixels of 20 m."""
    transform = rasterio.Affine(20, 0, 500_000, 0, -20, 5_400_000)
    write_raster(path, seen(ground()), transform=transform)
    with rasterio.open(path, "r+") as file:
        file.descriptions = BANDS.names
    return path


def open_targets(tmp_path: Path, **settings: Any) -> Targets:
    given = Adaptation(tgt=(str(coarse(tmp_path / "coarse.tif")),), **settings)
    return Targets.open(given, BANDS, KNOWN, tile=32, data_root=None)


def test_another_pixel_size_is_told_and_resampled_on_demand(tmp_path: Path) -> None:
    with pytest.warns(
        RssegWarning, match=r"are 20 m, the model was fitted on 10 m: --gsd 10 resamples"
    ):
        plain = open_targets(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fine = open_targets(tmp_path, gsd_m=10.0)
    sizes = [found.train[0][1][0].info for found in (plain, fine)]
    assert [(place.width, place.height) for place in sizes] == [(112, 96), (224, 192)]


# --- what is left behind ------------------------------------------------------------------------
def test_nothing_is_left_in_the_temporary_folder(
    fitted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    void = write_raster(tmp_path / "void.tif", seen(ground()) * 0, nodata=0)
    call = adapt(fitted, void, tmp_path / "run", "--gsd", "20")
    assert "no valid pixel" in call.err
    assert list(scratch.iterdir()) == []
    found = open_targets(tmp_path, gsd_m=10.0)
    (folder,) = scratch.iterdir()
    assert [one.suffix for one in folder.iterdir()] == [".vrt"]
    del found
    gc.collect()
    assert list(scratch.iterdir()) == []


def test_some_scenes_without_a_pixel_are_left_out_aloud(tmp_path: Path) -> None:
    folder = tmp_path / "scenes"
    folder.mkdir()
    write_raster(folder / "full.tif", seen(ground()), nodata=0)
    write_raster(folder / "void.tif", seen(ground()) * 0, nodata=0)
    with pytest.warns(RssegWarning, match=r"void\.tif has only nodata: left out"):
        found = Targets.open(Adaptation(tgt=(str(folder),)), BANDS, KNOWN, tile=32, data_root=None)
    assert [pair.name for _, pairs in found.train for pair in pairs] == ["full"]
