"""Several processes map the same bytes as one, even if one of them is killed."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import geopandas
import pytest
import rasterio
from paths import ENVIRONMENT, SUPPORT
from ranked_processes import FAILED, LOST, QUIET
from runs import ground, rsseg, seen
from scenes import WriteScene, random_samples, write_raster

from rsseg_cli.predict.plan import Plan, Tiling
from rsseg_cli.raster.grid import Window


@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_shares_are_neighbours_and_cover_what_is_left(size: int) -> None:
    parts = tuple(Window(0, y, 9, 3 if y % 2 else 5) for y in range(23))
    axis = Tiling(32).axis(99)
    plan, finished = Plan(axis, axis, parts, 1, 1.0, 256), {0, 7, 8}
    shares = [plan.parts_of_rank(finished, rank, size) for rank in range(size)]
    assert set.union(*shares) | finished == set(range(23))
    assert sum(map(len, shares)) == 20
    left = [n for n in range(23) if n not in finished]
    places = [[left.index(n) for n in sorted(share)] for share in shares]
    assert all(place == list(range(place[0], place[-1] + 1)) for place in places)
    pixels = [sum(parts[n].width * parts[n].height for n in share) for share in shares]
    assert max(pixels) - min(pixels) <= 2 * 9 * 5


def same_files(one: Path, other: Path) -> bool:
    """Return whether two folders have the same maps to the byte, and the same polygons."""
    polygons = [geopandas.read_file(folder / "out.gpkg") for folder in (one, other)]
    return polygons[0].equals(polygons[1]) and all(
        (one / name).read_bytes() == (other / name).read_bytes()
        for name in ("out.tif", "out.prob.tif", "out.conf.tif", "out.qml", "out.tif.aux.xml")
    )


def test_processes_give_the_bytes_of_one(write_scene: WriteScene, tmp_path: Path) -> None:
    samples = random_samples(1, 411, 37).repeat(5, 1).repeat(5, 2)[:, :2053, :181]
    scene = write_scene(samples, blockxsize=64, blockysize=64)
    done = subprocess.run(
        [sys.executable, SUPPORT / "ranked_processes.py", scene, tmp_path],
        env=ENVIRONMENT, capture_output=True, text=True, check=False, timeout=200,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    exchanged, one, three, box_one, box_two, first, again, second, third, failed = map(
        json.loads, done.stdout.splitlines()
    )
    assert exchanged == [FAILED, QUIET, QUIET]  # rank 0 prints the error of all
    got = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(3)]
    assert sorted(number for each in got for number in each.pop("claimed")) == list(range(20))
    assert [each.pop("alone") for each in got] == [[1, [rank]] for rank in range(3)]
    assert (
        got
        == [
            {
                "gathered": [{"twice": 0}, {"twice": 2}, {"twice": 4}],
                "broadcast": [0],
                "error": ["UnreadableError", "in 1", "here", "this"],
                "claimed alone": [0, 1],
            }
        ]
        * 3
    )
    whole = [f"out{end}" for end in (
        ".conf.tif", ".gpkg", ".json", ".prob.tif", ".qml", ".result", ".tif", ".tif.aux.xml"
    )]  # fmt: skip
    for case, size in ((one, 1), (three, 3), (box_one, 1), (box_two, 2), (again, 2), (third, 1)):
        assert case == {"ends": [0] * size, "names": whole}
    # The others do not hang, nothing has its name, and what is finished is used again.
    assert first == {"ends": [-signal.SIGKILL, LOST], "names": []}
    assert second == {"ends": [LOST, -signal.SIGKILL], "names": []}
    assert failed == {"ends": [FAILED, QUIET], "names": []}
    for folder in ("three", "killed_0", "killed_1"):
        assert same_files(tmp_path / "one", tmp_path / folder), folder
    assert same_files(tmp_path / "box_one", tmp_path / "box_two")
    results = [
        json.loads((tmp_path / name / "out.result").read_text()) for name in ("one", "three")
    ]
    assert [(one["status"], one["width"], one["height"]) for one in results] == [
        ("done", 181, 2053)
    ] * 2
    with rasterio.open(tmp_path / "box_two" / "out.tif") as file:
        rows = (file.read(1) != 255).any(1).nonzero()[0]
    assert (rows[0], rows[-1]) == (300, 1499)


def test_torchrun_deals_scenes_out(
    fitted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("in").mkdir()
    for name, height in (("a", 71), ("b", 40), ("c", 53)):
        write_raster(Path("in") / f"{name}.tif", seen(ground(height, 64, seed=height)))
    Path("in/b.tif").write_bytes(b"no raster")
    call = ["predict", "in", "--model", fitted, "--batch", "4", "--no-quicklook"]
    alone = rsseg(*call, "-o", "alone", "--json")
    done = subprocess.run(
        [
            sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
            "-m", "rsseg_cli", *call, "-o", "out", "--json",
        ],
        env=ENVIRONMENT, capture_output=True, text=True, check=False, timeout=200,
    )  # fmt: skip
    assert done.returncode != 0
    assert done.stderr.count("error: 1 of 3 scenes failed") == 1
    kept = ("input", "width", "height", "status", "error")
    found = [
        [[one[key] for key in kept] for one in document["scenes"]]
        for document in (alone.document, json.loads(done.stdout))
    ]
    assert found[0] == found[1]
    assert [one[3] for one in found[1]] == ["done", "failed", "done"]
    assert {path.name for path in Path("out").iterdir()} == {
        path.name for path in Path("alone").iterdir()
    }
    for name in ("a.seg.tif", "c.seg.tif"):
        assert (Path("out") / name).read_bytes() == (Path("alone") / name).read_bytes()
