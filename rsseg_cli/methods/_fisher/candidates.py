"""Candidate weights of sparse methods: the Q, K, V and MLP matrices of every block."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import Parameter

from rsseg_cli.contract import Backbone, Role
from rsseg_cli.errors import RssegError


@dataclass(frozen=True)
class CandidateSlice:
    """Rows of a weight that have one role in one block."""

    block: int
    role: Role
    weight: int
    """Index of the candidate weight."""
    rows: slice

    def of(self, tensors: Sequence[Tensor]) -> Tensor:
        """View these rows of tensors shaped like the weights as a vector, row after row."""
        return tensors[self.weight][self.rows].view(-1)


class Candidates:
    """All weights (out, in) of the named roles; biases, norms and the rest never train.

    A fused query-key-value matrix is one weight with up to three slices.

    Attributes:
        names: Names of the weights' parameters in the backbone.
        slices: In the order of blocks, then of roles: the order in which ties are broken.
        total: Number of parameters of the whole backbone, which fractions refer to.

    Raises:
        RssegError: A block has no weight of a role.
    """

    def __init__(self, backbone: Backbone, roles: Sequence[Role]) -> None:
        self._modules: list[nn.Linear] = []
        self.slices: list[CandidateSlice] = []
        indices: dict[int, int] = {}
        for block in range(backbone.depth):
            for role in roles:
                projections = backbone.projections(block, role)
                if not projections:
                    raise RssegError(
                        f"block {block} of the backbone has no {role} weights to choose from",
                        where="method.roles",
                        fix="the roles that it has, or another backbone",
                    )
                for projection in projections:
                    index = indices.setdefault(id(projection.module), len(indices))
                    if index == len(self._modules):
                        self._modules.append(projection.module)
                    self.slices.append(CandidateSlice(block, role, index, projection.rows))
        names = {id(parameter): name for name, parameter in backbone.named_parameters()}
        self.names = [names[id(weight)] for weight in self.weights]
        self.total = sum(parameter.numel() for parameter in backbone.parameters())

    @property
    def weights(self) -> list[Parameter]:
        """The candidate parameters."""
        return [module.get_parameter("weight") for module in self._modules]

    def detached(self) -> list[Tensor]:
        """Return the weights without autograd history, for changes in place."""
        return [weight.detach() for weight in self.weights]

    @property
    def size(self) -> int:
        """Number of candidate elements."""
        return sum(self.sizes())

    def sizes(self) -> list[int]:
        """Count the elements of each slice."""
        columns = [module.in_features for module in self._modules]
        return [(s.rows.stop - s.rows.start) * columns[s.weight] for s in self.slices]

    def split(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """View tensors shaped like the weights as one vector per slice."""
        return [piece.of(tensors) for piece in self.slices]

    def requires_grad_(self, flag: bool) -> None:
        """Set whether the weights require gradients."""
        for weight in self.weights:
            weight.requires_grad_(flag)
