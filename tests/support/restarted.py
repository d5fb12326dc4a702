"""Runs `rsseg` with a kill -9 of one process in some attempts: COMMAND ...

KILLS is a JSON list: for each attempt of `torchrun` the rank that dies, the function (module:name)
and the number of its call, from 1.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import sys
from functools import reduce
from typing import Any

import torch

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


if __name__ == "__main__":
    torch.set_num_threads(1)
    plan.PART_PIXELS = predict.PART_PIXELS = 512 * 64
    kills = json.loads(os.environ["KILLS"])
    attempt = int(os.environ["TORCHELASTIC_RESTART_COUNT"])
    print(f"attempt {attempt}", file=sys.stderr)
    if attempt < len(kills):
        rank, function, number = kills[attempt]
        if rank == int(os.environ["RANK"]):
            die_in(function, number)
    main()
