"""`torchrun --max-restarts` finishes a command whose processes are killed, and only its own."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from paths import ENVIRONMENT, SUPPORT
from processes import free_port
from runs import SMALL, rsseg, write_city
from scenes import random_samples, write_raster
from torch import Tensor
from torch.distributed import HashStore, TCPStore
from training_jobs import same, weights

from rsseg_cli import distributed
from rsseg_cli.data.tiles.tile_stream import Batch
from rsseg_cli.training.loop import Trainer
from rsseg_cli.training.run_folder import RunFolder

STEP, REPORT = "rsseg_cli.training.loop:Trainer.step", "rsseg_cli.commands.fit.job:write_report"
INFER = "rsseg_cli.commands.predict.scene_predictor:ModelInfer.__call__"
Kill = tuple[int, str, int]


def torchrun(
    *arguments: str | Path, kills: list[Kill], processes: int = 2
) -> subprocess.CompletedProcess[str]:
    """Call `rsseg` under torchrun; with several processes, its agent forks them."""
    torchrun = [
        "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "1",
        "--max-restarts", "3",
    ]  # fmt: skip
    forks = {"PROCESSES": str(processes)} if processes > 1 else {}
    return subprocess.run(
        [sys.executable, *([] if forks else torchrun), SUPPORT / "restarted.py", *arguments],
        env=ENVIRONMENT | forks | {"KILLS": json.dumps(kills)},
        capture_output=True, text=True, check=False, timeout=200,
    )  # fmt: skip


def fit(city: Path, run: Path) -> list[str | Path]:
    return [
        "fit", "--method", "lora", "--src", city, "-o", run, *SMALL, "--steps", "9",
        "--set", "training.save_every=2", "--set", "training.log_every=1",
        "--set", "training.validate_every=4", "--no-pretrained",
    ]  # fmt: skip


@pytest.mark.parametrize(("processes", "kill"), [(2, (1, STEP, 6)), (1, (0, REPORT, 1))])
def test_fit_finishes(tmp_path: Path, processes: int, kill: Kill) -> None:
    city = write_city(tmp_path / "city", scenes=2)
    done = torchrun(*fit(city, tmp_path / "run"), kills=[kill], processes=processes)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("attempt") == 2 * processes
    run, whole = RunFolder(tmp_path / "run"), RunFolder(tmp_path / "whole")
    assert done.stdout == f"{run.model}\n"
    assert run.finished
    assert (run.report / "report.html").is_file()
    if processes == 1:
        assert rsseg(*fit(city, whole.path)).code == 0
        assert same(weights(run.last), weights(whole.last))
    steps = [record["step"] for record in run.records() if "losses" in record]
    assert steps == list(range(1, 10))


def test_predict_finishes(fitted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    samples = random_samples(3, 1100, 60, "uint16")
    for name, rows in (("a", 60), ("large", 1100)):
        (tmp_path / "in").mkdir(exist_ok=True)
        write_raster(tmp_path / "in" / f"{name}.tif", samples[:, :rows])
    call = ["predict", "in", "--model", fitted, "--batch", "4", "--confidence", "max"]
    kills: list[Kill] = [(1, INFER, 8), (0, "rsseg_cli.predict.engine:_publish", 1)]
    done = torchrun(*call, "-o", "out", kills=kills)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("attempt") == 6
    assert sorted(done.stdout.split()[-2:]) == ["out/a.seg.tif", "out/large.seg.tif"]
    assert rsseg(*call, "-o", "alone").code == 0
    names = {path.name for path in Path("alone").iterdir()}
    assert {path.name for path in Path("out").iterdir()} == names
    for name in sorted(names):
        if name.endswith(".tif"):
            assert (Path("out") / name).read_bytes() == (Path("alone") / name).read_bytes(), name


@pytest.fixture
def launch(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], None]]:
    """Act as a command under torchrun in its first attempt; call the result to restart it."""
    port = free_port()
    store = TCPStore("127.0.0.1", port, is_master=True, wait_for_workers=False)
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(port))
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    distributed._launch_store.cache_clear()
    yield lambda: monkeypatch.setattr(distributed, "_attempt", "the next one")
    distributed._launch_store.cache_clear()
    del store


def test_what_is_begun_is_known_after_a_restart_only(
    tmp_path: Path, launch: Callable[[], None]
) -> None:
    distributed.mark_begun(tmp_path / "run")
    distributed.save_for_restart("started", "5.0")
    assert not distributed.begun_before_restart(tmp_path / "run")
    assert distributed.seconds_before_restart() == 0
    launch()
    assert distributed.begun_before_restart(tmp_path / "run")
    assert not distributed.begun_before_restart(tmp_path / "other")
    distributed.save_for_restart("started", "6.0")
    assert distributed.value_before_restart("started") == "5.0"
    assert distributed.seconds_before_restart() > 1e9


def test_old_keys_of_a_store_do_not_mislead_the_processes() -> None:
    store, seen = HashStore(), []
    for _ in range(3):
        with ThreadPoolExecutor(3) as pool:
            late = [
                pool.submit(distributed._agree_on_attempt, store, number, 3) for number in (1, 2)
            ]
            time.sleep(0.05)  # they find the offer of the attempt before
            ids = {distributed._agree_on_attempt(store, 0, 3), *(each.result() for each in late)}
        assert len(ids) == 1
        seen += ids
    assert len(set(seen)) == 3


def test_a_restart_leaves_the_runs_of_others_alone(
    tmp_path: Path, launch: Callable[[], None]
) -> None:
    city, run = write_city(tmp_path / "city", scenes=1), tmp_path / "run"
    assert rsseg(*fit(city, run)).code == 0
    (run / "resume.pt").write_bytes(b"of another command")
    distributed._launch_store().delete_key(f"begun {run}")  # type: ignore[union-attr]
    launch()
    before = {path: path.read_bytes() for path in run.iterdir() if path.is_file()}
    call = rsseg(*fit(city, run))
    assert call.code == 1
    assert "already exists, unfinished" in call.err
    assert {path: path.read_bytes() for path in before} == before


def test_a_restart_begins_again_what_has_no_state(
    tmp_path: Path, launch: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    city, run = write_city(tmp_path / "city", scenes=1), tmp_path / "run"
    with monkeypatch.context() as patched:
        patched.setattr(Trainer, "step", lambda *args: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            rsseg(*fit(city, run))
    launch()
    assert rsseg(*fit(city, run)).code == 0
    again = rsseg(*fit(city, run), "--overwrite")
    assert again.code == 1  # finished: a restart replaces nothing
    assert "already exists" in again.err


def test_a_restart_continues_an_adaptation(
    fitted: Path, tmp_path: Path, launch: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_city(tmp_path / "town", scenes=2)
    run = RunFolder(tmp_path / "run")
    call = [
        "adapt", "--model", fitted, "--tgt", tmp_path / "town" / "images", "--source-free",
        "-o", run.path, "--steps", "5", "--batch", "2", "--device", "cpu",
        "--set", "training.save_every=2", "--set", "training.num_workers=0",
    ]  # fmt: skip
    steps: list[int] = []
    original = Trainer.step

    def step(self: Trainer, index: int, stream: Iterator[Batch]) -> dict[str, Tensor]:
        steps.append(index)
        return 1 / 0 if len(steps) == 4 else original(self, index, stream)  # type: ignore

    monkeypatch.setattr(Trainer, "step", step)
    with pytest.raises(ZeroDivisionError):
        rsseg(*call)
    launch()
    assert rsseg(*call).code == 0
    assert steps == [0, 1, 2, 3, 2, 3, 4]
    assert run.finished
    assert (run.report / "report.html").is_file()


def test_a_restart_does_not_outlive_the_time(tmp_path: Path, launch: Callable[[], None]) -> None:
    city, run = write_city(tmp_path / "city", scenes=1), tmp_path / "run"
    limited = [*fit(city, run), "--steps", "5000", "--max-time", "1s"]
    assert rsseg(*limited).code == 130
    launch()
    call = rsseg(*limited)
    assert call.code == 130
    assert "the time of --max-time is up" in call.err
    assert "not restarted" in call.err


def test_a_restart_replaces_no_map_of_others(
    fitted: Path, tmp_path: Path, launch: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in "ab":
        write_raster(tmp_path / f"{name}.tif", random_samples(3, 40, 40, "uint16"))
    assert rsseg("predict", "a.tif", "--model", fitted).code == 0
    (tmp_path / "b.seg.tif").write_text("of another command")
    launch()
    call = rsseg("predict", "a.tif", "--model", fitted, "--json")
    assert [scene["status"] for scene in call.document["scenes"]] == ["exists"]
    call = rsseg("predict", "b.tif", "--model", fitted)
    assert call.code == 1
    assert "the output already exists" in call.err
    assert Path("b.seg.tif").read_text() == "of another command"
