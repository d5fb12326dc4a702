"""Noisy top-k gates by distance (Shazeer et al. 2017; FuseMoE, Han et al. 2024), and their balance.

Everything here is float32 whatever the precision around it: features of vision transformers are
long, and the distances from one of them to all experts differ little.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import Parameter
from torch.nn import functional as F

from rsseg_cli.methods._token.tokens import Routes

GateKind = Literal["laplace", "softmax"]

SMALLEST_NOISE = 1e-2


class Gate(nn.Module):
    """Sends every token of one modality to k of E experts.

    `centres` starts from N(0, 0.02) instead of the authors' zeros, so that routes are defined
    before any training; `spread` starts from zero as theirs.
    """

    def __init__(self, dim: int, experts: int, *, k: int, kind: GateKind) -> None:
        super().__init__()
        self.k, self.kind = k, kind
        self.centres = Parameter(torch.empty(dim, experts))
        self.spread = Parameter(torch.zeros(dim, experts))
        nn.init.normal_(self.centres, std=0.02)

    def forward(self, features: Tensor) -> Routes:
        """Route features (B, N, D); noise acts in training only."""
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
            chance = chance_of_choice(clean, noisy, deviation, self.k)
            return Routes(routes.chosen, routes.shares, chance.sum((0, 1)))

    def _route(self, scores: Tensor) -> Routes:
        best, chosen = scores.topk(self.k, dim=-1)
        shares = torch.zeros_like(scores).scatter(-1, chosen, best.softmax(-1))
        return Routes(chosen, shares)


def affinity(features: Tensor, centres: Tensor, kind: GateKind) -> Tensor:
    """Score features (B, N, D) for experts with centres (D, E): (B, N, E).

    `laplace` is minus the distance, `softmax` the inner product. The distance is given relative to
    that from 0, which all experts of a token share, so that routes do not depend on it:
    |f| - |f - c| = (2 f.c - |c|^2) / (|f| + |f - c|) loses no digits for long f.
    """
    product = features @ centres
    if kind == "softmax":
        return product
    gain = 2 * product - centres.square().sum(0)  # |f|^2 - |f - c|^2
    squared = features.square().sum(-1, keepdim=True)
    distance = (squared - gain).clamp(min=1e-12).sqrt()
    return gain / (distance + squared.clamp(min=1e-12).sqrt())


def chance_of_choice(clean: Tensor, noisy: Tensor, deviation: Tensor, k: int) -> Tensor:
    """Return the chance of every expert to be among the best k if its noise were drawn anew.

    The other experts keep their noise (Shazeer et al. 2017, appendix A). All are (B, N, E).
    """
    best = noisy.topk(k + 1, dim=-1).values
    last_in, first_out = best[..., k - 1, None], best[..., k, None]
    threshold = torch.where(noisy > first_out, first_out, last_in)
    chance: Tensor = torch.special.ndtr((clean - threshold) / deviation)
    return chance


def imbalance(totals: Tensor) -> Tensor:
    """Measure how unevenly E experts are used: 0 for even use, E if one (E,) has all.

    It is the squared coefficient of variation with the unbiased variance.
    """
    return totals.var() / (totals.mean().square() + 1e-10)
