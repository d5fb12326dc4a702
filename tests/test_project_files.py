"""Files for people who join the project: they name the commands that are really run."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parent.parent


def read_yaml(name: str) -> Any:
    return yaml.safe_load((ROOT / name).read_text(encoding="utf-8"))


def test_hooks_are_the_checks_of_the_test_line() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    (line,) = re.findall(r"<!-- test -->\n```bash\n(.+)\n```", readme)
    (repo,) = read_yaml(".pre-commit-config.yaml")["repos"]
    checks = [command for command in line.split(" && ") if not command.startswith("pytest")]
    assert [hook["entry"] for hook in repo["hooks"]] == checks


def test_ci_calls_the_script() -> None:
    steps = read_yaml(".github/workflows/ci.yml")["jobs"]["test"]["steps"]
    assert [step["run"] for step in steps if "run" in step] == [".ci/run"]
    assert (ROOT / ".ci" / "run").stat().st_mode & 0o111


def test_the_licence_is_the_one_that_is_declared() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["license"] == "Apache-2.0"
    licence = (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert "Apache License" in licence
    assert "END OF TERMS AND CONDITIONS" in licence


def test_files_that_the_guide_names_exist() -> None:
    guide = (ROOT / ".github" / "CONTRIBUTING.md").read_text(encoding="utf-8")
    names = re.findall(r"(?<![\w/])(?:tests|presets|rsseg_cli|\.ci)/[\w./]*", guide)
    assert len(names) >= 5
    for name in names:
        assert (ROOT / name.rstrip("./")).exists(), name
