"""Activation checkpointing of single functions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint


def recomputed(function: Callable[..., Any], *inputs: Any) -> Any:
    """Run a function without storing its activations; backward computes them again.

    The function runs twice and must not have side effects. Use it for operations with many
    activations and little arithmetic, such as small convolutions and sampling.
    """
    if not torch.is_grad_enabled():
        return function(*inputs)
    return checkpoint(function, *inputs, use_reentrant=False)
