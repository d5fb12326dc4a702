"""The whole model: a backbone, a method between its blocks, and a head."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import Parameter
from torch.nn import functional as F

from rsseg_cli.classes import IGNORE
from rsseg_cli.contract import Backbone, Bands, Features, Head, Method, Output, batch_shard
from rsseg_cli.errors import UnreadableError
from rsseg_cli.number_format import listed


class Segmenter(nn.Module):
    """Segmentation model; the only place that handles stored units and padding.

    Only `trainable_parameters` require gradients; the rest of the backbone is frozen here.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self, backbone: Backbone, method: Method[Any], head: Head[Any], bands: Bands
    ) -> None:
        super().__init__()
        self.backbone, self.method, self.head, self.bands = backbone, method, head, bands
        for name in ("mean", "std"):
            values = torch.tensor(getattr(bands, name), dtype=torch.float32).view(-1, 1, 1)
            self.register_buffer(name, values, persistent=False)
        self.freeze()

    def trainable_parameters(self) -> Iterator[tuple[str, Parameter]]:
        """Yield all parameters that may train: those of the method and of the head."""
        yield from self.method.trainable_parameters(self.backbone)
        for name, parameter in self.head.named_parameters():
            yield f"head.{name}", parameter

    def freeze(self) -> None:
        """Require gradients of `trainable_parameters` only."""
        self.requires_grad_(False)
        for _, parameter in self.trainable_parameters():
            parameter.requires_grad_(True)

    def frozen_parameters(self) -> list[Parameter]:
        """Return the parameters that never train; a teacher shares them with its student."""
        trainable = {id(parameter) for _, parameter in self.trainable_parameters()}
        return [parameter for parameter in self.parameters() if id(parameter) not in trainable]

    @property
    def multiple(self) -> int:
        """Image sides are padded to a multiple of this."""
        return math.lcm(self.backbone.patch, self.method.multiple)

    def standardise(self, raw: Tensor) -> Tensor:
        """Convert stored values (B, C, H, W) of any dtype to standardised float32."""
        return (raw.float() - self.mean) / self.std

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
        local_groups: int = 0,
    ) -> dict[str, Tensor]:
        """Compute the weighted terms of the loss.

        Args:
            image: (B, C, H, W), standardised.
            labels: (B, H, W) class indices, `IGNORE` elsewhere.
            groups: Sizes of consecutive groups of the batch, summing to B. The head's terms are
                then (G,), one per group; the method's own stay scalars of the whole batch.
            local_groups: Number of groups, counted from the end, that this process does not share
                with other processes.
        """
        features, size = self.features(image)
        bottom, right = size[0] - labels.shape[1], size[1] - labels.shape[2]
        if bottom or right:
            labels = F.pad(labels, (0, right, 0, bottom), value=IGNORE)
        if groups is None:
            return self.head.losses(self.head(features, size), labels) | features.losses
        terms, start = [], 0
        for number, count in enumerate(groups):
            images = slice(start, start + count)
            output = self.head(_select(features, images), size)
            is_local = number >= len(groups) - local_groups
            with batch_shard.independent() if is_local else nullcontext():
                terms.append(self.head.losses(output, labels[images]))
            start += count
        by_group = {name: torch.stack([group[name] for group in terms]) for name in terms[0]}
        return by_group | features.losses

    def probabilities(self, image: Tensor) -> Tensor:
        """Compute class probabilities (B, K, H, W) of a standardised image."""
        height, width = image.shape[-2:]
        output: Output = self.head(*self.features(image))
        return output.probabilities()[..., :height, :width]

    def infer(self, raw: Tensor) -> Tensor:
        """Compute class probabilities (B, K, H, W) of stored values (B, C, H, W)."""
        return self.probabilities(self.standardise(raw))

    def adapter_state(self) -> dict[str, Tensor]:
        """Return the tensors of a model file: adapter, head, and weights that are not public."""
        state = self.method.adapter_state(self.backbone)
        if not self.backbone.weights_are_public:
            frozen = self.backbone.state_dict().items()
            state |= {f"rest.{name}": t for name, t in frozen if f"backbone.{name}" not in state}
        return state | {f"head.{name}": t for name, t in self.head.state_dict().items()}

    def load_adapter_state(self, tensors: dict[str, Tensor], *, where: str | Path = "") -> None:
        """Load the result of `adapter_state` into a newly built model.

        Args:
            tensors: All tensors of the file, by name.
            where: The file of the tensors, for messages.

        Raises:
            UnreadableError: A tensor is missing, unexpected or of another shape; the model is
                unchanged.
            RssegError: The model was trained with other weights of the method.
        """
        shapes: dict[str, Sequence[int]] = {n: t.shape for n, t in self.adapter_state().items()}
        _check_tensors(tensors, shapes | self.method.trained_shapes(tensors), where)
        parts: dict[str, dict[str, Tensor]] = {"head": {}, "rest": {}, "method": {}}
        for name, tensor in tensors.items():
            prefix, _, name_in_part = name.partition(".")
            if prefix in ("head", "rest"):
                parts[prefix][name_in_part] = tensor
            else:
                parts["method"][name] = tensor
        self.head.load_state_dict(parts["head"])
        # The trained tensors of the backbone are among those of the method.
        self.backbone.load_state_dict(parts["rest"], strict=False)
        self.method.load_adapter_state(parts["method"], self.backbone)


def _check_tensors(
    tensors: Mapping[str, Tensor], shapes: Mapping[str, Sequence[int]], where: str | Path
) -> None:
    """Check that tensors have exactly these names and shapes."""
    differences = {
        "missing": [name for name in shapes if name not in tensors],
        "unexpected": [name for name in tensors if name not in shapes],
        "of another shape": [
            name
            for name, shape in shapes.items()
            if name in tensors and tuple(tensors[name].shape) != tuple(shape)
        ],
    }
    problems = [
        f"{len(names):,} {problem} ({listed(names, 3)})"
        for problem, names in differences.items()
        if names
    ]
    if problems:
        raise UnreadableError(
            f"the tensors are not those of the model: {', '.join(problems)}",
            where=str(where),
            fix="an unchanged copy of the file, or fit the model again",
        )


def _select(features: Features, images: slice) -> Features:
    """Return the maps and queries of some images of a batch."""
    queries = features.queries
    if queries is not None and queries.ndim == 3:
        queries = queries[images]
    return Features([level[images] for level in features.maps], queries)
