"""Linear layers inside a block, and trainable branches beside them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Literal, TypeAlias

from torch import Tensor, nn

Branch: TypeAlias = "partial[Tensor]"
"""`partial(module)` or `partial(function, module)`: unlike a closure it follows `deepcopy`, so that
an EMA teacher does not share the adapters of its student."""
Role = Literal["q", "k", "v", "fc1", "fc2"]


@dataclass(frozen=True)
class Projection:
    """Rows of a linear layer that compute queries, keys, values or a layer of the MLP.

    A fused query-key-value layer is one module with three row ranges. The gated MLPs of EVA02 and
    DINOv3-H have two projections with the role fc1.
    """

    module: nn.Linear
    rows: slice

    def __call__(self, tokens: Tensor) -> Tensor:
        """Apply these rows to tokens (..., D), without the branches."""
        bias = self.module.bias
        return nn.functional.linear(
            tokens, self.module.weight[self.rows], None if bias is None else bias[self.rows]
        )

    def add_branch(self, branch: Branch) -> None:
        """Add `branch(input)` (..., rows) to these rows of the output from now on."""
        check_branch(branch)
        self.module.register_forward_hook(partial(_add_rows, branch, self.rows))


def _add_rows(
    branch: Branch, rows: slice, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor
) -> Tensor:
    delta = branch(inputs[0])
    before, after = rows.start, output.shape[-1] - rows.stop
    return output + nn.functional.pad(delta, (before, after)) if before or after else output + delta


def check_branch(branch: object) -> None:
    """Raise a `TypeError` for a branch that `deepcopy` would not follow."""
    if not isinstance(branch, partial):
        raise TypeError(
            "a branch must be functools.partial(function, module): deepcopy does not copy closures"
        )
