"""Measure training: `rsseg bench fit`, and a step of the mask head beside transformers' own.

Everything on one device in one run, with versions. Writes one JSON object to `--out`.

    OMP_NUM_THREADS=1 python tests/benchmarks/bench_fit.py --src ../shared/data/landcover/...
    python tests/benchmarks/bench_fit.py --device cuda --bf16 --out tests/benchmarks/results/x.json

A CPU is measured in CPU seconds per thread; set OMP_NUM_THREADS to the number of free cores, or
threads that wait for each other are all that is measured.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from rsseg_cli.commands.bench.fit import bench_fit, show
from rsseg_cli.commands.bench.options import BenchFitOptions


def head(device: str, size: int, points: int, repeats: int, *, bf16: bool) -> dict[str, Any]:
    """Run `bench_head.py` in a process of its own."""
    script = Path(__file__).with_name("bench_head.py")
    options = {"size": size, "points": points, "device": device, "repeats": repeats}
    done = subprocess.run(
        [sys.executable, str(script), *(f"--{key}={value}" for key, value in options.items()),
         *["--bf16"] * bf16],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--src", action="append", default=[])
    parser.add_argument("--methods", nargs="*", default=[], help="all by default")
    parser.add_argument("--backbone")
    parser.add_argument("--tile", type=int)
    parser.add_argument("--batch", type=int)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--head-size", type=int, default=256)
    parser.add_argument("--points", type=int, default=12_544)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--bf16", action="store_true", help="of the head; the rest chooses itself")
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    same = ("backbone", "tile", "batch", "steps", "rounds", "device")
    found = bench_fit(
        BenchFitOptions(
            src=tuple(asked.src),
            method=tuple(asked.methods),
            **{key: getattr(asked, key) for key in same},
        )
    )
    found["head"] = head(asked.device, asked.head_size, asked.points, asked.rounds, bf16=asked.bf16)
    show(found)
    print("mask head, transformers beside rsseg:", found["head"]["ratio"])
    if asked.out:
        asked.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
