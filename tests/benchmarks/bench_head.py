"""Time a training step of the mask head beside the same step on transformers' own classes.

Same parameters, maps and labels; both steps are forward, loss and backward. transformers resizes
the maps first and has a loss of its own. Prints one JSON object.

    python tests/benchmarks/bench_head.py --size 512 --batch 2 --device cuda --bf16
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable

import torch
import transformers
from torch import Tensor
from torch.nn import functional as F
from transformers.models.mask2former.configuration_mask2former import Mask2FormerConfig
from transformers.models.mask2former.modeling_mask2former import (
    Mask2FormerLoss,
    Mask2FormerPixelDecoder,
    Mask2FormerTransformerModule,
)

from rsseg_cli.contract import Features
from rsseg_cli.heads.mask2former import Mask2Former

TERMS = {"loss_cross_entropy": 2.0, "loss_mask": 5.0, "loss_dice": 5.0}


class Theirs:
    """transformers' pixel decoder, decoder and loss with the parameters of our head."""

    def __init__(self, head: Mask2Former, dim: int) -> None:
        config = Mask2FormerConfig(num_labels=head.classes, train_num_points=head.config.points)
        self.classify = head.query_decoder.class_predictor
        device = self.classify.weight.device
        self.pixels = Mask2FormerPixelDecoder(config, feature_channels=[dim] * 4).to(device)
        self.pixels.load_state_dict(head.pixel_decoder.state_dict())
        self.queries = Mask2FormerTransformerModule(config.hidden_dim, config).to(device)
        self.queries.load_state_dict(head.query_decoder.state_dict(), strict=False)
        self.criterion = Mask2FormerLoss(config, {}).to(device)

    def forward(self, maps: list[Tensor], size: tuple[int, int]) -> list[dict[str, Tensor]]:
        """Predict after every layer."""
        strides = (4, 8, 16, 32)
        resized = [
            F.interpolate(cells, (size[0] // stride, size[1] // stride), mode="bilinear")
            for cells, stride in zip(maps, strides, strict=True)
        ]
        decoded = self.pixels(resized)
        found = self.queries(decoded.multi_scale_features, decoded.mask_features)
        return [
            {"masks_queries_logits": m, "class_queries_logits": self.classify(h.transpose(0, 1))}
            for m, h in zip(
                found.masks_queries_logits, found.intermediate_hidden_states, strict=True
            )
        ]

    def loss(self, layers: list[dict[str, Tensor]], labels: Tensor) -> Tensor:
        """Sum the weighted terms of all layers."""
        shown = [image.unique() for image in labels]
        masks = [
            (image == indices[:, None, None]).float()
            for image, indices in zip(labels, shown, strict=True)
        ]
        terms = self.criterion(
            **layers[-1], mask_labels=masks, class_labels=shown, auxiliary_predictions=layers[:-1]
        )
        weighted = [
            weight * value
            for name, weight in TERMS.items()
            for key, value in terms.items()
            if key.startswith(name)
        ]
        return torch.stack(weighted).sum()


def times(
    forward: Callable[[], object],
    loss: Callable[[object], Tensor],
    device: torch.device,
    repeats: int,
) -> dict[str, float]:
    """Return the medians, in seconds, of forward, loss, backward and all three."""

    def now() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    rows = []
    for _ in range(repeats + 2):  # the first two warm up
        start = now()
        output = forward()
        decoded = now()
        value = loss(output)
        compared = now()
        value.backward()
        rows.append((decoded - start, compared - decoded, now() - compared, now() - start))
        del output, value
    names = ("forward_s", "loss_s", "backward_s", "step_s")
    return dict(zip(names, map(statistics.median, zip(*rows[2:], strict=True)), strict=True))


def main() -> None:
    """Run both and print the ratio."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--dim", type=int, default=1024)
    parser.add_argument("--classes", type=int, default=7)
    parser.add_argument("--points", type=int, default=12_544)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--bf16", action="store_true")
    options = parser.parse_args()

    torch.manual_seed(0)
    device, size = torch.device(options.device), (options.size, options.size)
    config = Mask2Former.Config(points=options.points)
    head = Mask2Former(config, dim=options.dim, maps=4, classes=options.classes).to(device).train()
    cells, side = options.size // 16, options.size // 64
    maps = [
        torch.randn(options.batch, options.dim, cells, cells, device=device).requires_grad_()
        for _ in range(4)
    ]
    coarse = torch.randint(0, options.classes, (options.batch, side, side), device=device)
    labels = coarse.repeat_interleave(64, 1).repeat_interleave(64, 2)
    theirs = Theirs(head, options.dim)

    def our_loss(output: object) -> Tensor:
        return torch.stack(list(head.losses(output, labels).values())).sum()

    def their_loss(output: object) -> Tensor:
        return theirs.loss(output, labels)

    with torch.autocast(device.type, torch.bfloat16, enabled=options.bf16):
        result = {}
        for name, forward, loss in (
            ("rsseg", lambda: head(Features(maps), size), our_loss),
            ("transformers", lambda: theirs.forward(maps, size), their_loss),
        ):
            if device.type == "cuda":
                torch.cuda.reset_peak_memory_stats()
            result[name] = times(forward, loss, device, options.repeats)
            if device.type == "cuda":
                result[name]["peak_memory_mb"] = torch.cuda.max_memory_allocated() / 2**20
            head.zero_grad(set_to_none=True)
    ratios = {
        key.removesuffix("_s"): round(value / result["rsseg"][key], 2)
        for key, value in result["transformers"].items()
    }
    shown = (
        torch.cuda.get_device_name() if device.type == "cuda" else f"cpu x{torch.get_num_threads()}"
    )
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    settings = vars(options)
    print(
        json.dumps(
            {"device": shown, "versions": versions, "settings": settings}
            | result
            | {"ratio": ratios}
        )
    )


if __name__ == "__main__":
    main()
