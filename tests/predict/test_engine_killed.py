"""`kill -9` at any moment leaves nothing half-written under its name, and costs little."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import geopandas
import pytest
from paths import ENVIRONMENT, SUPPORT
from scenes import WriteScene, random_samples


def test_killed_runs_resume_to_the_same_bytes(write_scene: WriteScene, tmp_path: Path) -> None:
    scene = write_scene(random_samples(1, 525, 45).repeat(4, 1).repeat(4, 2))
    whole, out = tmp_path / "whole" / "out.tif", tmp_path / "killed" / "out.tif"
    for path in (whole, out):
        path.parent.mkdir()
    done = subprocess.run(
        [sys.executable, SUPPORT / "kill_predict.py", scene, whole, out],
        env=ENVIRONMENT,
        capture_output=True, text=True, check=False, timeout=200,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    seen = [line.split() for line in done.stdout.splitlines()]
    assert len(seen) >= 3
    assert max(int(parts) for parts, *_ in seen) > 0
    assert not any("out.tif" in names for _, *names in seen)
    assert {one.name for one in out.parent.iterdir()} == {
        one.name for one in whole.parent.iterdir()
    }
    for suffix in (".tif", ".prob.tif", ".conf.tif"):
        assert out.with_suffix(suffix).read_bytes() == whole.with_suffix(suffix).read_bytes()
    drawn = [geopandas.read_file(path.with_suffix(".gpkg")) for path in (out, whole)]
    assert drawn[0].equals(drawn[1])
    assert drawn[0].area_m2.sum() == pytest.approx(2100 * 180 * 100, rel=1e-3)
