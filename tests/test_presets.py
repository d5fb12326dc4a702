"""Preset files: lookup, strict parsing, and errors with line numbers."""

import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import BaseModel, ConfigDict

from rsseg_cli import presets
from rsseg_cli.errors import RssegError, UnreadableError


class Inner(BaseModel):
    model_config = ConfigDict(extra="forbid")
    rank: int = 4
    experts: int = 2


class Outer(BaseModel):
    model_config = ConfigDict(extra="forbid")
    method: Inner = Inner()
    parts: tuple[Inner, ...] = ()
    table: dict[str, Inner] = {}
    rate: float = 0.1
    seed: int


def document(text: str) -> presets.Document:
    return presets.read_text(text, Path("some.yaml"))


def test_numbers_and_truth_values_are_read_as_written() -> None:
    values = document(
        "a: 1e-4\nb: 1.0e-4\nc: no\nd: true\ne: -5\nf: .5\ng: 0.5.1\nh: [1, 2.]\n"
    ).values
    expected = {"a": 1e-4, "b": 1e-4, "c": "no", "d": True, "e": -5, "f": 0.5, "g": "0.5.1"}
    assert values == {**expected, "h": [1, 2.0]}


def test_every_key_has_its_line() -> None:
    parsed = document("seed: 1\nmethod:\n  rank: 3\nparts:\n- {rank: 1}\n- rank: 2\n  experts: 1\n")
    assert parsed.lines[("method", "rank")] == 3
    assert parsed.lines[("parts", 1, "experts")] == 7
    assert parsed.where(("parts", 1, "experts", "absent")) == "some.yaml, line 7"
    assert parsed.where() == "some.yaml"


@pytest.mark.parametrize(
    ("text", "what", "line", "fix"),
    [
        (
            "seed: 1\nmethod:\n  rnak: 3\n",
            "method.rnak is not a known",
            3,
            "method.rank (also: experts)",
        ),
        ("sed: 1\n", "sed is not a known setting", 1, "seed (also: method, parts, rate, table)"),
        (
            "seed: 1\nparts:\n- {rank: 1}\n- {expert: 1}\n",
            "parts.1.expert is",
            4,
            "parts.1.experts",
        ),
        ("seed: 1\ntable:\n  a:\n    rnk: 1\n", "table.a.rnk is not", 4, "table.a.rank"),
        ("rate: 1\n", "seed is missing", None, ""),
        ("seed: 1\nrate: fast\n", "rate: Input should be a valid number", 2, ""),
    ],
)
def test_errors_have_their_line(text: str, what: str, line: int | None, fix: str) -> None:
    with pytest.raises(RssegError) as caught:
        document(text).parse(Outer)
    assert what in caught.value.what
    assert caught.value.where == "some.yaml" + (f", line {line}" if line else "")
    assert caught.value.fix.startswith(fix)


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("a: [1", "not valid YAML"),
        ("a: 1\na: 2\n", 'duplicate key "a"'),
        ("- 1\n", "has no settings"),
        ("", "has no settings"),
        ("a: !!python/object:os.system {}\n", "not valid YAML"),
    ],
)
def test_broken_yaml_is_refused(text: str, what: str) -> None:
    with pytest.raises(UnreadableError, match=what):
        document(text)


def test_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnreadableError, match="cannot be read"):
        presets.read(tmp_path / "none.yaml")


def test_unknown_presets_list_the_nearest() -> None:
    with pytest.raises(RssegError) as caught:
        presets.find("datasets", "lovda")
    assert caught.value.what == "lovda is not a known dataset preset"
    assert caught.value.fix.startswith("loveda")


def test_every_preset_is_listed_and_reads() -> None:
    for kind in presets.KINDS:
        root = presets.folder() / kind
        assert len(presets.names(kind)) == len(list(root.rglob("*.yaml")))
        for name in presets.names(kind):
            path = presets.find(kind, name)
            assert presets.read(path).values.get("title"), f"{path} has no title"


def test_presets_import_nothing_heavy() -> None:
    code = (
        "import sys, rsseg_cli.presets as p; p.names('datasets');"
        "assert not {'torch', 'rasterio', 'numpy', 'pydantic'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
