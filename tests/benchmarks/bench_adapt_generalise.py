"""Gain from adapting to unlabelled areas. Methods x pairs x seeds, each in five ways.

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
import sys

from generalise import command, settings, ways_table
from generalise.areas import AREAS
from generalise.runs import Job
from generalise.ways import Ways

METHODS = ["frozen", "lora", "full", "crossearth_gate", "fishertune"]


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = command.parser(__doc__)
    parser.add_argument("--methods", nargs="+", default=METHODS, choices=settings.names())
    parser.add_argument("--pairs", nargs="+", default=list(AREAS), choices=list(AREAS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument("--steps", type=int, default=settings.FULL.steps, help="steps of a fit")
    parser.add_argument("--adapt-steps", type=int, default=settings.FULL.steps)
    parser.add_argument(
        "--set", nargs="+", default=[], metavar="KEY=VALUE", help="of adaptations: adapt.blur=0.5"
    )
    return parser.parse_args()


def main() -> int:
    """Run, and write the table after each seed."""
    given = arguments()
    shop = Ways(
        **command.place(given),
        budget=settings.Budget(steps=given.steps, batch=settings.FULL.batch),
        adapt_steps=given.adapt_steps,
        more=tuple(given.set),
    )
    title = f"Adapted, {given.backbone}, {given.steps} steps and {given.adapt_steps} of adapt"

    def jobs(seed: int) -> list[Job]:
        return [
            Job(pair, given.backbone, "pretrained", method, seed)
            for pair in given.pairs
            for method in given.methods
        ]

    return command.run_seeds(
        given.seeds,
        jobs,
        shop,
        given.out,
        lambda records: ways_table.write(records, given.out, title),
    )


if __name__ == "__main__":
    sys.exit(command.status(main))
