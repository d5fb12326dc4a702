"""Runs `rsseg` with a kill -9 of one process in some attempts: COMMAND ...

KILLS is a JSON list: for each attempt of `torchrun` the rank that is killed, the function
(module:name) and the number of its call, from 1. With PROCESSES in the environment this script is
the agent of `torchrun` itself; it forks its workers, which saves them the imports.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import sys
from functools import reduce
from typing import Any
from uuid import uuid4

import torch
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from rsseg_cli import distributed
from rsseg_cli.cli import main
from rsseg_cli.commands.predict import predict
from rsseg_cli.predict import plan


def die_in(function: str, number: int) -> None:
    """Replace a function by one that kills this process in a call."""
    module, _, name = function.partition(":")
    *owners, last = name.split(".")
    owner = reduce(getattr, owners, importlib.import_module(module))
    original, calls = getattr(owner, last), 0

    def killed(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == number:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*args, **kwargs)

    setattr(owner, last, killed)


def work() -> None:
    """Run the command as one process of an attempt."""
    distributed._attempt = uuid4().hex  # as in a process that imports it
    kills = json.loads(os.environ["KILLS"])
    attempt = int(os.environ["TORCHELASTIC_RESTART_COUNT"])
    print(f"attempt {attempt}", file=sys.stderr)
    if attempt < len(kills):
        rank, function, number = kills[attempt]
        if rank == int(os.environ["RANK"]):
            die_in(function, number)
    main()


if __name__ == "__main__":
    torch.set_num_threads(1)
    plan.PART_PIXELS = predict.PART_PIXELS = 512 * 64
    if "PROCESSES" in os.environ:
        config = LaunchConfig(
            1, 1, int(os.environ["PROCESSES"]), rdzv_backend="c10d", rdzv_endpoint="localhost:0",
            run_id=uuid4().hex, start_method="fork",
        )  # fmt: skip
        elastic_launch(config, work)()
    else:
        work()
