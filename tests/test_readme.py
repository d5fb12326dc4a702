"""Every command block of the README runs, or is at least understood by the command line."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from fakes import UNIT_RGB as BANDS
from ruamel.yaml import YAML
from runs import rsseg
from typer.main import get_command

from rsseg_cli.cli import app
from rsseg_cli.contract import Backbone, Method
from rsseg_cli.data.spec.dataset_spec import DatasetSpec
from rsseg_cli.demo.sample import write_sample
from rsseg_cli.find import find
from rsseg_cli.presets import read_text

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCK = re.compile(r"(?P<mark><!-- \w+ -->)?\n```(?P<kind>\w+)\n(?P<text>.*?)```", re.DOTALL)
STOPS = (">", ">>", "2>", "|", "&&", "&", ";")
SMALLER = {"300": "3", "40": "2"}
"""Values of `--steps` that a test has no time for."""


def blocks(kind: str, mark: str | None = None) -> list[str]:
    wanted = None if mark is None else f"<!-- {mark} -->"
    return [
        found["text"]
        for found in BLOCK.finditer(README)
        if found["kind"] == kind and found["mark"] == wanted
    ]


def commands(text: str) -> list[list[str]]:
    """The arguments of each `rsseg` in a shell script; variables count as 1."""
    found = []
    for line in text.replace("\\\n", " ").splitlines():
        words = shlex.split(re.sub(r"\$\{?\w+\}?", "1", line), comments=True)
        for start, word in enumerate(words):
            if word == "rsseg" or words[start : start + 2] == ["-m", "rsseg_cli"]:
                rest = words[start + (1 if word == "rsseg" else 2) :]
                stops = [index for index, one in enumerate(rest) if one.rstrip(";") in STOPS]
                found.append(rest[: min(stops, default=len(rest))])
                break
    return found


def parse(words: list[str]) -> None:
    """Parse the arguments of a command without running it; raise if they are wrong."""
    command, parent, name = get_command(app), None, "rsseg"
    while True:
        context = command.make_context(name, list(words), parent)
        if not hasattr(command, "resolve_command"):
            return
        rest = [*getattr(context, "_protected_args", ()), *context.args]
        name, command, words = command.resolve_command(context, rest)
        parent = context


RUNS = [words for text in blocks("bash", "runs") for words in commands(text)]
OTHERS = [
    words
    for mark in (None, "test")
    for text in blocks("bash", mark)
    for words in commands(text)
]  # fmt: skip


def test_there_is_something_to_test() -> None:
    assert len(RUNS) >= 4
    assert len(OTHERS) >= 4
    assert ["demo"] in OTHERS


@pytest.mark.parametrize("words", [*OTHERS, *RUNS], ids=" ".join)
def test_commands_are_understood(words: list[str]) -> None:
    parse(words)


@pytest.mark.parametrize(
    "line", ["fit --methd lora", "predict", "presets show", "evaluate --boundary x", "nothing"]
)
def test_wrong_commands_would_be_noticed(line: str) -> None:
    with pytest.raises(Exception, match=r"(?i)no such|missing|valid"):
        parse(line.split())


def test_the_walk_can_be_walked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RSSEG_DATA", raising=False)
    write_sample(tmp_path / "rsseg-demo" / "sample", side=192)
    for words in RUNS:
        if words[:1] == ["demo"]:
            continue  # a test of its own
        small = [
            SMALLER.get(word, word) if before == "--steps" else word
            for before, word in zip(["", *words], words, strict=False)
        ]
        done = rsseg(*small)
        assert done.code == 0, f"{' '.join(words)}\n{done.err}"
        assert done.out.strip(), words


def test_ci_runs_what_the_readme_says() -> None:
    (block,) = blocks("bash", "test")
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    command = next(line for line in script.splitlines() if line.startswith("command=$("))
    shown = subprocess.run(
        ["bash", "-c", f'{command}; printf %s "$command"'],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert shown.stdout.strip() == block.strip()
    assert 'eval "$command"' in script
    assert "pytest" in block


def test_dataset_yaml_is_valid() -> None:
    (text,) = [one for one in blocks("yaml") if "classes:" in one]
    spec = read_text(text, Path("README.md")).parse(DatasetSpec)
    assert [one.name for one in spec.class_list()] == [
        one["name"] for one in YAML(typ="safe").load(text)["classes"]
    ]


def test_files_that_are_named_exist() -> None:
    for name in re.findall(
        r"`(rsseg_cli/[\w/]+\.py|tests/[\w/]+\.py|presets/[\w/]+\.yaml)`", README
    ):
        if "NAME" not in name:
            assert (ROOT / name).is_file(), name


def test_benchmarks_take_the_options_that_are_shown() -> None:
    shown = [line for line in README.splitlines() if line.startswith("python tests/benchmarks/")]
    assert len(shown) >= 2
    for line in shown:
        _, file, *words = shlex.split(line)
        source = (ROOT / file).read_text(encoding="utf-8")
        if "command.parser(" in source:
            shared = ROOT / "tests/benchmarks/generalise/command.py"
            source += shared.read_text(encoding="utf-8")
        for option in (word for word in words if word.startswith("--")):
            assert f'"{option}"' in source, f"{file} {option}"


def test_pictures_are_there_and_small() -> None:
    named = re.findall(r"\.github/\w+\.png", README)
    assert len(named) >= 3
    for name in named:
        picture = ROOT / name
        assert picture.stat().st_size < 150_000, name
    assert {f".github/{path.name}" for path in (ROOT / ".github").glob("*.png")} == set(named)


def test_links_lead_to_headings() -> None:
    headings = re.findall(r"^#+ (.+)$", README, re.MULTILINE)
    anchors = {re.sub(r"[^a-z0-9 -]", "", one.lower()).replace(" ", "-") for one in headings}
    links = re.findall(r"\]\(#([\w-]+)\)", README)
    assert links
    assert set(links) <= anchors


def test_every_method_is_in_the_table() -> None:
    rows = re.findall(r"^\| (`.+?) \|", README[README.index("## Methods") :], re.MULTILINE)
    named = {name for row in rows for name in re.findall(r"`(\w+)`", row)}
    assert named >= {path.stem for path in (ROOT / "presets" / "methods").glob("*.yaml")}


def test_the_example_of_a_method_is_one() -> None:
    (text,) = blocks("python")
    scope: dict[str, Any] = {"__name__": "shift"}
    exec(text, scope)
    torch.manual_seed(0)
    vit = find("backbones", "vit", Backbone)
    backbone = vit(vit.Config(name="vit_tiny"), BANDS)  # type: ignore[call-arg]
    kind = scope["Shift"]
    image = torch.randn(1, 3, 32, 32)
    still, moved = (kind(kind.Config(start=start), backbone) for start in (0.0, 0.5))
    plain = backbone(image, find("methods", "frozen", Method)(Method.Config(), backbone)).maps
    assert all(map(torch.equal, backbone(image, still).maps, plain))
    assert not any(map(torch.equal, backbone(image, moved).maps, plain))
    assert [name for name, _ in moved.trainable_parameters(backbone)] == ["method.shift"]
