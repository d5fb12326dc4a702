"""Fusion of the experts' outputs for visual and for depth features.

Both are maps F = M V: coefficients M (B, N, R) of a common span V (R, D), see `tokens`. Attention
between them requires only F F'^T = M (V V^T) M'^T, and its result has coefficients again.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor
from torch.nn import functional as F

Fusion = Literal["paper", "released", "add"]


def fuse(visual: Tensor, depth: Tensor, span: Tensor, kind: Fusion) -> Tensor:
    """Fuse two maps into one.

    - `paper`, equation (6): softmax(F_v F_d^T / sqrt D) F_d
    - `released`, the authors' code: every row of F_v times the diagonal of softmax(F_d F_v^T /
      sqrt D)
    - `add`, without attention: F_v + F_d

    Args:
        visual: Coefficients of F_v (B, N, R).
        depth: Coefficients of F_d (B, N, R).
        span: V (R, D).
        kind: One of the above.

    Returns:
        Coefficients (B, N, R) of the fused map.
    """
    if kind == "add":
        return visual + depth
    scale = span.shape[-1] ** -0.5
    gram = span @ span.mT
    if kind == "released":
        scores = (depth @ gram @ visual.mT).float() * scale
        log_weights = scores.diagonal(dim1=1, dim2=2) - scores.logsumexp(-1)
        return visual * log_weights.exp()[..., None]
    query, key = (visual @ gram)[:, None], depth[:, None]
    return F.scaled_dot_product_attention(query, key, key, scale=scale)[:, 0]
