"""Query rows that attend to a block's tokens and that nothing attends to, in timm's blocks."""

from __future__ import annotations

import pytest
import torch
from test_backbones import PROMPTED, make, picture
from torch import Tensor

ROWS = 4


def rows() -> Tensor:
    return torch.randn(2, ROWS, 32, generator=torch.Generator().manual_seed(3))


@PROMPTED
@torch.no_grad()
def test_equals_timms_block_with_a_mask(case: str) -> None:
    """One pass over prefix, rows and patches in which no query may look at a row."""
    backbone = make(case)
    tokens, grid = backbone.embed(picture(backbone, 2, 3))
    prefix, patches = tokens.tensor_split([backbone.num_prefix_tokens], 1)
    joined = torch.cat([prefix, rows(), patches], 1)
    seen = torch.ones(joined.shape[1], dtype=torch.bool)
    seen[backbone.num_prefix_tokens : backbone.num_prefix_tokens + ROWS] = False
    mask = seen.expand(len(seen), -1)
    found = backbone.cross_attend(1, rows(), tokens, grid)
    block = backbone.model.blocks[1]
    if case.startswith(("dinov3", "eva")):
        block.attn.num_prefix_tokens += ROWS
        places = backbone.model.rope.get_embed(shape=(2, 3))
        expected = block(joined, rope=places, attn_mask=mask)
    else:
        expected = block(joined, attn_mask=mask)
    torch.testing.assert_close(found, expected[:, ~seen], rtol=1e-5, atol=1e-5)
    assert backbone.supports_queries


def test_windows_do_not_answer() -> None:
    backbone = make("sam")
    tokens, grid = backbone.embed(picture(backbone, 2, 3))
    assert not backbone.supports_queries
    with pytest.raises(NotImplementedError):
        backbone.cross_attend(0, rows(), tokens, grid)
