"""Costs of SpectralMoE's experts and its depth encoder: ratios within one run.

    python tests/benchmarks/bench_experts.py [--backbone dinov3_large] [--tile 512] [--device cuda]

Models take turns and their fastest rounds are compared; on a CPU its own seconds count, not the
wall's. Memory is the accelerator's peak, or on a CPU the parameters and all that a step keeps for
its backward pass.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from rsseg_cli.config import family
from rsseg_cli.contract import Backbone, Bands
from rsseg_cli.find import find
from rsseg_cli.heads.mask2former import Mask2Former
from rsseg_cli.methods.spectralmoe import Routing, SpectralMoe
from rsseg_cli.segmenter import Segmenter
from rsseg_cli.training import optimizer
from rsseg_cli.training.precision import Precision

BANDS = Bands(
    names=("nir", "red", "green", "blue"),
    wavelengths_nm=(830.0, 665.0, 560.0, 490.0),
    mean=(110.0, 85.0, 88.0, 82.0),
    std=(72.0, 65.0, 63.0, 61.0),
    dtype="uint8",
)
CLASSES = 8


HEAD = Mask2Former.Config(query_position="method")


def make_backbone(name: str) -> Backbone:
    kind: Any = find("backbones", family(name), Backbone)
    backbone: Backbone = kind(kind.Config(name=name, pretrained=False), BANDS)
    return backbone.requires_grad_(False)


def make_method(backbone: Backbone, experts: int, k: int) -> SpectralMoe:
    torch.manual_seed(0)
    config = SpectralMoe.Config(experts=experts, k=k, depth="random")
    return SpectralMoe(config, backbone, HEAD.queries_of_method)


class Trainer:
    """One model taking plain updates on one batch."""

    def __init__(self, backbone: Backbone, experts: int, k: int, args: argparse.Namespace) -> None:
        method = make_method(backbone, experts, k)
        head = Mask2Former(HEAD, dim=backbone.dim, maps=4, classes=CLASSES)
        self.device = torch.device(args.device)
        self.model = Segmenter(backbone, method, head, BANDS).to(self.device).train()
        self.adam = optimizer.build(optimizer.Optimization(), self.model)
        self.precision = Precision.choose("auto", self.device)
        side = (args.tile, args.tile)
        self.image = torch.randn(args.batch, len(BANDS), *side, device=self.device)
        self.label = torch.randint(0, CLASSES, (args.batch, *side), device=self.device)

    def loss(self) -> Tensor:
        with self.precision.autocast():
            terms = self.model(self.image, self.label)
        return torch.stack(list(terms.values())).sum()

    def step(self) -> None:
        torch.autograd.backward(self.loss())
        self.adam.step()
        self.adam.zero_grad(set_to_none=True)

    def memory_mb(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
            self.step()
            return torch.cuda.max_memory_allocated() / 2**20
        kept = {p.untyped_storage().data_ptr(): p.nbytes for p in self.model.parameters()}

        def keep(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            kept[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            torch.autograd.backward(self.loss())
        return sum(kept.values()) / 2**20


def seconds(work: Callable[[], object], device: torch.device) -> float:
    clock = time.perf_counter if device.type == "cuda" else time.process_time
    if device.type == "cuda":
        torch.cuda.synchronize()
    started = clock()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return clock() - started


def fastest(works: dict[str, Callable[[], object]], args: argparse.Namespace) -> dict[str, float]:
    device = torch.device(args.device)
    best = dict.fromkeys(works, float("inf"))
    for _ in range(args.rounds + 1):  # the first one warms up
        for name, work in works.items():
            best[name] = min(best[name], seconds(work, device))
    return best


def parts(backbone: Backbone, args: argparse.Namespace) -> dict[str, float]:
    """Time one block, what the method adds to it, and whole forward passes."""
    device = torch.device(args.device)
    method = make_method(backbone, args.experts, args.k).to(device).train()
    image = torch.randn(args.batch, len(BANDS), args.tile, args.tile, device=device)
    tokens, grid = backbone.to(device).embed(image)
    tokens.requires_grad_()
    seen = torch.randn(args.batch, grid.tokens, backbone.dim, device=device)
    precision = Precision.choose("auto", device)

    def block() -> None:
        with precision.autocast():
            out = backbone.run(1, tokens, grid)
        torch.autograd.backward(out.float().mean())

    def adapter() -> None:
        state = Routing(grid)
        with precision.autocast():
            out = method.after_block(1, tokens, state)
        extra = torch.stack([*state.balance, *state.load]).sum() if state.load else 0.0
        torch.autograd.backward(out.float().mean() + extra)

    @torch.no_grad()
    def infer() -> None:
        with precision.autocast():
            walked, _ = backbone.embed(image)
            for index in range(backbone.depth):
                walked = backbone.run(index, walked, grid)

    view, state = method.depth_branch, Routing(grid)
    assert view is not None

    def depth() -> None:
        with precision.autocast():
            view.begin(image, state)
            for index in range(backbone.depth):
                view.advance(index, state)

    depth_times = fastest({"infer": infer, "depth": depth}, args)
    shown = view.advance
    method.depth_branch.advance = lambda index, state: seen  # type: ignore[method-assign, union-attr]
    times = fastest({"block": block, "adapter": adapter}, args) | depth_times
    view.advance = shown  # type: ignore[method-assign]
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backbone", default="vit_small")
    parser.add_argument("--tile", type=int, default=256)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--experts", type=int, default=6)
    parser.add_argument("--k", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    backbone = make_backbone(args.backbone)
    several = f"E={args.experts}, k={args.k}"
    trainers = {
        name: Trainer(backbone, experts, k, args)
        for name, experts, k in (("E=1", 1, 1), (several, args.experts, args.k))
    }
    memory = {name: trainer.memory_mb() for name, trainer in trainers.items()}
    step = fastest({name: trainer.step for name, trainer in trainers.items()}, args)
    part = parts(backbone, args)
    where = torch.cuda.get_device_name() if args.device == "cuda" else "CPU"
    print(f"{where}, torch {torch.__version__}, {args.backbone}, {args.batch} x {args.tile} px")
    for name in trainers:
        print(f"  step {name:<12} {step[name]:8.3f} s  {memory[name]:8.0f} MB")
    time_ratio, memory_ratio = step[several] / step["E=1"], memory[several] / memory["E=1"]
    print(f"  time ratio {time_ratio:.3f} (at most 1.15), memory {memory_ratio:.3f} (at most 1.10)")
    share = part["adapter"] / part["block"]
    print(f"  adapter / frozen block, forward and backward: {share:.3f} (at most 0.25)")
    extra = part["depth"] / part["infer"]
    print(f"  depth encoder / inference forward of the visual one: {extra:.3f}")


if __name__ == "__main__":
    main()
