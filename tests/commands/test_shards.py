"""`predict --shard I/N`: N jobs without a connection map each scene once."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
from runs import ground, rsseg, seen
from scenes import write_raster

from rsseg_cli.commands.predict.paths import choose_shard, parse_shard
from rsseg_cli.errors import RssegError

NAMES = [f"s{number}" for number in range(7)]


@pytest.fixture
def scenes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Write seven scenes; return their paths from the working directory."""
    monkeypatch.chdir(tmp_path)
    Path("in").mkdir()
    for number, name in enumerate(NAMES):
        write_raster(Path("in") / f"{name}.tif", seen(ground(33, 40, seed=number)))
    return [f"in/{name}.tif" for name in NAMES]


@pytest.mark.parametrize("count", [1, 2, 3, 7, 9])
def test_shards_are_disjoint_even_and_complete(count: int) -> None:
    names = [f"{number}.tif" for number in range(7)]
    shuffled = random.Random(0).sample(names, 7)
    shards = [choose_shard(names, (index, count)) for index in range(count)]
    assert shards == [choose_shard(shuffled, (index, count)) for index in range(count)]
    assert sorted(name for shard in shards for name in shard) == names
    assert max(map(len, shards)) - min(map(len, shards)) <= 1


@pytest.mark.parametrize("text", ["", "1", "3/3", "1/0", "-1/3", "1/-3", "a/b", "1/3/5", "0.5/2"])
def test_wrong_shards_are_errors(text: str, tmp_path: Path) -> None:
    with pytest.raises(RssegError, match="is not I/N with I from 0 to N - 1"):
        parse_shard(text)
    call = rsseg("predict", tmp_path, f"--shard={text}")
    assert call.code == 1
    assert "in: --shard" in call.err


def test_jobs_at_once_map_each_scene_once(scenes: list[str], fitted: Path) -> None:
    call = ["predict", "--model", fitted, "--batch", "4", "--no-quicklook", "-o"]
    jobs = [
        subprocess.Popen(
            [
                sys.executable, "-m", "rsseg_cli", *call, "maps", "--shard", f"{index}/2",
                *random.Random(index).sample(scenes, len(scenes)),
            ],
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for index in range(2)
    ]  # fmt: skip
    ends = [(*job.communicate(timeout=200), job.returncode) for job in jobs]
    assert [code for _, _, code in ends] == [0, 0], ends
    paths = [path for out, _, _ in ends for path in out.split()]
    assert sorted(paths) == [f"maps/{name}.seg.tif" for name in NAMES]
    assert rsseg(*call, "alone", "in").code == 0
    assert {path.name for path in Path("maps").iterdir()} == {
        path.name for path in Path("alone").iterdir()
    }
    for name in NAMES:
        maps = [Path(folder) / f"{name}.seg.tif" for folder in ("maps", "alone")]
        assert maps[0].read_bytes() == maps[1].read_bytes()


def test_a_shard_beside_existing_maps(scenes: list[str], fitted: Path) -> None:
    call = ["predict", "in", "--model", fitted, "-o", "in", "--shard"]
    first = rsseg(*call, "0/2", "--json")
    assert [one["input"] for one in first.document["scenes"]] == scenes[0::2]
    # The maps and quicklooks of other shards in the folder are not scenes, and do no harm.
    dry = rsseg(*call, "1/2", "--json", "--dry-run")
    assert [one["input"] for one in dry.document["scenes"]] == scenes[1::2]
    assert rsseg(*call, "1/2").code == 0
    again = rsseg(*call, "1/2")
    assert again.code == 1
    assert "in/s1.seg.tif" in again.err
    resumed = rsseg(*call, "1/2", "--resume", "--json")
    assert [one["status"] for one in resumed.document["scenes"]] == ["exists"] * 3


@pytest.mark.parametrize("option", [[], ["--json"], ["--dry-run"], ["--dry-run", "--json"]])
def test_an_empty_shard_is_no_error(scenes: list[str], option: list[str]) -> None:
    call = rsseg("predict", *scenes[:2], "--shard", "2/3", *option)
    assert call.code == 0
    if "--json" in option:
        assert call.document == {"scenes": []}
    assert ("2/3 has no scenes" in call.err) == ("--json" not in option)


def test_names_are_checked_for_all_shards(scenes: list[str], tmp_path: Path) -> None:
    Path("other").mkdir()
    Path("other/s1.tif").write_bytes(Path("in/s1.tif").read_bytes())
    for index in range(4):
        call = rsseg("predict", "in", "other", "-o", "maps", "--shard", f"{index}/4")
        assert call.code == 1
        assert "two scenes would become maps/s1.seg.tif" in call.err
    single = rsseg("predict", "in", "-o", "map.tif", "--shard", "0/7", "--dry-run")
    assert "map.tif/s0.seg.tif" not in single.out  # there is no model: nothing was computed
    assert single.code == 1
