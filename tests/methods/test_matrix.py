"""Every method runs on every backbone, but for the pairs that `presets/README.md` names."""

from __future__ import annotations

import pytest
from matrix import FAMILIES, refusal
from paths import ROOT
from test_contract import METHODS

REFUSED = {("vpt", "sam"), ("vqt", "sam")}
SENTENCE = "`vpt` and `vqt` do not run on `sam`; every other method runs on every backbone."


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("method", METHODS)
def test_only_named_pairs_are_refused(method: str, family: str) -> None:
    assert bool(refusal(method, family)) == ((method, family) in REFUSED)


def test_the_refused_pairs_are_documented() -> None:
    assert SENTENCE in (ROOT / "presets" / "README.md").read_text(encoding="utf-8")
