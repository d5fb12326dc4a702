"""Options and loop that the benchmarks of generalisation share."""

from __future__ import annotations

import argparse
import os
import sys
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from generalise.runs import Job, Record, Workshop, run_all
from rsseg_cli.errors import Interrupted, RssegWarning

DATA = Path(os.environ.get("RSSEG_SHARED", Path(__file__).parents[4] / "shared")) / "data"
NANO = "galileo_nano"


def parser(about: str | None) -> argparse.ArgumentParser:
    """Build a parser with the options of a `Workshop`."""
    made = argparse.ArgumentParser(
        description=about, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--out", type=Path, required=True, help="folder of results")
    made.add_argument("--work", type=Path, help="folder of prepared imagery (OUT/work)")
    made.add_argument("--backbone", default=NANO)
    made.add_argument("--weights", type=Path, help="the backbone's weights file")
    made.add_argument("--patch", type=int, default=4)
    made.add_argument("--device", default="cpu")
    return made


def place(given: argparse.Namespace) -> dict[str, Any]:
    """Return the `Workshop` of these options."""
    weights = given.weights
    if weights is None and given.backbone == NANO:
        weights = DATA / "weights" / "galileo-nano"
    work = given.work or given.out / "work"
    return {
        "data": DATA, "work": work, "weights": weights, "patch": given.patch,
        "device": given.device,
    }  # fmt: skip


def run_seeds(
    seeds: Iterable[int],
    jobs: Callable[[int], list[Job]],
    shop: Workshop,
    out: Path,
    write: Callable[[list[Record]], Path],
) -> int:
    """Run the jobs of each seed, and rewrite the table after it; return whether a run failed."""
    warnings.simplefilter("ignore", RssegWarning)
    records: list[Record] = []
    for seed in seeds:
        records += run_all(jobs(seed), shop, out / "runs")
        page = write(records)
    print(page)
    return int(any("error" in record for record in records))


def status(main: Callable[[], int]) -> int:
    """Return the exit status of `main`; after Ctrl-C, print how to continue."""
    try:
        return main()
    except Interrupted as stopped:
        print(f"{stopped.what}; the same command goes on", file=sys.stderr)
        return 130
