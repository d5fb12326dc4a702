"""Every command in the documentation runs, or is at least accepted by the command line."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from fakes import UNIT_RGB as BANDS
from paths import ROOT
from ruamel.yaml import YAML
from runs import rsseg
from typer.main import get_command

from rsseg_cli.cli import app
from rsseg_cli.contract import Backbone, Method
from rsseg_cli.data.spec.dataset_spec import DatasetSpec
from rsseg_cli.demo.sample import write_sample
from rsseg_cli.find import find
from rsseg_cli.presets import read_text

DOCUMENTS = (
    "README.md",
    "presets/README.md",
    "tests/benchmarks/README.md",
    "rsseg_cli/README.md",
    ".github/cluster.md",
)
TEXTS = {name: (ROOT / name).read_text(encoding="utf-8") for name in DOCUMENTS}
BLOCK = re.compile(r"(?P<mark><!-- \w+ -->)?\n```(?P<kind>\w+)\n(?P<text>.*?)```", re.DOTALL)
STOPS = (">", ">>", "2>", "|", "&&", "&", ";")
SMALLER = {"300": "3", "40": "2"}
"""Values of `--steps` that a test has no time for."""


def blocks(kind: str, mark: str | None = None) -> list[str]:
    """Return the code blocks of one kind in all documents, with or without a mark above them."""
    label = None if mark is None else f"<!-- {mark} -->"
    return [
        match["text"]
        for text in TEXTS.values()
        for match in BLOCK.finditer(text)
        if match["kind"] == kind and match["mark"] == label
    ]


def commands(text: str) -> list[list[str]]:
    """Return the arguments of each `rsseg` in a shell script; variables count as 1."""
    calls = []
    for line in text.replace("\\\n", " ").splitlines():
        words = shlex.split(re.sub(r"\$\{?\w+\}?", "1", line), comments=True)
        for start, word in enumerate(words):
            if word == "rsseg" or words[start : start + 2] == ["-m", "rsseg_cli"]:
                rest = words[start + (1 if word == "rsseg" else 2) :]
                ends = [index for index, word in enumerate(rest) if word.rstrip(";") in STOPS]
                calls.append(rest[: min(ends, default=len(rest))])
                break
    return calls


def parse(words: list[str]) -> None:
    """Parse arguments without running anything; wrong ones raise."""
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
    assert len(RUNS) >= 6
    assert len(OTHERS) >= 20
    assert ["demo"] in OTHERS


@pytest.mark.parametrize("words", [*OTHERS, *RUNS], ids=" ".join)
def test_commands_are_accepted(words: list[str]) -> None:
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
    demo = rsseg(
        "fit", "-m", "full", "--backbone", "vit_tiny", "--head", "linear", "--no-pretrained",
        "--src", "rsseg-demo/sample/north", "--tile", 64, "--steps", 1, "-o", "rsseg-demo/run",
    )  # fmt: skip
    assert demo.code == 0, demo.err
    for words in RUNS:
        small = [
            SMALLER.get(word, word) if before == "--steps" else word
            for before, word in zip(["", *words], words, strict=False)
        ]
        call = rsseg(*small)
        assert call.code == 0, f"{' '.join(words)}\n{call.err}"
        assert call.out.strip(), words


def test_ci_runs_what_the_readme_says() -> None:
    (block,) = blocks("bash", "test")
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    command = next(line for line in script.splitlines() if line.startswith("command=$("))
    extracted = subprocess.run(
        ["bash", "-c", f'{command}; printf %s "$command"'],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert extracted.stdout.strip() == block.strip()
    assert 'eval "$command"' in script
    assert "pytest" in block


def test_the_readme_is_short() -> None:
    lines = TEXTS["README.md"].splitlines()
    assert len(lines) <= 200
    assert max(map(len, lines)) <= 100


def test_dataset_yaml_is_valid() -> None:
    (text,) = [block for block in blocks("yaml") if "classes:" in block]
    spec = read_text(text, Path("README.md")).parse(DatasetSpec)
    assert [cls.name for cls in spec.class_list()] == [
        cls["name"] for cls in YAML(typ="safe").load(text)["classes"]
    ]


@pytest.mark.parametrize("name", DOCUMENTS)
def test_files_and_links_exist(name: str) -> None:
    text, folder = TEXTS[name], (ROOT / name).parent
    for file in re.findall(r"`((?:rsseg_cli|tests|presets)/[\w/]+\.(?:py|yaml))`", text):
        assert "NAME" in file or (ROOT / file).is_file(), file
    for target in re.findall(r"\]\(([^)#:]+)(?:#[\w-]+)?\)|src=\"([^\"]+)\"", text):
        assert (folder / "".join(target)).exists(), target


def test_benchmarks_take_the_options_of_the_documentation() -> None:
    lines = [
        line
        for text in TEXTS.values()
        for line in text.splitlines()
        if line.startswith("python tests/benchmarks/")
    ]
    assert len(lines) >= 3
    for line in lines:
        _, file, *words = shlex.split(line)
        source = (ROOT / file).read_text(encoding="utf-8")
        if "command.parser(" in source:
            shared = ROOT / "tests/benchmarks/generalise/command.py"
            source += shared.read_text(encoding="utf-8")
        for option in (word for word in words if word.startswith("--")):
            assert f'"{option}"' in source, f"{file} {option}"


def test_pictures_are_used_and_small() -> None:
    used = {name for text in TEXTS.values() for name in re.findall(r"\.github/\w+\.png", text)}
    assert len(used) >= 3
    for name in used:
        assert (ROOT / name).stat().st_size < 150_000, name
    assert {f".github/{path.name}" for path in (ROOT / ".github").glob("*.png")} == used


@pytest.mark.parametrize("name", DOCUMENTS)
def test_links_lead_to_headings(name: str) -> None:
    for file, anchor in re.findall(r"\]\(([^)#:]*)#([\w-]+)\)", TEXTS[name]):
        text = ((ROOT / name).parent / file).read_text(encoding="utf-8") if file else TEXTS[name]
        headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
        anchors = {
            re.sub(r"[^a-z0-9 -]", "", heading.lower()).replace(" ", "-") for heading in headings
        }
        assert anchor in anchors


def test_every_preset_of_a_method_is_in_the_table() -> None:
    text = TEXTS["presets/README.md"]
    rows = re.findall(r"^\| (`.+?) \|", text[text.index("## Methods") :], re.MULTILINE)
    names = {name for row in rows for name in re.findall(r"`(\w+)`", row)}
    assert names >= {path.stem for path in (ROOT / "presets" / "methods").glob("*.yaml")}


def test_the_example_of_a_method_works() -> None:
    (text,) = blocks("python")
    scope: dict[str, Any] = {"__name__": "shift"}
    exec(text, scope)
    torch.manual_seed(0)
    vit = find("backbones", "vit", Backbone)
    backbone = vit(vit.Config(name="vit_tiny"), BANDS)  # type: ignore[call-arg]
    kind = scope["Shift"]
    image = torch.randn(1, 3, 32, 32)
    still, moved = (kind(kind.Config(init_std=std), backbone) for std in (0.0, 0.5))
    plain = backbone(image, find("methods", "frozen", Method)(Method.Config(), backbone)).maps
    assert all(map(torch.equal, backbone(image, still).maps, plain))
    assert not any(map(torch.equal, backbone(image, moved).maps, plain))
    names = [name for name, _ in moved.trainable_parameters(backbone)]
    assert names == ["method.shift"]
