"""The benchmark on unseen ground: its pairs share no ground, its runs resume, its table adds up."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from paths import SHARED

from rsseg_cli import config
from rsseg_cli.data.source import Source
from rsseg_cli.errors import Interrupted
from rsseg_cli.raster.grid import Window

sys.path.insert(0, str(Path(__file__).parent / "benchmarks"))

import generalise.pairs
from generalise import settings, table
from generalise.pairs import PAIRS, Pair, make
from generalise.runs import Job, Workshop, run_all

DATA = SHARED / "data"
real = pytest.mark.skipif(not DATA.is_dir(), reason=f"real imagery is not at {DATA}")
TINY = settings.Budget(steps=2, batch=2)


def record(method: str, seed: int, miou: float, **changed: Any) -> dict[str, Any]:
    return {
        "pair": "a_to_b", "backbone": "nano", "init": "pretrained", "method": method,
        "seed": seed, "miou": miou, "ious": {"land": miou, "sea": miou / 2}, "trainable": 1234,
        "head": 34, "fit_s": 10.0 * seed, "fit_cpu_s": 5.0,
    } | changed  # fmt: skip


# --- the table ----------------------------------------------------------------------------------
def test_rows_hold_mean_spread_and_the_difference_paired_by_seed() -> None:
    records = [
        record("frozen", 1, 0.50), record("frozen", 2, 0.60), record("frozen", 3, 0.40),
        record("lora", 3, 0.43), record("lora", 1, 0.55), record("lora", 2, 0.61),
    ]  # fmt: skip
    frozen, lora = table.tabulate(records)
    assert frozen.miou is not None
    assert lora.miou is not None
    assert lora.gain is not None
    assert (frozen.method, lora.method) == ("frozen", "lora")
    assert frozen.gain is None
    assert frozen.miou.mean == pytest.approx(0.5)
    assert frozen.miou.deviation == pytest.approx(0.1)
    assert lora.miou.deviation == pytest.approx(np.std([0.43, 0.55, 0.61], ddof=1))
    # Differences 0.05, 0.01 and 0.03: pairing by seed makes their spread far smaller than 0.1.
    assert lora.gain.mean == pytest.approx(0.03)
    assert lora.gain.deviation == pytest.approx(0.02)
    assert lora.ious == pytest.approx({"land": 0.53, "sea": 0.265})
    assert lora.fit_s == pytest.approx(20.0)
    assert lora.trainable == 1234


def test_only_seeds_that_both_have_are_compared() -> None:
    records = [record("frozen", 1, 0.5), record("lora", 1, 0.6), record("lora", 2, 0.9)]
    _, lora = table.tabulate(records)
    assert lora.gain == table.Spread(pytest.approx(0.1), None, 1)
    assert lora.miou is not None
    assert lora.miou.count == 2


def test_starts_are_compared_with_frozen_of_the_same_start() -> None:
    records = [
        record("frozen", 1, 0.7), record("lora", 1, 0.8),
        record("frozen", 1, 0.3, init="random"), record("lora", 1, 0.2, init="random"),
    ]  # fmt: skip
    gains = {(row.init, row.method): row.gain for row in table.tabulate(records)}
    pretrained, random = gains["pretrained", "lora"], gains["random", "lora"]
    assert pretrained is not None
    assert random is not None
    assert pretrained.mean == pytest.approx(0.1)
    assert random.mean == pytest.approx(-0.1)


def test_without_frozen_there_is_no_difference() -> None:
    (row,) = table.tabulate([record("lora", 1, 0.5)])
    assert row.gain is None
    assert table.summarise([row]) == []


def test_failed_runs_are_counted_and_left_out(tmp_path: Path) -> None:
    failed = {key: record("weft", 1, 0)[key] for key in ("pair", "backbone", "init", "method")}
    failed |= {"seed": 1, "error": "RssegError: no"}
    records = [record("frozen", 1, 0.5), record("frozen", 2, 0.6), failed]
    _, weft = table.tabulate(records)
    assert (weft.miou, weft.gain, weft.failed) == (None, None, 1)
    _, weft = table.tabulate([*records, record("weft", 2, 0.7)])
    assert weft.gain is not None
    assert weft.gain.mean == pytest.approx(0.1)
    assert weft.failed == 1
    page = table.write([failed], tmp_path, "Title").read_text()
    assert "| weft | failed |" in page


def test_summary_weighs_pairs_alike() -> None:
    gains = {"a": (0.1, 0.1, 0.1), "b": (-0.3,)}
    records = [
        record(method, seed, 0.5 + gain * (method == "lora"), pair=pair)
        for pair, values in gains.items()
        for seed, gain in enumerate(values)
        for method in ("frozen", "lora")
    ]
    (summary,) = table.summarise(table.tabulate(records))
    assert summary.gain.mean == pytest.approx(-0.1)
    assert summary.gain.count == 2
    assert summary.better == 1


def test_markdown_and_json_say_the_same(tmp_path: Path) -> None:
    records = [record("frozen", s, 0.5) for s in (1, 2)] + [
        record("lora", 1, 0.52), record("lora", 2, 0.56),
    ]  # fmt: skip
    page = table.write(records, tmp_path, "Title").read_text()
    lines = [line for line in page.splitlines() if line.startswith("|")]
    widths = {line.count("|") for line in lines[:4]}
    assert len(widths) == 1
    assert "| nano pretrained | lora | 54.0 ± 2.8 | +4.0 ± 2.8 | 54 | 27 | 1,234 | 2 |" in page
    assert "| nano pretrained | lora | +4.0 | 1 of 1 |" in page
    document = json.loads((tmp_path / "table.json").read_text())
    assert document["rows"][1]["gain"] == {
        "mean": pytest.approx(0.04), "deviation": pytest.approx(0.02 * 2**0.5), "count": 2,
    }  # fmt: skip


# --- runs -----------------------------------------------------------------------------------------
def shop(tmp_path: Path, data: Path = DATA) -> Workshop:
    return Workshop(data=data, work=tmp_path / "work", weights=None, budget=TINY, patch=8)


def test_a_run_is_a_fit_and_an_evaluation_and_is_done_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = [
        Job("sample_north_to_south", "vit_tiny", "random", method, 1)
        for method in ("frozen", "crossearth_gate+random")
    ]
    first = run_all(jobs, shop(tmp_path), tmp_path / "runs")
    told = capsys.readouterr().err
    assert [one.get("error") for one in first] == [None, None]
    assert "[2/2] sample_north_to_south--vit_tiny-random--crossearth_gate+random--1: mIoU" in told
    frozen, gate = first
    assert 0 < frozen["miou"] < 1
    assert list(frozen["ious"]) == ["water", "forest", "cropland", "built-up"]
    # A linear head on four maps of 64 channels: a norm, and a map to four classes.
    assert frozen["trainable"] == frozen["head"] == 4 * (2 * 64 + 64 * 4 + 4)
    assert gate["trainable"] > gate["head"] == frozen["head"]
    assert not list((tmp_path / "work").glob("run-*"))

    def forbidden(*_: object) -> None:
        raise AssertionError("a finished run was done again")

    monkeypatch.setattr(Workshop, "run", forbidden)
    assert run_all(jobs, shop(tmp_path), tmp_path / "runs") == first


def test_changed_settings_and_failures_are_run_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []

    def run(self: Workshop, job: Job) -> dict[str, Any]:
        done.append(job.method)
        if job.method == "full" and len(done) < 3:
            raise ValueError("out of luck")
        keys = ("miou", "fit_s", "evaluate_s")
        made = {"changes": self.changes(job, 32), "data": pair().fingerprint()}
        return made | dict.fromkeys(keys, 0.5)

    def pair() -> Pair:
        return make("sample_north_to_south", data=DATA, work=tmp_path / "work")

    monkeypatch.setattr(Workshop, "run", run)
    jobs = [Job("sample_north_to_south", "vit_tiny", "random", m, 1) for m in ("full", "lora")]
    records = run_all(jobs, shop(tmp_path), tmp_path / "runs")
    assert [one.get("error") for one in records] == ["ValueError: out of luck", None]
    assert "full--1: ValueError: out of luck" in capsys.readouterr().err
    records = run_all(jobs, shop(tmp_path), tmp_path / "runs")
    assert done == ["full", "lora", "full"]
    assert "error" not in records[0]
    monkeypatch.setitem(settings.METHODS, "lora", ("method.rank=2",))
    run_all(jobs, shop(tmp_path), tmp_path / "runs")
    assert done == ["full", "lora", "full", "lora"]
    assert "lora--1: its settings or data have changed" in capsys.readouterr().err
    region = tmp_path / "work" / "sample" / "south" / "dataset.yaml"
    region.write_text(region.read_text().replace("scale: 1.0e-4", "scale: 1.0e-5"))
    run_all(jobs, shop(tmp_path), tmp_path / "runs")
    assert done[4:] == ["full", "lora"]


def test_an_interrupted_run_ends_all_and_leaves_no_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(*_: object) -> None:
        raise Interrupted("stopped")

    monkeypatch.setattr(Workshop, "run", stopped)
    job = Job("sample_north_to_south", "vit_tiny", "random", "lora", 1)
    with pytest.raises(Interrupted):
        run_all([job], shop(tmp_path), tmp_path / "runs")
    assert not list((tmp_path / "runs").iterdir())


@pytest.mark.parametrize("method", settings.names())
def test_every_method_is_resolved_with_the_same_training(method: str) -> None:
    def resolved(name: str) -> config.RunConfig:
        return config.resolve(
            method=name.partition("+")[0],
            file=None,
            sources=["x"],
            backbone="galileo_nano",
            head="linear",
            pretrained=False,
            changes=settings.changes(name, TINY, seed=1, tile=32, patch=4),
        )

    found, frozen = resolved(method), resolved("frozen")
    for part in ("backbone", "head", "data", "augment", "optimizer"):
        assert getattr(found, part) == getattr(frozen, part), part
    # Nothing is validated on.
    assert found.training == frozen.training.model_copy(
        update={"validate_every": found.training.validate_every}
    )
    if "+" in method:
        assert found.method != resolved(method.partition("+")[0]).method


# --- pairs ----------------------------------------------------------------------------------------
def ground(text: str) -> tuple[Source, list[tuple[Path, rasterio.Affine, Window]]]:
    """List usable windows in pixels of the file, beyond any box of the reader."""
    source = Source.locate(text, holdout=0.0)
    x, y, *_ = source.spec.reader.box or (0, 0)
    found = []
    for pair in source.pairs():
        with rasterio.open(pair.image) as file:
            whole = file.transform
        found += [
            (pair.image, whole, Window(w.x + x, w.y + y, w.width, w.height)) for w in pair.windows
        ]
    return source, found


@real
@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
@pytest.mark.parametrize("name", PAIRS)
def test_source_and_target_share_classes_and_bands_but_no_ground(name: str, tmp_path: Path) -> None:
    pair = make(name, data=DATA, work=tmp_path)
    (source, learned), (target, tested) = ground(pair.source), ground(pair.target)
    assert source.classes == target.classes
    assert [band.name for band in source.spec.bands] == [band.name for band in target.spec.bands]
    assert learned
    assert tested
    for image, place, window in learned:
        for other, there, tested_window in tested:
            same_ground = image == other or (place == there and not place.is_identity)
            assert not (same_ground and window.intersect(tested_window))
    labelled = [_labels(source), _labels(target)]
    assert labelled[0] >= labelled[1], "a class is tested that cannot be learnt"
    assert len(labelled[1]) >= 2


def _labels(source: Source) -> set[int]:
    found: set[int] = set()
    for pair in source.pairs():
        reader = source.opener.labels(pair)
        assert reader is not None
        for window in pair.windows:
            found.update(np.unique(reader.read(window)).tolist())
        reader.close()
    return found - {255}


@real
@pytest.mark.parametrize(
    ("city", "true_m"), [("banepa", 0.1323), ("boston", 0.999), ("atlanta", 0.5)]
)
def test_cities_come_to_a_metre_and_keep_their_ground(
    city: str, true_m: float, tmp_path: Path
) -> None:
    image = next((DATA / "buildings" / city / "images").glob("*.tif"))
    generalise.pairs.resample(image, tmp_path / "out.tif", bands=3)
    with rasterio.open(image) as before, rasterio.open(tmp_path / "out.tif") as after:
        assert after.bounds == pytest.approx(before.bounds, abs=1e-3)
        assert after.crs == before.crs
        assert before.width * true_m / after.width == pytest.approx(1.0, abs=0.01)
        assert before.height * true_m / after.height == pytest.approx(1.0, abs=0.01)
        means = [file.read([1, 2, 3]).mean((1, 2)) for file in (before, after)]
    assert means[1] == pytest.approx(means[0], abs=1.0)


@real
def test_labels_under_clouds_are_left_out(tmp_path: Path) -> None:
    pair = make("chiapas_1999_to_2002", data=DATA, work=tmp_path)
    given = DATA / "seasons" / "chiapas"
    with rasterio.open(given / "labels" / "training_data.gtif") as file:
        every = file.read(1)
    dataset = Source.locate(pair.source.removesuffix(":lush"), holdout=0.0)
    for scene in dataset.pairs():
        with rasterio.open(scene.image) as file:
            clouds = file.read(8) != 0
        reader = dataset.opener.labels(scene)
        assert reader is not None
        with reader:
            read = reader.read(scene.info.window)
        labelled = (every > 0) & ~clouds
        assert np.array_equal(read != 255, labelled)
        assert np.array_equal(read[labelled], every[labelled] - 1)
        assert clouds.any() == ("2002" in scene.name)


@real
def test_plausible_reflectance(tmp_path: Path) -> None:
    for name in PAIRS:
        source = Source.locate(make(name, data=DATA, work=tmp_path).source, holdout=0.0)
        bands = source.bands()
        assert bands.scale is not None
        for mean in bands.mean:
            assert 0.02 < mean * bands.scale < 0.5, name
