"""The linear maps inside a block, and how an adapter listens to them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Literal, TypeAlias

from torch import Tensor, nn

Listener: TypeAlias = "partial[Tensor]"
Role = Literal["q", "k", "v", "fc1", "fc2"]


@dataclass(frozen=True)
class Projection:
    """One linear map inside a block: `module`, and the rows of its output that play the role.

    Fused query-key-value matrices are one module with three row ranges. A role with several
    matrices (the gated MLPs of EVA02 and DINOv3-H) has several projections.
    """

    module: nn.Linear
    rows: slice

    def __call__(self, tokens: Tensor) -> Tensor:
        """Apply these rows to tokens (..., D), past all listeners."""
        bias = self.module.bias
        return nn.functional.linear(
            tokens, self.module.weight[self.rows], None if bias is None else bias[self.rows]
        )

    def listen(self, listener: Listener) -> None:
        """Add `listener(input)` (..., rows) to these rows of the output, from now on.

        The listener is `functools.partial(module)` or `partial(function, module)`: unlike a
        closure it follows `deepcopy`, so that a teacher does not share its student's adapters.
        """
        require_partial(listener)
        self.module.register_forward_hook(partial(_add_rows, listener, self.rows))


def _add_rows(
    listener: Listener, rows: slice, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor
) -> Tensor:
    delta = listener(inputs[0])
    before, after = rows.start, output.shape[-1] - rows.stop
    return output + nn.functional.pad(delta, (before, after)) if before or after else output + delta


def require_partial(listener: object) -> None:
    """Refuse listeners that `deepcopy` would not follow."""
    if not isinstance(listener, partial):
        raise TypeError(
            "a listener is functools.partial(function, module): closures share adapters"
        )
