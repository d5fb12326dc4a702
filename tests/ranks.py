"""Maps a scene in several processes, some of which are killed: SCENE FOLDER.

Prints a line of JSON per case: how the processes ended, and which names were there then.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import time
from dataclasses import asdict
from pathlib import Path

from killed import all_products, slow_model, small_steps
from torch import Tensor

from rsseg_cli.errors import RssegError
from rsseg_cli.predict import team
from rsseg_cli.predict.engine import predict_scene
from rsseg_cli.raster.aoi import Area
from rsseg_cli.raster.scene import Scene

GONE, REFUSED = 7, 8
team.PULSE_S, team.DEADLINE_S = 0.1, 2.0


def map_scene(path: Path, target: Path, *, resume: bool, box: bool, fails: bool) -> None:
    """Map the scene with all products, as one process of those in the environment."""
    steps = small_steps()
    with team.open_team() as crew, Scene.open(path) as scene:

        def model(tiles: Tensor) -> Tensor:
            if fails and crew.rank == crew.size - 1:
                raise RssegError("no more of this", where="a test", fix="nothing")
            return slow_model(tiles)

        area = None
        if box:
            left, top = scene.transform * (20, 300)
            right, bottom = scene.transform * (150, 1500)
            bounds = (min(left, right), min(top, bottom), max(left, right), max(top, bottom))
            area = Area.from_bounds(bounds, scene)
        result = predict_scene(
            scene, model, all_products(target), area=area, resume=resume, team=crew, **steps
        )  # fmt: skip
        if crew.leads:
            target.with_suffix(".result").write_text(json.dumps(asdict(result)))


def start(rank: int, size: int, port: int, path: Path, target: Path, **how: bool) -> int:
    """Fork one of several processes."""
    child = os.fork()
    if child:
        return child
    os.environ |= {
        "RANK": str(rank), "WORLD_SIZE": str(size), "LOCAL_RANK": str(rank),
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
    }  # fmt: skip
    code = 1
    try:
        map_scene(path, target, **how)
        code = 0
    except team.GoneError:
        code = GONE
    except RssegError:
        code = REFUSED
    finally:
        os._exit(code)


def together(path: Path, target: Path, size: int, kill: int | None = None, **how: bool) -> None:
    """Map in several processes; print how they ended."""
    target.parent.mkdir(exist_ok=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    how = {"resume": False, "box": False, "fails": False} | how
    children = [start(rank, size, port, path, target, **how) for rank in range(size)]
    if kill is not None:
        while not list(target.parent.glob(".out.tif.parts/*.tif")):
            time.sleep(0.01)
        os.kill(children[kill], signal.SIGKILL)
    ends = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    print(json.dumps({"ends": ends, "names": sorted(p.name for p in target.parent.glob("[!.]*"))}))


def main(path: Path, folder: Path) -> None:
    """Run all cases."""
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
