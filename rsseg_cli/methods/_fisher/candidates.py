"""The weights that sparse methods choose from: Q, K, V and MLP matrices of every block."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import Parameter

from rsseg_cli.contract import Backbone, Role
from rsseg_cli.errors import RssegError


@dataclass(frozen=True)
class CandidateSlice:
    """The rows of one weight that play one role in one block.

    Attributes:
        weight: Which of the candidate weights.
    """

    block: int
    role: Role
    weight: int
    rows: slice

    def of(self, tensors: Sequence[Tensor]) -> Tensor:
        """View this part of tensors shaped like the weights as a vector, row after row."""
        return tensors[self.weight][self.rows].view(-1)


class Candidates:
    """All weights (out, in) of the named roles; biases, norms and the rest never train.

    A fused query-key-value matrix is one weight with up to three parts.

    Attributes:
        names: Names of the weights' parameters in the backbone.
        parts: In the order of blocks, then of roles: the order in which ties are broken.
        total: Parameters of the whole backbone, which shares refer to.

    Raises:
        RssegError: A block has no such weight.
    """

    def __init__(self, backbone: Backbone, roles: Sequence[Role]) -> None:
        self._modules: list[nn.Linear] = []
        self.parts: list[CandidateSlice] = []
        places: dict[int, int] = {}
        for block in range(backbone.depth):
            for role in roles:
                found = backbone.projections(block, role)
                if not found:
                    raise RssegError(
                        f"block {block} of the backbone has no {role} weights to choose from",
                        where="method.roles",
                        fix="the roles that it has, or another backbone",
                    )
                for projection in found:
                    module = projection.module
                    place = places.setdefault(id(module), len(places))
                    if place == len(self._modules):
                        self._modules.append(module)
                    self.parts.append(CandidateSlice(block, role, place, projection.rows))
        names = {id(parameter): name for name, parameter in backbone.named_parameters()}
        self.names = [names[id(weight)] for weight in self.weights]
        self.total = sum(parameter.numel() for parameter in backbone.parameters())

    @property
    def weights(self) -> list[Parameter]:
        """The weights themselves."""
        return [module.get_parameter("weight") for module in self._modules]

    @property
    def size(self) -> int:
        """Number of candidate elements."""
        return sum(self.sizes())

    def sizes(self) -> list[int]:
        """Count the elements of each part."""
        columns = [module.in_features for module in self._modules]
        return [(part.rows.stop - part.rows.start) * columns[part.weight] for part in self.parts]

    def split(self, tensors: Sequence[Tensor]) -> Iterator[Tensor]:
        """View tensors shaped like the weights part by part, as vectors."""
        for part in self.parts:
            yield part.of(tensors)

    def open(self, flag: bool) -> None:
        """Set whether the weights require gradients."""
        for weight in self.weights:
            weight.requires_grad_(flag)

    def __len__(self) -> int:
        """Number of parts."""
        return len(self.parts)
