"""`kill -9` at any moment leaves whole files only, and a run that goes on to the same model."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from paths import ENVIRONMENT, SUPPORT
from training_jobs import same, weights

from rsseg_cli.training import checkpoint
from rsseg_cli.training.run_folder import RunFolder


def test_killed_runs_resume_to_the_same_model(tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    done = subprocess.run(
        [sys.executable, SUPPORT / "kill_fit.py", whole, killed],
        env=ENVIRONMENT,
        capture_output=True, text=True, check=False, timeout=200,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    *seen, finished = done.stdout.splitlines()
    assert finished.startswith("finished")
    # Some kills left half a file under a name of its own; the next run writes over it.
    assert sum("parts@0" not in line for line in seen) >= 2, done.stdout
    assert any("resume@" in line for line in seen)
    for name in ("model.safetensors", "last.safetensors"):
        assert same(weights(whole / name), weights(killed / name))
    about = [checkpoint.load_model(folder / "model.safetensors")[1] for folder in (whole, killed)]
    assert about[0] == about[1]
    lines = [
        [(line["step"], line.get("loss"), line.get("val")) for line in RunFolder(folder).records()]
        for folder in (whole, killed)
    ]
    assert lines[0] == lines[1]
    assert {one.name for one in killed.iterdir()} == {one.name for one in whole.iterdir()}
