"""Help texts: complete, plain, and readable in a terminal of 100 columns."""

from __future__ import annotations

import re
from dataclasses import dataclass
from inspect import signature
from typing import Any, Literal

import pytest
import typer
from runs import Call, rsseg
from test_cli import COMMANDS
from typer.testing import CliRunner

from rsseg_cli.cli.command import Command, command
from rsseg_cli.commands.adapt.options import AdaptOptions
from rsseg_cli.commands.fit.options import FitOptions
from rsseg_cli.commands.options import ADVANCED, OUTPUT, PANELS, argument, option

WIDTH, HEIGHT = 100, 45
NOT_A_START = {"Say", "Tell", "Give", "Let", "Lay", "Hear", "What", "Which", "How", "Whether"}
PYTHON_TYPES = re.compile(r"<\w+|\b(TEXT|INTEGER|FLOAT|BOOLEAN|list\[)")


def help_of(name: str, monkeypatch: pytest.MonkeyPatch) -> Call:
    monkeypatch.setenv("COLUMNS", str(WIDTH))
    return rsseg(*name.split()[1:], "--help")


def texts(name: str) -> list[str]:
    """The help of a command and of all its parameters."""
    own = COMMANDS[name]
    params: list[Any] = own.params
    return [own.help or "", *(param.help or "" for param in params)]


@pytest.mark.parametrize("name", COMMANDS)
def test_no_line_is_cut_and_no_python_type_is_shown(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = help_of(name, monkeypatch).out
    assert "\u2026" not in shown
    assert all(len(line) <= WIDTH for line in shown.splitlines())
    assert not PYTHON_TYPES.search(shown)


def test_fit_fits_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = help_of("rsseg fit", monkeypatch).out.splitlines()
    assert len(lines) <= HEIGHT
    panels = [line.split()[1] for line in lines if line.startswith("\u256d")]
    assert panels == ["Data", "Model", "Training", "Running", "Advanced"]


@pytest.mark.parametrize("name", COMMANDS)
def test_every_text_is_plain(name: str) -> None:
    for text in texts(name):
        assert text, f"{name} has a parameter without help"
        assert text.split()[0] not in NOT_A_START, text
        assert not re.search(r"(?<!there )\b(is|are) no ", text, re.IGNORECASE), text


@pytest.mark.parametrize("name", COMMANDS)
def test_an_option_has_a_panel_and_o_is_the_output(name: str) -> None:
    params: list[Any] = COMMANDS[name].params
    for param in params:
        if param.param_type_name == "option" and name != "rsseg":
            assert param.rich_help_panel in PANELS, param.opts
        assert ("-o" in param.opts) == ("--output" in param.opts)


# --- how commands are built ----------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Base:
    size: int = option(3, "Size.", OUTPUT, min=1)


@dataclass(frozen=True, kw_only=True)
class Options(Base):
    files: tuple[str, ...] = argument("Files.")
    kind: Literal["a", "b"] | None = option(None, "Kind.", OUTPUT, "-k")
    numbers: tuple[int, ...] = option((), "Numbers.", ADVANCED, "--number")
    fast: bool = option(False, "Fast.", OUTPUT)
    safe: bool = option(True, "Safe.", OUTPUT)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("x", Options(files=("x",))),
        ("x y -k b --size 7", Options(files=("x", "y"), kind="b", size=7)),
        ("x --number 1 --number 2", Options(files=("x",), numbers=(1, 2))),
        ("x --fast --no-safe", Options(files=("x",), fast=True, safe=False)),
        ("", None),
        ("x -k c", None),
        ("x --size 0", None),
        ("x --no-fast", None),
    ],
)
def test_a_command_receives_its_options(words: str, expected: Options | None) -> None:
    received = []

    @command
    def run(options: Options) -> None:
        """Run."""
        received.append(options)

    app = typer.Typer()
    app.command(cls=Command)(run)
    assert CliRunner().invoke(app, words.split()).exit_code == (2 if expected is None else 0)
    assert received == ([] if expected is None else [expected])


def test_options_are_ordered_by_panel_and_own_ones_come_first() -> None:
    @command
    def run(options: Options) -> None:
        """Run."""

    assert list(signature(run).parameters) == ["files", "kind", "fast", "safe", "size", "numbers"]


def test_options_change_settings() -> None:
    assert FitOptions().changes() == []
    options = FitOptions(
        steps=0, tile=64, compile=True, precision="bf16", settings=("data.tile=3",)
    )
    assert options.changes()[-1] == "data.tile=3"
    assert set(options.changes()[:-1]) == {
        "training.steps=0",
        "data.tile=64",
        "training.compile=True",
        "training.precision=bf16",
    }
    assert AdaptOptions(gsd=0.5, source_free=True, bands="3,2").changes() == [
        "adapt.source_free=True",
        "adapt.gsd_m=0.5",
        "adapt.bands=[3,2]",
    ]
