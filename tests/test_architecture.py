"""Promises about the code itself: imports point one way, help is instant, names are complete."""

from __future__ import annotations

import ast
import resource
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "rsseg_cli"

# From left to right; parts in one group never import each other, except where they are one folder.
LAYERS: list[set[str]] = [
    {"errors", "classes", "plain", "words"},
    {"distributed", "threads"},
    {"share"},
    {"presets"},
    {"bands", "grid", "pointwise", "projection", "step"},
    {"contract", "raster", "metrics"},
    {"find", "data", "backbones", "heads", "report"},
    {"methods"},
    {"segmenter"},
    {"training", "predict", "evaluate"},
    {"config"},
    {"run", "checks"},
    {"demo"},
    {"cli"},
]
LEVEL = {part: level for level, layer in enumerate(LAYERS) for part in layer}


def modules() -> list[Path]:
    found = sorted(PACKAGE.rglob("*.py"))
    assert len(found) > 40
    return found


def part_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_parts(path: Path) -> set[str]:
    """Name the parts of rsseg that a module imports, at any depth of its code."""
    parts = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names = [node.module]
            if node.module == "rsseg_cli":
                names = [f"rsseg_cli.{alias.name}" for alias in node.names]
        else:
            assert not (isinstance(node, ast.ImportFrom) and node.level), f"relative: {path}"
        for name in names:
            if name.startswith("rsseg_cli."):
                parts.add(name.split(".")[1])
    return parts - {"__version__"}


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_left(path: Path) -> None:
    own = part_of(path)
    if own in ("__init__", "__main__"):
        return
    assert own in LEVEL, f"{own} has no place in the layers"
    for part in imported_parts(path) - {own}:
        assert LEVEL[part] < LEVEL[own], f"{path.relative_to(PACKAGE)} imports {part}"


def test_no_branch_on_a_name() -> None:
    methods = {path.stem for path in (PACKAGE / "methods").glob("[a-z]*.py")}
    assert {"frozen", "full", "lora"} <= methods
    for path in modules():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Compare):
                values = {
                    leaf.value
                    for leaf in ast.walk(node)
                    if isinstance(leaf, ast.Constant) and isinstance(leaf.value, str)
                }
                clash = values & (methods - {"full", "set"})
                assert not clash, f"{path.relative_to(PACKAGE)}:{node.lineno} asks for {clash}"


HELP = [
    [],
    ["fit"],
    ["predict"],
    ["evaluate"],
    ["presets"],
    ["presets", "list"],
    ["doctor"],
    ["demo"],
    ["adapt"],
    ["compare"],
    ["preview"],
    ["export"],
    ["data"],
    ["bench"],
]


@pytest.mark.parametrize("command", HELP, ids=lambda words: " ".join(words) or "rsseg")
def test_help_imports_nothing_heavy(command: list[str]) -> None:
    code = (
        "import sys, rsseg_cli.cli as cli\n"
        f"sys.argv = ['rsseg', *{command!r}, '--help']\n"
        "try:\n    cli.main()\nexcept SystemExit:\n    pass\n"
        "heavy = {'torch', 'timm', 'rasterio', 'numpy', 'transformers', 'scipy'}\n"
        "found = heavy & set(sys.modules)\n"
        "assert not found, found\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Usage" in done.stdout


def test_help_is_instant() -> None:
    def seconds() -> float:
        """Processor time, which does not depend on what else the machine does."""
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run(
            [sys.executable, "-m", "rsseg_cli", "--help"], capture_output=True, check=True
        )
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime

    assert min(seconds() for _ in range(5)) < 0.5
