"""Head: class scores from features, and their loss."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

from rsseg_cli.contract.features import Features, QueryShape
from rsseg_cli.settings import Strict


@dataclass
class Output:
    """Base class of the prediction of a head for a batch."""

    size: tuple[int, int]
    """(H, W) of the image."""

    def probabilities(self) -> Tensor:
        """Compute class probabilities (B, K, H, W): non-negative, summing to 1 over K."""
        raise NotImplementedError


OutputT = TypeVar("OutputT", bound=Output)


class Head(nn.Module, Generic[OutputT]):
    """Base class of modules that compute class scores and losses from features.

    Args:
        config: Settings.
        dim: Width D of the feature maps.
        maps: Number of feature maps.
        classes: Number of classes K.
    """

    class Config(Strict):
        """Settings of the head."""

        @property
        def queries_of_method(self) -> QueryShape | None:
            """Shape of the queries that the method must provide; None if the head needs none."""
            return None

    class_weights: Tensor

    def __init__(self, config: Config, *, dim: int, maps: int, classes: int) -> None:
        super().__init__()
        self.classes = classes
        self.register_buffer("class_weights", torch.ones(classes), persistent=False)

    def forward(self, features: Features, size: tuple[int, int]) -> OutputT:
        """Compute the prediction for images of `size` = (H, W)."""
        raise NotImplementedError

    def losses(self, output: OutputT, labels: Tensor) -> dict[str, Tensor]:
        """Compute the weighted terms of the loss by name.

        `labels` are (B, H, W) class indices 0..K-1, `IGNORE` elsewhere. An image without labelled
        pixels adds 0 to every term, not NaN.
        """
        raise NotImplementedError
