"""Does a method help on ground that it has not seen? Methods x pairs x starts x seeds.

    python tests/benchmarks/bench_generalise.py --out FOLDER --quick
    python tests/benchmarks/bench_generalise.py --out FOLDER --methods frozen full lora \\
        --init pretrained random --seeds 1 2 3

Every run is a fit on a source and an evaluation on a target as rsseg does them, with the same head,
steps, data order and augmentation for all methods (`generalise/settings.py`). A finished run leaves
a file in FOLDER/runs and is not done again; FOLDER/table.md and table.json are written anew after
each seed. The imagery is looked for in ../shared/data beside the repository, or $RSSEG_SHARED/data.
"""

from __future__ import annotations

import argparse
import os
import sys
import warnings
from pathlib import Path

from generalise import settings, table
from generalise.pairs import PAIRS
from generalise.runs import Job, Workshop, run_all

from rsseg_cli.errors import Interrupted, RssegWarning

SHARED = Path(os.environ.get("RSSEG_SHARED", Path(__file__).parents[3] / "shared"))
NANO = "galileo_nano"
QUICK_PAIRS = ["cloud_s2_halves", "cloud_s2_to_l7", "chiapas_1999_to_2002", "sample_north_to_south"]


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of results")
    parser.add_argument("--work", type=Path, help="folder of prepared imagery (OUT/work)")
    parser.add_argument(
        "--methods", nargs="+", default=["frozen", "full", "lora"], metavar="METHOD[+VARIANT]",
        choices=settings.names(), help="of: " + " ".join(settings.names()),
    )  # fmt: skip
    parser.add_argument(
        "--pairs", nargs="+", choices=list(PAIRS), metavar="PAIR", help="of: " + " ".join(PAIRS)
    )
    parser.add_argument("--seeds", nargs="+", type=int, help="1 2 3; 1 if quick")
    parser.add_argument("--backbone", default=NANO)
    parser.add_argument("--weights", type=Path, help="the backbone's weights file")
    parser.add_argument(
        "--init", nargs="+", default=["pretrained"], choices=["pretrained", "random"]
    )
    parser.add_argument("--steps", type=int, help="steps of a run")
    parser.add_argument("--patch", type=int, default=4)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--quick", action="store_true", help="4 pairs, 1 seed, few steps")
    return parser.parse_args()


def main() -> int:
    """Run, and write the table after each seed."""
    given = arguments()
    warnings.simplefilter("ignore", RssegWarning)
    budget = settings.QUICK if given.quick else settings.FULL
    if given.steps:
        budget = settings.Budget(steps=given.steps, batch=budget.batch)
    weights = given.weights
    if weights is None and given.backbone == NANO:
        weights = SHARED / "data" / "weights" / "galileo-nano"
    shop = Workshop(
        data=SHARED / "data",
        work=given.work or given.out / "work",
        weights=weights,
        budget=budget,
        patch=given.patch,
        device=given.device,
    )
    pairs = given.pairs or (QUICK_PAIRS if given.quick else list(PAIRS))
    title = f"Unseen ground, {given.backbone}, {budget.steps} steps of {budget.batch} tiles"
    records = []
    for seed in given.seeds or ([1] if given.quick else [1, 2, 3]):
        jobs = [
            Job(pair, given.backbone, init, method, seed)
            for pair in pairs
            for init in given.init
            for method in given.methods
        ]
        records += run_all(jobs, shop, given.out / "runs")
        page = table.write(records, given.out, title)
    print(page)
    return int(any("error" in record for record in records))


if __name__ == "__main__":
    try:
        sys.exit(main())
    except Interrupted as stopped:
        print(f"{stopped.what}; the same command goes on", file=sys.stderr)
        sys.exit(130)
