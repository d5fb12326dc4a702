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
import sys

from generalise import command, settings, table
from generalise.pairs import PAIRS
from generalise.runs import Job, Workshop

QUICK_PAIRS = ["cloud_s2_halves", "cloud_s2_to_l7", "chiapas_1999_to_2002", "sample_north_to_south"]


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = command.parser(__doc__)
    parser.add_argument(
        "--methods", nargs="+", default=["frozen", "full", "lora"], metavar="METHOD[+VARIANT]",
        choices=settings.names(), help="of: " + " ".join(settings.names()),
    )  # fmt: skip
    parser.add_argument(
        "--pairs", nargs="+", choices=list(PAIRS), metavar="PAIR", help="of: " + " ".join(PAIRS)
    )
    parser.add_argument("--seeds", nargs="+", type=int, help="1 2 3; 1 if quick")
    parser.add_argument(
        "--init", nargs="+", default=["pretrained"], choices=["pretrained", "random"]
    )
    parser.add_argument("--steps", type=int, help="steps of a run")
    parser.add_argument("--quick", action="store_true", help="4 pairs, 1 seed, few steps")
    return parser.parse_args()


def main() -> int:
    """Run, and write the table after each seed."""
    given = arguments()
    budget = settings.QUICK if given.quick else settings.FULL
    if given.steps:
        budget = settings.Budget(steps=given.steps, batch=budget.batch)
    pairs = given.pairs or (QUICK_PAIRS if given.quick else list(PAIRS))
    title = f"Unseen ground, {given.backbone}, {budget.steps} steps of {budget.batch} tiles"

    def jobs(seed: int) -> list[Job]:
        return [
            Job(pair, given.backbone, init, method, seed)
            for pair in pairs
            for init in given.init
            for method in given.methods
        ]

    return command.run_seeds(
        given.seeds or ([1] if given.quick else [1, 2, 3]),
        jobs,
        Workshop(**command.place(given), budget=budget),
        given.out,
        lambda records: table.write(records, given.out, title),
    )


if __name__ == "__main__":
    sys.exit(command.status(main))
