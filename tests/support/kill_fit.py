"""Fits a tiny model in processes that are killed at any moment: FOLDER OF WHOLE, OF KILLED.

Two kills of three strike while a file is being written. After each one it prints what is there,
and whether it can be read.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from fakes import build
from safetensors.torch import save_file
from training_jobs import Scores, Tiles, job, run

from rsseg_cli.data.tiles.tile_stream import Batch
from rsseg_cli.segmenter import Segmenter
from rsseg_cli.training import checkpoint

STEPS = 14
PAUSE_S = 0.02


class Slow(Tiles):
    """Tiles that take their time, so that a kill finds the run at work."""

    def __getitem__(self, index: int) -> Batch:
        time.sleep(PAUSE_S)
        return super().__getitem__(index)


class Rising(Scores):
    """A score that rises at every validation: each one writes a model."""

    def __init__(self, first: int) -> None:
        super().__init__(*(0.01 * number for number in range(first + 1, STEPS + 1)))


def fit(folder: Path, model: Segmenter) -> None:
    """Fit, from the last state if there is one."""
    resume = (folder / "resume.pt").exists()
    done = checkpoint.load_resume(folder / "resume.pt")["step"] if resume else 0
    work = job(
        folder, model=model, steps=STEPS, open_batches=lambda size: Slow(count=size),
        validate=Rising(done), validate_every=1, save_every=2,
    )  # fmt: skip
    run(work, resume=resume)


def half_written(save: Callable[..., Any], after: int) -> Callable[..., Any]:
    """Make a function that writes so many whole files, then half of one, and is killed."""
    written = [0]

    def write(content: Any, target: Any, **more: Any) -> None:
        save(content, target, **more)
        written[0] += 1
        if written[0] > after:
            path = target if isinstance(target, Path) else Path(target.name)
            getattr(target, "flush", int)()
            os.truncate(path, path.stat().st_size // 2)
            os.kill(os.getpid(), signal.SIGKILL)

    return write


def in_child(folder: Path, model: Segmenter, rng: random.Random | None, number: int) -> bool:
    """Fit in a process that is killed; return whether it finished."""
    child = os.fork()
    if not child:
        code = 1
        try:
            resumes = half_written(torch.save, rng.randrange(2) if rng and number % 3 == 0 else 99)
            models = half_written(save_file, rng.randrange(3) if rng and number % 3 == 1 else 99)
            if rng and number % 3 == 2:
                threading.Timer(
                    rng.uniform(0.0, 0.3), os.kill, (os.getpid(), signal.SIGKILL)
                ).start()
            with (
                patch.object(torch, "save", resumes),
                patch.object(checkpoint, "save_file", models),
            ):
                fit(folder, model)
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
    return not os.WIFSIGNALED(status)


def describe(folder: Path) -> str:
    """Read every file that stands under its name; one that is broken raises."""
    found = []
    if (folder / "resume.pt").exists():
        found.append(f"resume@{checkpoint.load_resume(folder / 'resume.pt')['step']}")
    if (folder / "model.safetensors").exists():
        found.append(f"model@{checkpoint.load_model(folder / 'model.safetensors')[1]['step']}")
    parts = len(list(folder.glob(".*.part")))
    return " ".join([*found, f"parts@{parts}"])


def main(whole: Path, killed: Path) -> None:
    """Fit once undisturbed, then killed again and again."""
    torch.set_num_threads(1)
    model = build("lora", rank=4)
    model.backbone.weights_are_public = True  # small files
    assert in_child(whole, model, None, 0)
    rng = random.Random(0)
    for number in range(40):
        if in_child(killed, model, rng, number):
            print("finished after", number, "kills")
            return
        print(describe(killed))
        rng.random()  # the children draw from copies
    raise SystemExit("it never came to an end")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
