"""Every preset of a method is a complete run: nothing in it is left to hidden defaults."""

from __future__ import annotations

import re
import shlex
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml

from rsseg_cli import presets
from rsseg_cli.config import SECTIONS, parse, resolve
from rsseg_cli.find import names

PRESETS = presets.names("methods")
MAY_BE_MISSING = {"data.src", "data.class_map", "backbone.seed"}


def keys(document: dict[str, Any]) -> set[str]:
    """All settings of a document, but not those that only another command reads."""
    sections = [section for section in SECTIONS if section != "adapt"]
    return {f"{section}.{key}" for section in sections for key in document[section]}


def test_no_preset_is_overlooked() -> None:
    folder = presets.folder() / "methods"
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert len(PRESETS) == len(files)
    assert {path.suffix for path in files} == {".yaml"}


def test_every_method_has_a_preset_of_its_name() -> None:
    assert set(names("methods")) <= set(PRESETS)


@pytest.mark.parametrize("name", PRESETS)
def test_presets_say_all_that_can_be_set(name: str) -> None:
    said = keys(presets.read(presets.find("methods", name)).values)
    settings = keys(resolve(method=name, file=None).to_json())
    assert settings - said <= MAY_BE_MISSING


@pytest.mark.parametrize("name", PRESETS)
def test_presets_survive_writing_and_reading(name: str) -> None:
    config = resolve(method=name, file=None)
    again = parse(presets.read_text(config.text(), Path("config.yaml")))
    assert again == config
    # Other readers of YAML, which know only 1.1, see the same numbers.
    assert yaml.safe_load(config.text()) == config.to_json()


@pytest.mark.parametrize("name", PRESETS)
def test_presets_read_the_same_by_any_yaml(name: str) -> None:
    path = presets.find("methods", name)
    assert yaml.safe_load(path.read_text()) == presets.read(path).values


@pytest.mark.parametrize("name", PRESETS)
def test_presets_name_no_place_on_a_machine(name: str) -> None:
    text = presets.find("methods", name).read_text()
    assert not re.search(r"[\s\"'](/|~|[A-Za-z]:\\)\w", text)


@pytest.mark.parametrize("name", PRESETS)
def test_variants_in_the_comments_can_be_set(name: str) -> None:
    for line in presets.find("methods", name).read_text().splitlines():
        words = shlex.split(line.lstrip("# "), comments=True) if "--set" in line else []
        said = [word for before, word in pairwise(words) if before == "--set"]
        resolve(method=name, file=None, changes=[change.rstrip(",") for change in said])
