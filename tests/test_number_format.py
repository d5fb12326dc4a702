"""Numbers are formatted for people."""

from __future__ import annotations

import pytest

from rsseg_cli.number_format import counted


@pytest.mark.parametrize(
    ("number", "one", "said"),
    [
        (0, "image", "0 images"),
        (1, "image", "1 image"),
        (1200, "image", "1,200 images"),
        (1, "class", "1 class"),
        (2, "class", "2 classes"),
    ],
)
def test_one_is_one(number: int, one: str, said: str) -> None:
    assert counted(number, one) == said
