"""Noisy top-k gates by distance (Shazeer et al. 2017; FuseMoE, Han et al. 2024), and their balance.

All computations are in float32, also under autocast: features of vision transformers have large
norms, and their distances to the experts differ little.
"""

from __future__ import annotations

from typing import Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import Parameter
from torch.nn import functional as F

from rsseg_cli.methods._token.tokens import Routes

GateKind = Literal["laplace", "softmax"]

SMALLEST_NOISE = 1e-2


class Gate(nn.Module):
    """Gate that routes every token of a modality to k of E experts.

    `centres` starts from N(0, 0.02) instead of the authors' zeros, so that routes are defined
    before training; `spread`, which scales the noise, starts from zero as theirs.
    """

    def __init__(self, dim: int, experts: int, *, k: int, kind: GateKind) -> None:
        super().__init__()
        self.k, self.kind = k, kind
        self.centres = Parameter(torch.empty(dim, experts))
        self.spread = Parameter(torch.zeros(dim, experts))
        nn.init.normal_(self.centres, std=0.02)

    def forward(self, features: Tensor) -> Routes:
        """Route features (B, N, D), in training with noise."""
        with torch.autocast(features.device.type, enabled=False):
            features = features.float()
            clean = affinity(features, self.centres, self.kind)
            if not self.training:
                return self._route(clean)
            deviation = F.softplus(features @ self.spread) + SMALLEST_NOISE
            noisy = clean + torch.randn_like(clean) * deviation
            routes = self._route(noisy)
            if self.k == self.centres.shape[1]:
                return routes
            probability = choice_probability(clean, noisy, deviation, self.k)
            return Routes(routes.chosen, routes.weights, probability.sum((0, 1)))

    def _route(self, scores: Tensor) -> Routes:
        best, chosen = scores.topk(self.k, dim=-1)
        return Routes(chosen, torch.zeros_like(scores).scatter(-1, chosen, best.softmax(-1)))


def affinity(features: Tensor, centres: Tensor, kind: GateKind) -> Tensor:
    """Score features (B, N, D) for experts with centres (D, E): (B, N, E).

    `laplace` is minus the distance plus |f|, `softmax` the inner product. The constant |f| does not
    change the routes, and |f| - |f - c| = (2 f.c - |c|^2) / (|f| + |f - c|) is accurate for large
    norms of f.
    """
    product = features @ centres
    if kind == "softmax":
        return product
    gain = 2 * product - centres.square().sum(0)  # |f|^2 - |f - c|^2
    squared = features.square().sum(-1, keepdim=True)
    distance = (squared - gain).clamp(min=1e-12).sqrt()
    return gain / (distance + squared.clamp(min=1e-12).sqrt())


def choice_probability(clean: Tensor, noisy: Tensor, deviation: Tensor, k: int) -> Tensor:
    """Return the probability of every expert to be among the best k if its noise is redrawn.

    The other experts keep their noise (Shazeer et al. 2017, appendix A). All are (B, N, E).
    """
    best = noisy.topk(k + 1, dim=-1).values
    last_in, first_out = best[..., k - 1, None], best[..., k, None]
    threshold = torch.where(noisy > first_out, first_out, last_in)
    return cast(Tensor, torch.special.ndtr((clean - threshold) / deviation))


def imbalance(totals: Tensor) -> Tensor:
    """Compute the squared coefficient of variation of totals (E,), with the unbiased variance.

    It is 0 for an even use of the experts, and E if a single expert gets everything.
    """
    return totals.var() / (totals.mean().square() + 1e-10)
