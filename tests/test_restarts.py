"""`torchrun --max-restarts` finishes a command whose processes are killed, and only its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import random_samples, write_raster
from jobs import same, weights
from runs import SMALL, rsseg, write_city
from test_processes import free_port
from torch.distributed import TCPStore

from rsseg_cli import distributed
from rsseg_cli.training.folder import RunFolder

HERE = Path(__file__).parent
STEP, SCORE = "rsseg_cli.training.loop:Updates.take", "rsseg_cli.run.fit:write_report"
INFER = "rsseg_cli.run.mapper:ModelInfer.__call__"
Kill = tuple[int, str, int]


def torchrun(
    *arguments: str | Path, kills: list[Kill], processes: int = 2, restarts: int = 3
) -> subprocess.CompletedProcess[str]:
    """Call `rsseg` under torchrun."""
    return subprocess.run(
        [
            sys.executable, "-m", "torch.distributed.run", "--standalone",
            "--nproc-per-node", str(processes), "--max-restarts", str(restarts),
            HERE / "restarted.py", *arguments,
        ],
        env=os.environ
        | {"PYTHONPATH": f"{HERE.parent}{os.pathsep}{HERE}", "OMP_NUM_THREADS": "1"}
        | {"KILLS": json.dumps(kills)},
        capture_output=True, text=True, check=False, timeout=200,
    )  # fmt: skip


def fit(city: Path, run: Path) -> list[str | Path]:
    return [
        "fit", "--method", "lora", "--src", city, "-o", run, *SMALL, "--steps", "9",
        "--set", "training.save_every=2", "--set", "training.log_every=1",
        "--set", "training.validate_every=4", "--no-pretrained",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("processes", "kills"),
    [
        (2, [(1, STEP, 6), (0, STEP, 2), (0, SCORE, 1)]),
        (1, [(0, "rsseg_cli.training.checkpoint:save_resume", 1), (0, STEP, 4)]),
    ],
)
def test_fit_finishes(tmp_path: Path, processes: int, kills: list[Kill]) -> None:
    city = write_city(tmp_path / "city", scenes=2)
    done = torchrun(*fit(city, tmp_path / "run"), kills=kills, processes=processes)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("attempt") == processes * (len(kills) + 1)
    run, whole = RunFolder(tmp_path / "run"), RunFolder(tmp_path / "whole")
    assert done.stdout == f"{run.model}\n"
    assert run.finished
    assert (run.report / "report.html").is_file()
    if processes == 1:
        assert rsseg(*fit(city, whole.path)).code == 0
        assert same(weights(run.last), weights(whole.last))
    steps = [record["step"] for record in run.records() if "losses" in record]
    assert steps == list(range(1, 10))


def test_a_restart_leaves_the_runs_of_others_alone(tmp_path: Path) -> None:
    city = write_city(tmp_path / "city", scenes=1)
    first = torchrun(*fit(city, tmp_path / "run"), kills=[(0, STEP, 6)], processes=1, restarts=0)
    assert first.returncode != 0
    before = {path: path.read_bytes() for path in (tmp_path / "run").iterdir()}
    assert tmp_path / "run" / "resume.pt" in before
    again = torchrun(*fit(city, tmp_path / "run"), kills=[], processes=1, restarts=1)
    assert again.returncode != 0
    assert again.stderr.count("is there already, unfinished") == 2
    assert {path: path.read_bytes() for path in (tmp_path / "run").iterdir()} == before


def test_predict_finishes(fitted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    samples = (random_samples(3, 1100, 60).astype("uint16") + 1) * 30
    for name, rows in (("a", 60), ("large", 1100)):
        (tmp_path / "in").mkdir(exist_ok=True)
        write_raster(tmp_path / "in" / f"{name}.tif", samples[:, :rows])
    call = ["predict", "in", "--model", fitted, "--batch", "4", "--confidence", "max"]
    kills: list[Kill] = [(1, INFER, 4), (0, INFER, 6), (0, "rsseg_cli.predict.engine:_publish", 1)]
    done = torchrun(*call, "-o", "out", kills=kills)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("attempt") == 8
    assert sorted(done.stdout.split()[-2:]) == ["out/a.seg.tif", "out/large.seg.tif"]
    assert rsseg(*call, "-o", "alone").code == 0
    names = {path.name for path in Path("alone").iterdir()}
    assert {path.name for path in Path("out").iterdir()} == names
    for name in sorted(names):
        if name.endswith(".tif"):
            assert (Path("out") / name).read_bytes() == (Path("alone") / name).read_bytes(), name


def test_a_restart_replaces_no_map_of_others(
    fitted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_raster(tmp_path / "a.tif", random_samples(3, 40, 40).astype("uint16"))
    assert rsseg("predict", "a.tif", "--model", fitted).code == 0
    before = Path("a.seg.tif").read_bytes()
    done = torchrun("predict", "a.tif", "--model", fitted, kills=[], processes=1, restarts=1)
    assert done.returncode != 0
    assert done.stderr.count("the output is there already") == 2
    assert Path("a.seg.tif").read_bytes() == before


def test_what_is_begun_is_known_after_a_restart_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = free_port()
    store = TCPStore("127.0.0.1", port, is_master=True, wait_for_workers=False)
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(port))
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", "2")
    distributed._launch_store.cache_clear()
    try:
        distributed.mark_begun(tmp_path / "run")
        distributed.remember("started", "5.0")
        assert not distributed.begun_before_restart(tmp_path / "run")
        monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
        assert distributed.begun_before_restart(tmp_path / "run")
        assert not distributed.begun_before_restart(tmp_path / "other")
        distributed.remember("started", "6.0")
        assert distributed.recall("started") == "5.0"
        assert distributed.seconds_before_restart() > 1e9
    finally:
        distributed._launch_store.cache_clear()
        del store
