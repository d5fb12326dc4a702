"""Rare class sampling (Hoyer et al. 2022): tiles are drawn around rare classes more often."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rsseg_cli.data.tiles.class_index import ClassIndex


@dataclass(frozen=True)
class RareClasses(ClassIndex):
    """Draws class c with P(c) = softmax((1 - f_c) / T), f_c its fraction of the labelled pixels."""

    temperature: float = 0.01
    """T; a small one draws the rarest class only, a large one all classes equally."""

    @classmethod
    def of(cls, index: ClassIndex, temperature: float) -> RareClasses:
        """Build from an existing index."""
        return cls(index.counts, index.positions, temperature)

    @property
    def chances(self) -> NDArray[np.float64]:
        """(K) probability of each class; 0 for those without a pixel."""
        scores = np.where(self.counts > 0, (1 - self.shares) / self.temperature, -np.inf)
        weights: NDArray[np.float64] = np.exp(scores - scores.max())
        chances: NDArray[np.float64] = weights / weights.sum()
        return chances

    def draw(self, generator: np.random.Generator) -> tuple[int, int, int]:
        """Draw a class by its rarity and one of its pixels: index of the pair, x, y."""
        chances = self.chances
        return self._draw_pixel(int(generator.choice(len(chances), p=chances)), generator)
