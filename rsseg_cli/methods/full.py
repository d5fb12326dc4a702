"""Full fine-tuning baseline: every weight of the backbone trains."""

from __future__ import annotations

from collections.abc import Iterator

from torch.nn import Parameter

from rsseg_cli.contract import Backbone, Method, State


class Full(Method[State]):
    """Trains the whole backbone."""

    def trainable_parameters(self, backbone: Backbone) -> Iterator[tuple[str, Parameter]]:
        """Return all parameters of the backbone."""
        for name, parameter in backbone.named_parameters():
            yield f"backbone.{name}", parameter
