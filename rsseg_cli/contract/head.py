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
    """The prediction of a head for a batch; each head extends it."""

    size: tuple[int, int]
    """(H, W) of the image."""

    def probabilities(self) -> Tensor:
        """Class probabilities (B, K, H, W): non-negative, summing to 1 over K."""
        raise NotImplementedError


O = TypeVar("O", bound=Output)  # noqa: E741 - the type of a head's output


class Head(nn.Module, Generic[O]):
    """Turns features into class scores and computes their loss.

    A subclass takes `(config, dim, maps, classes)`: width D and number of the maps it will get,
    and the number of classes K.
    """

    class Config(Strict):
        """Settings of the head."""

        @property
        def queries_of_method(self) -> QueryShape | None:
            """Shape of the queries that the head takes from the method; None: it takes none."""
            return None

    class_weights: Tensor

    def __init__(self, config: Config, *, dim: int, maps: int, classes: int) -> None:
        super().__init__()
        self.classes = classes
        self.register_buffer("class_weights", torch.ones(classes), persistent=False)

    def forward(self, features: Features, size: tuple[int, int]) -> O:
        """Score an image of `size` = (H, W) from its features."""
        raise NotImplementedError

    def losses(self, output: O, labels: Tensor) -> dict[str, Tensor]:
        """Named, weighted terms of the loss.

        Args:
            output: What `forward` returned.
            labels: (B, H, W) class indices 0..K-1, `IGNORE` elsewhere. An image without any
                labelled pixel adds 0 and no NaN.
        """
        raise NotImplementedError
