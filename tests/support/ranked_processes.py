"""Maps a scene in several processes, some of which are killed: SCENE FOLDER.

Prints a line of JSON per case: how the processes ended, and which files existed then.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from kill_predict import all_products, slow_model, small_steps
from torch import Tensor

from rsseg_cli import distributed
from rsseg_cli.errors import RssegError, UnreadableError
from rsseg_cli.predict.engine import predict_scene
from rsseg_cli.predict.pipeline import SceneTask
from rsseg_cli.raster.aoi import Area
from rsseg_cli.raster.scene import Scene

LOST, FAILED, QUIET = 7, 8, 1
"""Exit codes: another process has ended, an error, an error that rank 0 prints."""


def map_scene(path: Path, target: Path, *, resume: bool, box: bool, fails: bool) -> None:
    """Map the scene with all products, as one process of those in the environment."""
    tiling = small_steps()
    with distributed.group("cpu"), Scene.open(path) as scene:
        last = distributed.rank() == distributed.world_size() - 1

        def model(tiles: Tensor) -> Tensor:
            if fails and last:
                raise RssegError("no more of this", where="a test", fix="nothing")
            return slow_model(tiles)

        area = None
        if box:
            left, top = scene.transform * (20, 300)
            right, bottom = scene.transform * (150, 1500)
            bounds = (min(left, right), min(top, bottom), max(left, right), max(top, bottom))
            area = Area.from_bounds(bounds, scene)
        outputs = all_products(target, resume=resume)
        result = predict_scene(SceneTask(scene, model, outputs, tiling, area=area), together=True)
        if distributed.is_main():
            target.with_suffix(".result").write_text(json.dumps(asdict(result)))


def exchange(folder: Path) -> None:
    """Use every call between processes; each rank writes its results to FOLDER/RANK.json."""
    with distributed.group("cpu"):
        rank = distributed.rank()
        got: dict[str, Any] = {
            "gathered": distributed.gather({"twice": 2 * rank}),
            "broadcast": distributed.broadcast([rank]),
            "claimed": list(distributed.claim_indices(20)),
        }
        try:
            with distributed.raise_together():
                if rank > 0:
                    raise UnreadableError(f"in {rank}", where="here", fix="this")
        except RssegError as error:
            got["error"] = [type(error).__name__, error.what, error.where, error.fix]
        with distributed.single_process():
            got["alone"] = [distributed.world_size(), distributed.gather(rank)]
            got["claimed alone"] = list(distributed.claim_indices(2))
        (folder / f"{rank}.json").write_text(json.dumps(got))
        with distributed.raise_together():
            if not distributed.is_main():
                raise RssegError("of another rank")


def start(rank: int, size: int, port: int, work: Callable[[], None]) -> int:
    """Fork one of several processes."""
    child = os.fork()
    if child:
        return child
    os.environ |= {
        "RANK": str(rank), "WORLD_SIZE": str(size), "LOCAL_RANK": str(rank),
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
    }  # fmt: skip
    code = 99
    try:
        work()
        code = 0
    except RssegError as error:
        code = LOST if "another process has ended" in error.what else FAILED
    except SystemExit as stop:
        code = int(stop.code or 0)
    finally:
        os._exit(code)


def fork(size: int, work: Callable[[], None]) -> list[int]:
    """Start several processes of one group."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return [start(rank, size, port, work) for rank in range(size)]


def wait_for(children: Sequence[int]) -> list[int]:
    """Return how processes ended."""
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]


def together(path: Path, target: Path, size: int, kill: int | None = None, **how: bool) -> None:
    """Map in several processes; print how they ended."""
    target.parent.mkdir(exist_ok=True)
    how = {"resume": False, "box": False, "fails": False} | how
    children = fork(size, partial(map_scene, path, target, **how))
    if kill is not None:
        while not list(target.parent.glob(".out.tif.parts/*.tif")):
            time.sleep(0.01)
        os.kill(children[kill], signal.SIGKILL)
    ends = wait_for(children)
    print(json.dumps({"ends": ends, "names": sorted(p.name for p in target.parent.glob("[!.]*"))}))


def main(path: Path, folder: Path) -> None:
    """Run all cases."""
    print(json.dumps(wait_for(fork(3, partial(exchange, folder)))))
    together(path, folder / "one" / "out.tif", 1)
    together(path, folder / "three" / "out.tif", 3)
    together(path, folder / "box_one" / "out.tif", 1, box=True)
    together(path, folder / "box_two" / "out.tif", 2, box=True)
    for kill in (0, 1):
        together(path, folder / f"killed_{kill}" / "out.tif", 2, kill)
        together(path, folder / f"killed_{kill}" / "out.tif", 2 - kill, resume=True)
    together(path, folder / "failed" / "out.tif", 2, fails=True)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
