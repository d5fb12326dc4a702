"""Every method on every backbone works or is refused as in the README's table."""

from __future__ import annotations

import pytest
from matrix import FAMILIES, METHODS, REFUSED, WORKS, kept, refusal, row, table

LINES = kept().splitlines()


def said(method: str, family: str) -> str:
    """The cell of the README's table."""
    (line,) = [line for line in LINES if line.startswith(f"| `{method}` |")]
    return line.strip("| ").split(" | ")[1 + FAMILIES.index(family)]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("method", METHODS)
def test_a_pair_does_what_the_readme_says(method: str, family: str) -> None:
    reason = refusal(method, family)
    assert said(method, family) == (REFUSED if reason else WORKS)
    if reason:
        (line,) = [line for line in LINES if line.endswith(f": {reason}.")]
        assert f"`{method}` on `{family}`" in line


def test_the_table_has_every_pair_and_nothing_else() -> None:
    """Written again from its own cells and reasons it is the same."""
    reasons = {
        line.partition(": ")[0]: line.partition(": ")[2][:-1] for line in LINES if ": " in line
    }
    refusals: dict[str, dict[str, str]] = {}
    for method in METHODS:
        refusals[method] = {}
        for family in FAMILIES:
            pair = f"`{method}` on `{family}`"
            found = [reason for pairs, reason in reasons.items() if pair in pairs]
            refusals[method][family] = found[0] if found else ""
    assert "".join(table(refusals)) == kept()


def test_a_line_that_is_wrong_would_be_seen() -> None:
    refusals = dict.fromkeys(FAMILIES, "") | {FAMILIES[0]: "no"}
    assert row("vpt", refusals).split(" | ")[1] == REFUSED
    assert refusal("vpt", "sam")
