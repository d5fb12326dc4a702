"""The whole model: a backbone, a method in its seam, and a head."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import Parameter
from torch.nn import functional as F

from rsseg_cli.classes import IGNORE
from rsseg_cli.contract import Backbone, Bands, Features, Head, Method, Output, batch_shard


class Segmenter(nn.Module):
    """Composes the three parts; the only place that knows stored units and padding.

    Args:
        backbone: Walks its blocks; its own parameters are frozen here.
        method: Sits between the blocks.
        head: Scores the maps.
        bands: What the channels are; gives mean and std of the standardisation.
        weights_are_public: The frozen weights can be had again from a published file. Otherwise the
            model file stores them too.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        backbone: Backbone,
        method: Method[Any],
        head: Head[Any],
        bands: Bands,
        *,
        weights_are_public: bool = False,
    ) -> None:
        super().__init__()
        self.backbone, self.method, self.head = backbone, method, head
        self.bands, self.weights_are_public = bands, weights_are_public
        for name in ("mean", "std"):
            values = torch.tensor(getattr(bands, name), dtype=torch.float32).view(-1, 1, 1)
            self.register_buffer(name, values, persistent=False)
        self.freeze()

    def trainable_parameters(self) -> Iterator[tuple[str, Parameter]]:
        """Return everything that may ever train: the method's choice and the head."""
        yield from self.method.trainable_parameters(self.backbone)
        for name, parameter in self.head.named_parameters():
            yield f"head.{name}", parameter

    def freeze(self) -> None:
        """Require gradients of `trainable_parameters` only."""
        self.requires_grad_(False)
        for _, parameter in self.trainable_parameters():
            parameter.requires_grad_(True)

    def frozen(self) -> list[Tensor]:
        """List the tensors that never train; a teacher shares them with its student."""
        tuned = {id(parameter) for _, parameter in self.trainable_parameters()}
        return [parameter for parameter in self.parameters() if id(parameter) not in tuned]

    @property
    def multiple(self) -> int:
        """Image sides are padded to a multiple of this."""
        return math.lcm(self.backbone.patch, self.method.multiple)

    def standardise(self, raw: Tensor) -> Tensor:
        """Turn stored values (B, C, H, W) of any dtype into standardised float32."""
        return (raw.float() - self.mean) / self.std

    def score(self, image: Tensor) -> tuple[Output, dict[str, Tensor]]:
        """Score a standardised image; the output's size is the padded one.

        Returns:
            The head's output, and the method's own terms of the loss.
        """
        features, size = self.features(image)
        output: Output = self.head(features, size)
        return output, features.losses

    def features(self, image: Tensor) -> tuple[Features, tuple[int, int]]:
        """Compute the features of a standardised image, and the (H, W) of the padded image."""
        height, width = image.shape[-2:]
        bottom, right = -height % self.multiple, -width % self.multiple
        if bottom or right:
            image = F.pad(image, (0, right, 0, bottom), mode="replicate")
        return self.backbone(image, self.method), (height + bottom, width + right)

    def forward(
        self,
        image: Tensor,
        labels: Tensor,
        groups: Sequence[int] | None = None,
        *,
        apart: int = 0,
    ) -> dict[str, Tensor]:
        """Compute the weighted terms of the loss.

        Args:
            image: (B, C, H, W), standardised.
            labels: (B, H, W), class indices, `IGNORE` where there is none.
            groups: Sizes of consecutive groups of the batch, summing to B. The head's terms are
                then (G,), one per group; the method's own stay scalars of the whole batch.
            apart: So many groups, the last ones, are whole in this process; the others are
                parts of groups that all processes share.
        """
        features, size = self.features(image)
        bottom, right = size[0] - labels.shape[1], size[1] - labels.shape[2]
        if bottom or right:
            labels = F.pad(labels, (0, right, 0, bottom), value=IGNORE)
        if groups is None:
            return self.head.losses(self.head(features, size), labels) | features.losses
        found, start = [], 0
        for number, count in enumerate(groups):
            stop = start + count
            output = self.head(_images(features, start, stop), size)
            with batch_shard.independent() if number >= len(groups) - apart else nullcontext():
                found.append(self.head.losses(output, labels[start:stop]))
            start = stop
        return {
            name: torch.stack([one[name] for one in found]) for name in found[0]
        } | features.losses

    def probabilities(self, image: Tensor) -> Tensor:
        """Compute class probabilities (B, K, H, W) of a standardised image."""
        height, width = image.shape[-2:]
        return self.score(image)[0].probabilities()[..., :height, :width]

    def infer(self, raw: Tensor) -> Tensor:
        """Compute class probabilities (B, K, H, W) of stored values (B, C, H, W)."""
        return self.probabilities(self.standardise(raw))

    def adapter_state(self) -> dict[str, Tensor]:
        """Return the tensors of a model file: adapter, head, and weights that are not public."""
        head = {f"head.{name}": tensor for name, tensor in self.head.state_dict().items()}
        method = self.method.adapter_state(self.backbone)
        if self.weights_are_public:
            return method | head
        whole = self.backbone.state_dict().items()
        rest = {f"rest.{n}": t for n, t in whole if f"backbone.{n}" not in method}
        return method | head | rest

    def load_adapter_state(self, tensors: dict[str, Tensor]) -> None:
        """Restore what `pack` collected, into a model as first made."""
        parts: dict[str, dict[str, Tensor]] = {"head": {}, "rest": {}, "method": {}}
        for name, tensor in tensors.items():
            part, _, own = name.partition(".")
            if part in ("head", "rest"):
                parts[part][own] = tensor
            else:
                parts["method"][name] = tensor
        self.head.load_state_dict(parts["head"])
        # The tuned tensors are missing on purpose; one that the backbone lacks is a mistake.
        extra = self.backbone.load_state_dict(parts["rest"], strict=False).unexpected_keys
        if extra:
            raise KeyError(f"tensors of another backbone: {', '.join(extra[:4])}")
        self.method.load_adapter_state(parts["method"], self.backbone)


def _images(features: Features, start: int, stop: int) -> Features:
    """Return the maps and queries of images `start` to `stop` - 1 of a batch."""
    queries = features.queries
    if queries is not None and queries.ndim == 3:
        queries = queries[start:stop]
    return Features([level[start:stop] for level in features.maps], queries)
