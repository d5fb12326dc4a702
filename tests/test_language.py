"""House rules of prose that can be counted, for docstrings, comments, help and messages."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "rsseg_cli"
MODULES = sorted(PACKAGE.rglob("*.py"))

FIRST_WORDS = re.compile(
    r"(?:Ask|Bring|Give|Hand|Hear|Know|Lay|Let|Look|Say|Speak|Take|Tell|Turn|Wish)s?\b"
    r"|How\b|What\b|Where\b|Which\b|Who\b|Why\b"
)
"""No docstring starts with these, but with a noun phrase or a verb such as Return or Read."""
PHRASES = re.compile(
    r"(?<!there )(?<!There )\b(?:is|are|was|were) no (?!longer|more|less|fewer|better|worse)"
    r"|\b(?:hear|hears|heard|speaks?|spoken|says?|said|tells?|told|wish|wishes|wished|wonders?)\b"
    r"|\b(?:asks?|asked)\b(?! for)"
    r"|\b(?:knows|appear by rename|not to be had|nobody|no one has)\b"
)
"""Code does not hear, speak or wish, and "X is not a Y" is English for "X is no Y"."""


def docstrings(path: Path) -> Iterator[tuple[int, str]]:
    """Line and text of each docstring, those of fields included."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            text = node.value.value
            if isinstance(text, str):
                yield node.lineno, text


def comments(path: Path) -> Iterator[tuple[int, str]]:
    text = path.read_text(encoding="utf-8")
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string


def messages(path: Path) -> Iterator[tuple[int, str]]:
    """Texts of errors, warnings, help and everything else that is printed: strings with a space."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    skip = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        text = node.value if isinstance(node, ast.Constant) and id(node) not in skip else None
        if isinstance(text, str) and " " in text.strip():
            yield node.lineno, text


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_docstrings_start_with_a_noun_or_a_plain_verb(path: Path) -> None:
    starts = [
        f"{path.relative_to(ROOT)}:{line}: {text.splitlines()[0]}"
        for line, text in docstrings(path)
        if FIRST_WORDS.match(text.strip())
    ]
    assert not starts, "\n".join(starts)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_code_is_not_a_person(path: Path) -> None:
    lines = dict.fromkeys((*docstrings(path), *comments(path), *messages(path)))
    wrong = [
        f"{path.relative_to(ROOT)}:{line}: {text[max(0, match.start() - 30) : match.end() + 30]!r}"
        for line, text in lines
        for match in PHRASES.finditer(text)
    ]
    assert not wrong, "\n".join(wrong)


def test_class_names_are_unique() -> None:
    """One word, one thing: a search for a class finds one. `Config` and `State` are roles."""
    names = Counter(
        node.name
        for path in MODULES
        for node in ast.parse(path.read_text(encoding="utf-8")).body
        if isinstance(node, ast.ClassDef)
    )
    repeated = {name: count for name, count in names.items() if count > 1}
    assert not repeated, repeated


@pytest.mark.parametrize(
    "text", ["a tile is no scene", "the reader hears of it", "it says what is wrong"]
)
def test_wrong_phrases_are_noticed(text: str) -> None:
    assert PHRASES.search(text)


@pytest.mark.parametrize("text", ["there is no CRS", "it is no longer used", "asks for a name"])
def test_plain_phrases_pass(text: str) -> None:
    assert not PHRASES.search(text)
