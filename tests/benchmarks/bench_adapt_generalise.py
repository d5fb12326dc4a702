"""What is adapting to unlabelled ground worth? Methods x pairs x seeds, each in five ways.

    python tests/benchmarks/bench_adapt_generalise.py --out FOLDER --methods lora --seeds 1
    python tests/benchmarks/bench_adapt_generalise.py --out FOLDER \\
        --methods frozen lora full crossearth_gate fishertune --seeds 1 2 3

A run fits on the source, goes on there for as long as adapting takes, adapts the fitted model with
the source and without it, and fits on labels of the target, which is what could be reached
(`generalise/ways.py`). Unlabelled and tested ground share no pixel (`generalise/areas.py`).
Settings are those of `bench_generalise.py`, but a fifth of the ground is held back to choose models
by. A finished run leaves a file in FOLDER/runs and is not done again; FOLDER/table.md and
table.json are written anew after each seed.
"""

from __future__ import annotations

import argparse
import os
import sys
import warnings
from pathlib import Path

from generalise import settings, ways_table
from generalise.areas import AREAS
from generalise.runs import Job, run_all
from generalise.ways import Ways

from rsseg_cli.errors import Interrupted, RssegWarning

SHARED = Path(os.environ.get("RSSEG_SHARED", Path(__file__).parents[3] / "shared"))
NANO = "galileo_nano"
METHODS = ["frozen", "lora", "full", "crossearth_gate", "fishertune"]


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of results")
    parser.add_argument("--work", type=Path, help="folder of prepared imagery (OUT/work)")
    parser.add_argument("--methods", nargs="+", default=METHODS, choices=settings.names())
    parser.add_argument("--pairs", nargs="+", default=list(AREAS), choices=list(AREAS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument("--backbone", default=NANO)
    parser.add_argument("--weights", type=Path, help="the backbone's weights file")
    parser.add_argument("--steps", type=int, default=settings.FULL.steps, help="steps of a fit")
    parser.add_argument("--adapt-steps", type=int, default=settings.FULL.steps)
    parser.add_argument(
        "--set", nargs="+", default=[], metavar="KEY=VALUE", help="of adaptations: adapt.blur=0.5"
    )
    parser.add_argument("--patch", type=int, default=4)
    parser.add_argument("--device", default="cpu")
    return parser.parse_args()


def main() -> int:
    """Run, and write the table after each seed."""
    given = arguments()
    warnings.simplefilter("ignore", RssegWarning)
    weights = given.weights
    if weights is None and given.backbone == NANO:
        weights = SHARED / "data" / "weights" / "galileo-nano"
    shop = Ways(
        data=SHARED / "data",
        work=given.work or given.out / "work",
        weights=weights,
        budget=settings.Budget(steps=given.steps, batch=settings.FULL.batch),
        patch=given.patch,
        device=given.device,
        adapt_steps=given.adapt_steps,
        more=tuple(given.set),
    )
    title = f"Adapted, {given.backbone}, {given.steps} steps and {given.adapt_steps} of adapt"
    records = []
    for seed in given.seeds:
        jobs = [
            Job(pair, given.backbone, "pretrained", method, seed)
            for pair in given.pairs
            for method in given.methods
        ]
        records += run_all(jobs, shop, given.out / "runs")
        page = ways_table.write(records, given.out, title)
    print(page)
    return int(any("error" in record for record in records))


if __name__ == "__main__":
    try:
        sys.exit(main())
    except Interrupted as stopped:
        print(f"{stopped.what}; the same command goes on", file=sys.stderr)
        sys.exit(130)
