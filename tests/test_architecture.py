"""Promises about the code itself: imports point one way, help is instant, names are complete."""

from __future__ import annotations

import ast
import importlib.metadata
import re
import resource
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "rsseg_cli"

# From left to right; parts in one group never import each other, except where they are one folder.
LAYERS: list[set[str]] = [
    {"choices", "classes", "memory", "number_format", "settings"},
    {"errors"},
    {"atomic_write"},
    {"distributed", "threads"},
    {"presets"},
    {"contract", "raster", "metrics"},
    {"layers"},
    {"find", "data", "backbones", "heads", "report"},
    {"methods"},
    {"segmenter"},
    {"training", "predict", "evaluate"},
    {"config"},
    {"commands", "doctor"},
    {"demo"},
    {"cli"},
]
LEVEL = {part: level for level, layer in enumerate(LAYERS) for part in layer}

# The same order among the files and folders of commands/.
COMMANDS: list[set[str]] = [
    {"options"},
    {"model", "compare", "dataset"},
    {"export", "fit"},
    {"predict"},
    {"evaluate", "preview"},
    {"adapt", "bench"},
]
COMMAND_LEVEL = {part: level for level, layer in enumerate(COMMANDS) for part in layer}


def modules() -> list[Path]:
    found = sorted(PACKAGE.rglob("*.py"))
    assert len(found) > 40
    return found


def part_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_names(path: Path) -> set[str]:
    """Return the full names of rsseg's modules that a module imports, at any depth of its code."""
    imported = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            assert not (isinstance(node, ast.ImportFrom) and node.level), f"relative: {path}"
        imported |= {name for name in names if name.startswith("rsseg_cli.")}
    return imported


def imported_parts(path: Path) -> set[str]:
    """Return the top-level parts of rsseg that a module imports."""
    return {name.split(".")[1] for name in imported_names(path)} - {"__version__"}


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_left(path: Path) -> None:
    own = part_of(path)
    if own in ("__init__", "__main__"):
        return
    assert own in LEVEL, f"{own} has no place in the layers"
    for part in imported_parts(path) - {own}:
        assert LEVEL[part] < LEVEL[own], f"{path.relative_to(PACKAGE)} imports {part}"


@pytest.mark.parametrize(
    "path",
    sorted((PACKAGE / "commands").rglob("*.py")),
    ids=lambda path: f"{path.parent.name}/{path.name}",
)
def test_imports_among_commands_point_left(path: Path) -> None:
    own = path.relative_to(PACKAGE / "commands").parts[0].removesuffix(".py")
    if own == "__init__":
        return
    assert own in COMMAND_LEVEL, f"{own} has no place among the commands"
    prefix = "rsseg_cli.commands."
    imported = {
        n.removeprefix(prefix).split(".")[0] for n in imported_names(path) if n.startswith(prefix)
    }
    for part in imported - {own}:
        assert COMMAND_LEVEL[part] < COMMAND_LEVEL[own], (
            f"{path.relative_to(PACKAGE)} imports {part}"
        )


def files_import_each_other(folder: Path) -> dict[str, set[str]]:
    prefix = f"rsseg_cli.commands.{folder.name}."
    return {
        path.stem: {
            name.removeprefix(prefix).split(".")[0]
            for name in imported_names(path)
            if name.startswith(prefix)
        }
        for path in folder.glob("*.py")
    }


@pytest.mark.parametrize("folder", ["fit", "adapt", "predict", "evaluate", "bench"])
def test_no_circle_inside_a_command(folder: str) -> None:
    arrows = files_import_each_other(PACKAGE / "commands" / folder)
    while leaves := {name for name, imports in arrows.items() if not imports & set(arrows)}:
        arrows = {name: imports for name, imports in arrows.items() if name not in leaves}
    assert not arrows, f"these files import each other in a circle: {sorted(arrows)}"


def opens_text_of_the_locale(call: ast.Call) -> bool:
    """Return whether a call reads or writes text without an encoding, hence that of the locale."""
    if any(keyword.arg == "encoding" for keyword in call.keywords):
        return False
    name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    if name in ("read_text", "write_text"):  # a path's take encodings after 0 and 1 arguments
        return len(call.args) <= (name == "write_text")
    if name not in ("open", "fdopen", "TextIOWrapper", "NamedTemporaryFile"):
        return False
    is_method = name == "open" and isinstance(call.func, ast.Attribute)
    modes = [keyword.value for keyword in call.keywords if keyword.arg == "mode"]
    modes += call.args[:1] if is_method else call.args[1:2]
    if is_method and (call.args or call.keywords):  # else `Scene.open(path)` and the like
        return any(re.fullmatch("'[rwaxt+]+'", ast.unparse(mode)) for mode in modes)
    return not any(re.fullmatch("'[rwax+]*b[rwax+]*'", ast.unparse(mode)) for mode in modes)


@pytest.mark.parametrize(
    ("code", "is_flagged"),
    [
        ("path.read_text()", True),
        ("path.read_text(encoding='utf-8')", False),
        ("path.write_text(text)", True),
        ("path.write_text(text, encoding='utf-8')", False),
        ("path.open()", True),
        ("path.open('a')", True),
        ("path.open('rb')", False),
        ("open(path)", True),
        ("open(path, mode='w')", True),
        ("open(path, 'wb')", False),
        ("Scene.open(path)", False),
        ("rasterio.open(path, 'w', driver='GTiff')", False),
        ("scene.reopen()", False),
    ],
)
def test_text_without_encoding_is_found(code: str, is_flagged: bool) -> None:
    (call,) = (node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Call))
    assert opens_text_of_the_locale(call) == is_flagged


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_text_has_an_encoding(path: Path) -> None:
    calls = [n for n in ast.walk(ast.parse(path.read_text("utf-8"))) if isinstance(n, ast.Call)]
    lines = [call.lineno for call in calls if opens_text_of_the_locale(call)]
    assert not lines, f"{path.relative_to(PACKAGE)} opens text without encoding= in lines {lines}"


def test_imported_packages_are_declared() -> None:
    project = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text())["project"]
    declared = {
        re.split(r"[<>=!~\[; ]", line)[0].lower().replace("_", "-")
        for line in project["dependencies"]
    }
    origins = importlib.metadata.packages_distributions()
    for path in modules():
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            for top in {name.partition(".")[0] for name in names}:
                if top in sys.stdlib_module_names or top == "rsseg_cli":
                    continue
                owners = {origin.lower().replace("_", "-") for origin in origins[top]}
                assert owners & declared, f"{path.relative_to(PACKAGE)} imports undeclared {top}"


def test_the_product_imports_no_test_dependency() -> None:
    project = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text())["project"]
    tests = {
        requirement.partition(">")[0].replace("-", "_")
        for requirement in project["optional-dependencies"]["test"]
    }
    assert "transformers" in tests
    for path in modules():
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.module:
                names = [node.module]
            clash = {name.partition(".")[0] for name in names} & tests
            assert not clash, f"{path.relative_to(PACKAGE)} imports {clash}"


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
