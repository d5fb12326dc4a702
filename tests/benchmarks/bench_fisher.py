"""Time and memory of FisherTune beside plain tuning of the same weights.

python tests/benchmarks/bench_fisher.py --backbone vit_small --tile 320 --batch 2
python tests/benchmarks/bench_fisher.py --ranks cloud_s2_to_l7 sample_north_to_south

Three ratios, each with what it must not exceed: a step of its tuning phase over a step that trains
all candidates with AdamW (1.10); an iteration of its estimation over such a step (2.2); and the
memory that the estimation needs beside weights and activations, in float32 copies of the
candidates, gradients included (4). Also the seconds in which all candidates are ranked. Weights
are random. The least of several times counts; what is compared takes turns.

With `--ranks`, instead, how far two seeds of the estimation agree on the sources of some pairs of
`bench_generalise.py`: the rank correlation of all scores, and the common part of the best 1 % and
5 %. The backbone is the pretrained galileo_nano, after the same warm-up.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import tempfile
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import torch
from generalise import ranks, settings
from generalise.pairs import PAIRS
from generalise.runs import Job, Workshop
from rgb import BANDS
from torch import Tensor

from rsseg_cli.config import family
from rsseg_cli.contract import Backbone, Head
from rsseg_cli.errors import RssegWarning
from rsseg_cli.find import find
from rsseg_cli.methods._fisher import ranking
from rsseg_cli.methods.fishertune import FisherTune
from rsseg_cli.segmenter import Segmenter
from rsseg_cli.training import optimizer
from rsseg_cli.training.precision import Precision

MOST = {"tuning": 1.10, "estimation": 2.2, "copies": 4.0}
TIMED = 4
"""Iterations of the estimation that are timed together."""


@dataclass
class Run:
    """A model, a batch, and what a training step does with them."""

    model: Segmenter
    image: Tensor
    label: Tensor
    precision: Precision
    index: int = 1
    total: int = 1000

    def backward(self) -> float:
        self.model.zero_grad(set_to_none=True)
        with self.precision.autocast():
            loss = torch.stack(list(self.model(self.image, self.label).values())).sum()
        torch.autograd.backward(loss)
        return float(loss.detach())

    def probes(self, count: int, *, samples: int = 1) -> Iterator[Run]:
        for _ in range(count):
            yield self
        self.model.zero_grad(set_to_none=True)

    def average(self, tensor: Tensor) -> Tensor:
        return tensor


def prepare(arguments: argparse.Namespace) -> tuple[Run, FisherTune]:
    torch.manual_seed(0)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    kind = find("backbones", family(arguments.backbone), Backbone)
    config: Any = kind.Config.model_validate({"name": arguments.backbone, "pretrained": False})
    backbone = kind(config, BANDS)  # type: ignore[call-arg,arg-type]
    settings = FisherTune.Config(
        warmup=0, statistics=2, gauge=2, estimation=TIMED, samples=arguments.batch
    )
    method, head_kind = FisherTune(settings, backbone), find("heads", arguments.head, Head)
    maps = method.num_feature_maps(backbone)
    head = head_kind(head_kind.Config(), dim=backbone.dim, maps=maps, classes=5)
    model = Segmenter(backbone, method, head, BANDS).to(device).train()
    image = torch.randn(arguments.batch, 3, arguments.tile, arguments.tile, device=device)
    precision = Precision.choose(arguments.precision, device)
    return Run(model, image, (image[:, 0] > 0).long(), precision), method


class Peak:
    """The largest memory in use since it was made, in bytes."""

    def __init__(self) -> None:
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        else:
            Path("/proc/self/clear_refs").write_text("5")

    def read(self) -> int:
        if torch.cuda.is_available():
            return torch.cuda.max_memory_allocated()
        lines = Path("/proc/self/status").read_text().splitlines()
        return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


def seconds_since(start: float) -> float:
    """Read the clock; on the CPU that of this process, which others do not disturb."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        return time.perf_counter() - start
    return time.process_time() - start


def step(run: Run, method: FisherTune, adam: torch.optim.AdamW, *, hooks: bool) -> float:
    """Time a step with AdamW over the candidates and the head."""
    start = seconds_since(0)
    if hooks:
        method.before_step(run)
    run.backward()
    if hooks:
        method.before_update(run)
    adam.step()
    adam.zero_grad(set_to_none=True)
    if hooks:
        method.after_step(run)
    return seconds_since(start)


def rank(method: FisherTune, centre: list[Tensor]) -> float:
    """Choose the largest weights; give the seconds of ranking."""
    scores = [tensor.square() for tensor in centre]
    levels = [torch.empty_like(tensor, dtype=torch.uint8) for tensor in centre]
    split, start = method.candidates.split, seconds_since(0)
    ranking.levels(list(split(scores)), method.sizes, split(levels))
    seconds = seconds_since(start)
    method._choose(levels)
    return seconds


def times(arguments: argparse.Namespace) -> dict[str, float]:
    """Return the fewest seconds of each kind; the kinds alternate."""
    run, method = prepare(arguments)
    centre = [weight.detach().clone() for weight in method.candidates.weights]
    shift, prior = method._measure_shifts(run), method._find_prior(run, centre)
    found: dict[str, list[float]] = {"plain": [], "tuning": [], "pair": []}
    ranking = rank(method, centre)
    adam = optimizer.build(optimizer.Optimization(lr=1e-5), run.model)
    for _ in range(arguments.rounds + 1):
        found["plain"].append(step(run, method, adam, hooks=False))
        found["tuning"].append(step(run, method, adam, hooks=True))
        start = seconds_since(0)
        method._estimate(run, centre, prior, shift)
        found["pair"].append(seconds_since(start) / TIMED)
    least = {kind: min(seconds[1:]) for kind, seconds in found.items()}
    return least | {"ranking": ranking, "candidates": float(method.candidates.size)}


def memory(arguments: argparse.Namespace, *, estimating: bool) -> int:
    """Return the peak of shifted passes that leave gradients, or of the estimation."""
    run, method = prepare(arguments)
    shift = method._measure_shifts(run)
    if not estimating:
        peak = Peak()
        shift.start(0, run.image.device)
        method._feature = shift
        for _ in range(2 * TIMED):
            run.backward()
        return peak.read()
    centre = [weight.detach().clone() for weight in method.candidates.weights]
    prior = method._find_prior(run, centre)
    peak = Peak()
    method._estimate(run, centre, prior, shift)
    return peak.read()


def measure(kind: str, arguments: argparse.Namespace) -> Any:
    torch.set_num_threads(arguments.threads)
    return times(arguments) if kind == "times" else memory(arguments, estimating=kind == "pair")


def compare_ranks(arguments: argparse.Namespace) -> None:
    """Print a line for each pair, kind of score and length of the estimation."""
    shared = Path(os.environ.get("RSSEG_SHARED", Path(__file__).parents[3] / "shared"))
    warnings.simplefilter("ignore", RssegWarning)
    with tempfile.TemporaryDirectory(prefix="rsseg-") as work:
        shop = Workshop(
            data=shared / "data",
            work=Path(work),
            weights=shared / "data" / "weights" / "galileo-nano",
            budget=settings.FULL,
        )
        for pair, score, count in product(arguments.ranks, arguments.scores, arguments.estimations):
            job = Job(pair, "galileo_nano", "pretrained", "fishertune", seed=1)
            # An estimation must not be longer than the run, which ends with it.
            more = [
                f"method.score={score}",
                f"method.estimation={count}",
                f"training.steps={max(count, settings.FULL.steps)}",
            ]
            found = ranks.measure(job, shop, arguments.seeds, more)
            print(json.dumps({"pair": pair, "score": score, "estimation": count} | found))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--backbone", default="vit_small")
    parser.add_argument("--head", default="linear")
    parser.add_argument("--tile", type=int, default=320)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--ranks", nargs="+", choices=list(PAIRS), metavar="PAIR")
    parser.add_argument("--scores", nargs="+", default=["domain_fisher", "fisher", "domain"])
    parser.add_argument("--estimations", nargs="+", type=int, default=[20, 200])
    parser.add_argument("--seeds", nargs=2, type=int, default=[1, 2])
    arguments = parser.parse_args()
    if arguments.ranks:
        torch.set_num_threads(arguments.threads)
        compare_ranks(arguments)
        return
    context = multiprocessing.get_context("spawn")
    measured = {}
    for kind in ("times", "plain", "pair"):
        if kind != "times":
            # The C library then returns every tensor at once, and peaks mean something.
            os.environ["MALLOC_MMAP_THRESHOLD_"] = "65536"
        with context.Pool(1) as pool:
            measured[kind] = pool.apply(measure, (kind, arguments))
    seconds = measured["times"]
    copy = 4 * seconds["candidates"]
    found = {
        "tuning": seconds["tuning"] / seconds["plain"],
        "estimation": seconds["pair"] / seconds["plain"],
        # To a tenth: a buffer of one weight comes and goes.
        "copies": round((measured["pair"] - measured["plain"]) / copy + 1, 1),
    }
    result = {
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "versions": {"torch": str(torch.__version__)},
        "settings": vars(arguments),
        "measured": measured,
        "ratios": {key: round(value, 3) for key, value in found.items()},
        "most": MOST,
        "held": all(found[key] <= MOST[key] for key in MOST),
    }
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
