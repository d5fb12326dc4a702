"""The command line itself: names, answers, exit codes, and no traceback for a user's mistake."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
import typer.main
from runs import rsseg

import rsseg_cli
from rsseg_cli import presets
from rsseg_cli.cli import _warn, app
from rsseg_cli.errors import RssegWarning

PACKAGE = Path(rsseg_cli.__file__).parent


def commands(command: click.Command, name: str = "rsseg") -> Iterator[tuple[str, click.Command]]:
    """Walk all commands, each with its full name."""
    yield name, command
    for inner in getattr(command, "commands", {}).values():
        yield from commands(inner, f"{name} {inner.name}")


COMMANDS = dict(commands(typer.main.get_command(app)))


def test_the_commands() -> None:
    assert {"fit", "predict", "evaluate", "demo", "doctor", "presets list", "presets show"} <= {
        name.removeprefix("rsseg ") for name in COMMANDS
    }


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_every_command_explains_itself(name: str, flag: str) -> None:
    call = rsseg(*name.split()[1:], flag)
    assert (call.code, call.err) == (0, "")
    assert "Usage: rsseg" in call.out
    for parameter in COMMANDS[name].params:
        assert getattr(parameter, "help", "") or parameter.name in ("install_completion", None)


def test_version() -> None:
    call = rsseg("--version")
    assert (call.code, call.out) == (0, f"rsseg {rsseg_cli.__version__}\n")


def test_the_module_is_the_command() -> None:
    command = [sys.executable, "-m", "rsseg_cli", "--version"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == f"rsseg {rsseg_cli.__version__}\n"


def test_errors_leave_the_process_with_their_code(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "rsseg_cli", "presets", "show", "lroa"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.splitlines()[0] == "error: lroa is not a known preset"
    assert done.stderr.splitlines()[1].startswith("  try: lora")


@pytest.mark.parametrize(
    ("words", "code", "what"),
    [
        ("", 2, "Usage"),
        ("fitt", 2, "No such command"),
        ("fit --src", 2, "requires an argument"),
        ("fit --no-such-option", 2, "No such option"),
        ("fit --steps many", 2, "integer"),
        ("fit", 1, "one of --method and --config"),
        ("fit -m lora --config c.yaml", 1, "one of --method and --config"),
        ("fit -m lroa --src x", 1, "lroa is not a known method preset"),
        ("fit -m lora", 1, "no training data"),
        ("fit -m lora --src none/at/all", 1, "none/at/all"),
        ("fit -m lora --src none.yaml", 1, "none.yaml"),
        ("fit -m lora --src no_preset", 1, "no_preset is not a known dataset preset"),
        ("fit -m lora --src loveda --data-root none", 1, "loveda"),
        ("fit -m lora --src x --set rank=3", 1, "--set rank=3"),
        ("fit -m lora --src x --set method.rnak=3", 1, "method.rnak is not a known setting"),
        ("fit -m lora --src x --steps -1", 1, "training.steps"),
        ("fit -m lora --src x --batch 0", 1, "training.batch"),
        ("fit -m lora --src x --seed -3", 1, "training.seed"),
        ("fit -m lora --src x --tile 0", 1, "data.tile"),
        ("fit -m lora --src x --head no_head", 1, "no_head is not a known head"),
        ("fit -m lora --src x --backbone no_backbone", 1, "no_backbone is not a known backbone"),
        ("fit -m lora --src x --device tpu", 1, "tpu is not a device"),
        ("fit -m lora --src x --resume --output none", 1, "error: "),
        ("fit --config none.yaml", 1, "none.yaml cannot be read"),
        ("fit --config .", 1, "cannot be read"),
        ("predict", 2, "Missing argument"),
        ("predict none.tif", 1, "there is no finished run"),
        ("predict none.tif --model none", 1, "none does not exist"),
        ("predict none.tif --model .", 1, "error: "),
        ("predict none.tif --overlap 3", 2, "overlap"),
        ("predict none.tif --tile -5", 2, "tile"),
        ("predict none.tif --device tpu", 1, "tpu is not a device"),
        ("evaluate", 1, "nothing to compare"),
        ("evaluate a.tif", 1, "nothing to compare"),
        ("evaluate a.tif b.tif", 1, "a.tif"),
        ("evaluate --on x", 1, "there is no finished run"),
        ("evaluate --model none --on .", 1, "error: "),
        ("presets show", 2, "Missing argument"),
        ("presets show lroa", 1, "lroa is not a known preset"),
        ("presets delete", 2, "No such command"),
        ("demo --device tpu -o d", 1, "tpu is not a device"),
        ("doctor --data-root none", 1, ""),
    ],
)
def test_mistakes_end_in_a_sentence(
    words: str, code: int, what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RSSEG_DATA", raising=False)
    call = rsseg(*words.split())
    assert call.code == code
    said = re.sub(r"[\s│]+", " ", call.out + call.err if code == 2 else call.err)
    assert what in said
    assert "Traceback" not in said
    if code == 1 and not words.startswith("doctor"):
        assert call.err.startswith("error: ")
        assert call.out == ""
    assert not list(tmp_path.rglob("*.tif"))


def test_presets_are_listed() -> None:
    call = rsseg("presets", "list", "--json")
    rows = call.document
    assert all(set(row) == {"kind", "name", "title"} and row["title"] for row in rows)
    listed = {(row["kind"], row["name"]) for row in rows}
    assert listed == {(kind, name) for kind in presets.KINDS for name in presets.names(kind)}
    text = rsseg("presets", "list").out
    assert "spectralmoe" in text
    assert "fbp_gf2" in text


@pytest.mark.parametrize("name", ["lora", "loveda"])
def test_a_preset_is_shown_as_it_is(name: str) -> None:
    kind = next(kind for kind in presets.KINDS if name in presets.names(kind))
    assert rsseg("presets", "show", name).out == presets.find(kind, name).read_text()


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("rsseg fit --method lo", {"lora"}),
        ("rsseg fit -m spec", {"spectralmoe"}),
        ("rsseg fit --backbone dinov3_sat", {"dinov3_sat_large", "dinov3_sat_7b"}),
        ("rsseg adapt --backbone soft", {"softcon_small", "softcon_sar_base"}),
        ("rsseg fit --src lov", {"loveda"}),
        ("rsseg fit --src my", {"my_city"}),
        ("rsseg pre", {"predict", "presets"}),
    ],
)
def test_shells_complete_names(
    words: str, expected: set[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my_city").mkdir()
    (tmp_path / "my_file").write_text("")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("_RSSEG_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", words)
    monkeypatch.setenv("COMP_CWORD", str(len(words.split()) - 1))
    found = set(rsseg().out.split())
    assert expected <= found
    assert all(name.startswith(words.split()[-1]) for name in found)


def texts(path: Path) -> Iterator[str]:
    """All texts of a module that are not docstrings."""
    tree = ast.parse(path.read_text())
    said = {
        id(node.value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in said:
            yield node.value


def test_options_that_messages_name_exist() -> None:
    known = {
        option
        for command in COMMANDS.values()
        for parameter in command.params
        for option in (*parameter.opts, *parameter.secondary_opts)
    }
    of_pip = {"--force-reinstall", "--no-deps", "--upgrade"}
    of_others = {"--crs", "--nproc-per-node"}  # rio and torchrun
    others = {*of_pip, *of_others, "--help", "--no-"}  # --no- is the prefix of negated flags
    unknown = {
        (path.name, option)
        for path in sorted(PACKAGE.rglob("*.py"))
        for text in texts(path)
        for option in re.findall(r"(?<![\w-])--[a-z][a-z-]+", text)
        if option not in known | others
    }
    assert not unknown


@pytest.mark.parametrize("debug", ["", "1"])
def test_warnings_of_libraries_are_shown_on_demand(debug: str) -> None:
    code = (
        "import warnings, sys, rsseg_cli.cli as cli\n"
        "cli.app = lambda **_: (warnings.warn('of a library'), cli.warnings.warn("
        "'of rsseg', cli.RssegWarning))\n"
        "cli.main()\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "default", "-c", code],
        capture_output=True, text=True, check=True, timeout=60,
        env=os.environ | {"RSSEG_DEBUG": debug},
    )  # fmt: skip
    assert "warning: of rsseg" in done.stderr
    assert ("of a library" in done.stderr) == bool(debug)


def test_debugging_shows_the_warnings_of_libraries(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for value, shown in (("", False), ("1", True)):
        monkeypatch.setenv("RSSEG_DEBUG", value)
        _warn("careful", UserWarning, "library.py", 7)
        assert ("library.py:7: UserWarning: careful" in capsys.readouterr().err) == shown
    _warn("look", RssegWarning, "ours.py", 1)
    assert capsys.readouterr().err == "warning: look\n"
