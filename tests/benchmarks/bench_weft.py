"""Memory and time of a training step: weft against full fine-tuning, everything else the same.

    python tests/benchmarks/bench_weft.py --backbone vit_large --batch 2

The paper reports 26.41 % less memory and 14.66 % faster. Each measurement is a process of its
own, the methods take turns, and the fastest steps are compared. Memory is the peak of the device's
allocator; on the CPU it is the peak of the process' resident memory above that before the model.
On the CPU, time is CPU time, which other work on the machine disturbs little. Weights are random.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import torch
from rgb import BANDS
from torch.nn import Parameter

from rsseg_cli import presets
from rsseg_cli.config import family
from rsseg_cli.contract import Backbone, Method
from rsseg_cli.find import find
from rsseg_cli.heads.mask2former import Mask2Former
from rsseg_cli.methods.full import Full
from rsseg_cli.methods.weft import Weft
from rsseg_cli.segmenter import Segmenter
from rsseg_cli.training import optimizer
from rsseg_cli.training.precision import Precision

PAPER = {"memory": 26.41, "time": 14.66}
PRESETS = {
    name: presets.read(presets.find("methods", name)).values for name in ("weft", "weft_released")
}


class Unfrozen(Weft):
    """The same model with the backbone tuned as well: what freezing alone is worth."""

    def trainable_parameters(self, backbone: Backbone) -> Iterator[tuple[str, Parameter]]:
        yield from super().trainable_parameters(backbone)
        for name, parameter in backbone.named_parameters():
            yield f"backbone.{name}", parameter


METHODS: dict[str, tuple[type[Method[Any]], dict[str, Any]]] = {
    "full": (Full, {}),
    "weft": (Weft, PRESETS["weft"]["method"]),
    "weft_released": (Weft, PRESETS["weft_released"]["method"]),
    "weft_unfrozen": (Unfrozen, PRESETS["weft"]["method"]),
}


def build(label: str, backbone_name: str) -> Segmenter:
    torch.manual_seed(0)
    kind = find("backbones", family(backbone_name), Backbone)
    config: Any = kind.Config.model_validate({"name": backbone_name, "pretrained": False})
    backbone = kind(config, BANDS)  # type: ignore[call-arg,arg-type]
    method_kind, settings = METHODS[label]
    method = method_kind(method_kind.Config.model_validate(_nameless(settings)), backbone)
    scorer = Mask2Former.Config.model_validate(_nameless(PRESETS["weft"]["head"]))
    head = Mask2Former(scorer, dim=backbone.dim, maps=method.num_feature_maps(backbone), classes=2)
    return Segmenter(backbone, method, head, BANDS)


def _nameless(section: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in section.items() if key != "name"}


def resident_peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure(label: str, arguments: argparse.Namespace) -> dict[str, float]:
    """Train a few steps and return the peak memory in MB and the seconds of the fastest step."""
    torch.set_num_threads(arguments.threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    before = resident_peak_mb()
    model = build(label, arguments.backbone).to(device).train()
    if arguments.compile:
        model.compile()
    adam = optimizer.build(optimizer.Optimization(lr=1e-5), model)
    precision = Precision.choose(arguments.precision, device)
    generator = torch.Generator().manual_seed(1)
    image = torch.randn(arguments.batch, 3, arguments.tile, arguments.tile, generator=generator)
    labels = (image[:, 0] > 0).long()
    labels[:, : arguments.tile // 2] = 0
    image, labels = image.to(device), labels.to(device)
    clock = time.perf_counter if device.type == "cuda" else time.process_time
    seconds = []
    for _ in range(arguments.steps + arguments.warmup):
        started = clock()
        with precision.autocast():
            loss = torch.stack(list(model(image, labels).values())).sum()
        torch.autograd.backward(loss)
        adam.step()
        adam.zero_grad(set_to_none=True)
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(clock() - started)
    peak = resident_peak_mb() - before
    if device.type == "cuda":
        peak = torch.cuda.max_memory_allocated() / 2**20
    tuned = sum(parameter.numel() for _, parameter in model.trainable_parameters())
    return {
        "memory_mb": peak,
        "seconds": min(seconds[arguments.warmup :]),
        "tuned": tuned,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--backbone", default="vit_base")
    parser.add_argument("--tile", type=int, default=512)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--warmup", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--methods", nargs="+", default=["full", "weft"], choices=METHODS)
    arguments = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    rounds: dict[str, list[dict[str, float]]] = {label: [] for label in arguments.methods}
    for _ in range(arguments.rounds):
        for label in arguments.methods:
            with ProcessPoolExecutor(1, mp_context=context) as pool:
                rounds[label].append(pool.submit(measure, label, arguments).result())
    result: dict[str, Any] = {
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "versions": {"torch": str(torch.__version__)},
        "settings": vars(arguments),
    }
    for label, found in rounds.items():
        # The least disturbed round.
        result[label] = {key: min(one[key] for one in found) for key in found[0]}
    reference = result[arguments.methods[0]]
    for label in arguments.methods[1:]:
        result[label]["less_memory_percent"] = 100 * (
            1 - result[label]["memory_mb"] / reference["memory_mb"]
        )
        # "Faster" as more steps in the same time, and as less time for a step.
        ratio = reference["seconds"] / result[label]["seconds"]
        result[label]["faster_percent"] = 100 * (ratio - 1)
        result[label]["less_time_percent"] = 100 * (1 - 1 / ratio)
    result["paper"] = PAPER
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
