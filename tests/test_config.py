"""A run's settings: read strictly, changed from the command line, written and read again."""

from __future__ import annotations

from pathlib import Path

import pytest

from rsseg_cli import presets
from rsseg_cli.config import RunConfig, family, parse, resolve
from rsseg_cli.contract import Backbone
from rsseg_cli.errors import RssegError
from rsseg_cli.find import backbone_names, find, names

TEXT = """\
title: A try
backbone:
  name: vit_tiny
method:
  name: lora
  rank: 4
head:
  name: linear
optimizer:
  lr: 1e-4
training:
  steps: 10
"""


def read(text: str) -> RunConfig:
    return parse(presets.read_text(text, Path("run.yaml")))


def written(folder: Path, text: str) -> Path:
    path = folder / "run.yaml"
    path.write_text(text)
    return path


def test_what_is_not_said_has_its_default() -> None:
    config = read(TEXT)
    assert config.optimizer.lr == 1e-4
    assert config.training.steps == 10
    assert config.training.seed == 42
    assert config.method.config.model_dump()["rank"] == 4
    assert config.method.config.model_dump()["roles"] == ("q", "v")


def test_writing_and_reading_changes_nothing() -> None:
    config = read(TEXT)
    assert read(config.text()) == config
    assert parse(presets.Document(Path("model"), config.to_json())) == config


@pytest.mark.parametrize("number", ["1e-4", "1E-4", "1.0e-4", "0.0001", ".0001"])
def test_numbers_may_be_written_in_every_way(number: str) -> None:
    config = resolve(method="lora", file=None, changes=[f"optimizer.lr={number}"])
    assert config.optimizer.lr == 1e-4


@pytest.mark.parametrize(
    ("old", "new", "what", "line", "fix"),
    [
        ("rank: 4", "rnak: 4", "run.yaml: method.rnak is not a known setting", 6, "method.rank"),
        ("lr: 1e-4", "lrr: 1", "optimizer.lrr is not a known setting", 10, "optimizer.lr"),
        ("training:", "trainig:", "trainig is not a known setting", 11, "training"),
        ("name: lora", "name: lroa", "lroa is not a known method", 5, "lora"),
        ("name: linear", "name: liner", "liner is not a known head", 8, "linear"),
        ("name: vit_tiny", "name: vitt_tiny", "vitt_tiny is not a known backbone", 3, "vit_tiny"),
        ("name: lora", "rank: 1\n", "method.name is missing", 4, "a section `method:`"),
        ("rank: 4", "rank: many", "method.rank: Input should be a valid integer", 6, ""),
        ("rank: 4", "rank: 0", "method.rank: Input should be greater than or equal to 1", 6, ""),
        ("lr: 1e-4", "lr: yes", "optimizer.lr: Input should be a valid number", 10, ""),
        ("steps: 10", "steps: 0", "training.steps: Input should be greater", 12, ""),
    ],
)
def test_mistakes_name_the_line_and_the_nearest_choice(
    old: str, new: str, what: str, line: int, fix: str
) -> None:
    text = TEXT.replace(old, new, 1).replace("  rank: 1\n\n  rank: 4\n", "  rank: 4\n")
    with pytest.raises(RssegError) as caught:
        read(text)
    assert what in caught.value.what
    assert caught.value.where == f"run.yaml, line {line}"
    assert caught.value.fix.startswith(fix)


@pytest.mark.parametrize("section", ["method", "backbone", "data", "training"])
@pytest.mark.parametrize("value", ["lora", "[1, 2]", ""])
def test_sections_that_hold_no_settings(tmp_path: Path, section: str, value: str) -> None:
    kept = [line for line in TEXT.split("\n") if not line.startswith(section)]
    text = "\n".join(kept) if section == "data" else TEXT.partition(f"{section}:")[0]
    path = written(tmp_path, f"{text}\n{section}: {value}\n")
    with pytest.raises(RssegError, match=f"{section} is not a section"):
        resolve(method=None, file=path, sources=["a"], weights=Path("w"), changes=["data.tile=8"])


def test_unknown_presets_come_with_the_nearest() -> None:
    with pytest.raises(RssegError, match="lroa is not a known method preset") as caught:
        resolve(method="lroa", file=None)
    assert caught.value.fix.startswith("lora")


@pytest.mark.parametrize(("method", "file"), [(None, None), ("lora", Path("run.yaml"))])
def test_either_a_preset_or_a_file(method: str | None, file: Path | None) -> None:
    with pytest.raises(RssegError, match="one of --method and --config"):
        resolve(method=method, file=file)


def test_changes_are_applied_in_order() -> None:
    config = resolve(
        method="lora",
        file=None,
        changes=[
            "method.rank=8",
            "method.roles=[q, k]",
            "method.rank=9",
            "optimizer.clip_grad_norm=null",
        ],
    )
    assert config.method.config.model_dump() == {"rank": 9, "alpha": 16.0, "roles": ("q", "k")}
    assert config.optimizer.clip_grad_norm is None


@pytest.mark.parametrize(
    ("change", "what", "where"),
    [
        ("method.rnak=8", "method.rnak is not a known setting", "--set method.rnak=8"),
        ("method.rank=a", "method.rank: Input should be", "--set method.rank=a"),
        ("metod.rank=8", "not of the form section.key=value", "--set"),
        ("method.rank", "not of the form", "--set"),
        ("rank=8", "not of the form", "--set"),
        ("method.rank=[8", "not valid YAML", "--set, line 1"),
        ("data.tile.side=8", "data.tile.side is not a known", "--set data.tile.side=8"),
        ("head.name=liner", "liner is not a known head", "--set head.name=liner"),
    ],
)
def test_mistakes_in_changes_are_placed(change: str, what: str, where: str) -> None:
    with pytest.raises(RssegError) as caught:
        resolve(method="lora", file=None, changes=[change])
    assert what in caught.value.what
    assert caught.value.where == where


def test_another_head_starts_from_its_own_defaults() -> None:
    option = resolve(method="lora", file=None, head="linear", changes=["head.width=9"])
    change = resolve(method="lora", file=None, changes=["head.width=9", "head.name=linear"])
    kind = type(option.head.config)
    assert option.head.config == kind.model_validate({"width": 9})
    assert change == option
    same = resolve(method="lora", file=None, changes=["head.name=mask2former"])
    assert same == resolve(method="lora", file=None)


def test_another_backbone_starts_from_its_own_defaults() -> None:
    plain = resolve(method="lora", file=None).to_json()["backbone"]
    other = resolve(method="lora", file=None, backbone="dinov2_base").to_json()["backbone"]
    assert (plain["name"], plain["patch"]) == ("dinov3_large", 16)
    assert (other["name"], other["patch"], other["out_indices"]) == ("dinov2_base", None, None)


def test_weights_become_an_absolute_path() -> None:
    config = resolve(method="lora", file=None, weights=Path("my.safetensors"))
    backbone = config.to_json()["backbone"]
    assert backbone["weights"] == str(Path.cwd() / "my.safetensors")
    assert backbone["pretrained"] is True


def test_a_random_start_forgets_the_weights_of_the_file(tmp_path: Path) -> None:
    path = written(tmp_path, TEXT.replace("name: vit_tiny", "name: vit_tiny\n  weights: some.pth"))
    backbone = resolve(method=None, file=path, pretrained=False).to_json()["backbone"]
    assert (backbone["weights"], backbone["pretrained"]) == (None, False)


def test_sources_replace_those_of_the_file(tmp_path: Path) -> None:
    path = written(tmp_path, TEXT + "data:\n  src: [here, there]\n")
    assert resolve(method=None, file=path).data.src == ("here", "there")
    assert resolve(method=None, file=path, sources=["elsewhere"]).data.src == ("elsewhere",)


def test_every_backbone_is_listed_and_found() -> None:
    """They are read from the text of the families' files, as in their classes."""
    listed = backbone_names()
    assert len(listed) == len(set(listed)) > 20
    said = {kind: find("backbones", kind, Backbone).sizes for kind in names("backbones")}
    assert set(listed) == {f"{kind}_{size}" for kind, sizes in said.items() for size in sizes}
    for name in listed:
        assert name.removeprefix(f"{family(name)}_") in said[family(name)]
        assert (
            resolve(method="lora", file=None, backbone=name).to_json()["backbone"]["name"] == name
        )
