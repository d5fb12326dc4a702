"""An export is complete: it predicts as the run does, and describes itself."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import rasterio
from runs import BANDS, CLASSES, SMALL, rsseg, write_city

from rsseg_cli.backbones.galileo import Galileo
from rsseg_cli.commands.export import UNKNOWN, backbone_licence
from rsseg_cli.find import backbone_names
from rsseg_cli.presets import read
from rsseg_cli.report.model_card import Licence
from rsseg_cli.training.checkpoint import load_model


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("export")
    city = write_city(root / "city")
    spec = city / "dataset.yaml"
    spec.write_text(spec.read_text() + "licence: CC BY 4.0\n")
    done = rsseg(
        "fit", "--method", "full", "--src", city, *SMALL, "--steps", "2", "--no-pretrained",
        "--output", root / "small_run",
    )  # fmt: skip
    assert done.code == 0, done.err
    return root / "small_run"


def test_the_folder_predicts_as_the_run_does(run: Path, tmp_path: Path) -> None:
    found = rsseg("export", run, "-o", tmp_path / "out", "--json").document
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "model.safetensors", "config.yaml", "README.md", "item.json",
    }  # fmt: skip
    scene = run.parent / "city" / "images" / "a.tif"
    maps = []
    for name, model in (("one", run), ("two", found["folder"])):
        made = tmp_path / f"{name}.tif"
        done = rsseg("predict", scene, "-o", made, "--model", model, "--device", "cpu")
        assert done.code == 0, done.err
        with rasterio.open(made) as file:
            maps.append(file.read())
    assert (maps[0] == maps[1]).all()
    assert read(tmp_path / "out" / "config.yaml").values == read(run / "config.yaml").values


def test_card_says_data_scores_limits_and_licences(run: Path, tmp_path: Path) -> None:
    rsseg("export", run, "-o", tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    score = json.loads((run / "report" / "report.json").read_text())
    assert f"mIoU {100 * score['miou']:.1f}" in card
    assert "| city | 2 |" in card
    assert "| city | CC BY 4.0 |" in card
    assert "initialised at random" in card
    assert "It reads blue green nir, in this order, as uint16" in card
    weak = [row["name"] for row in score["classes"] if row["pixels"] and row["iou"] < 0.4]
    assert weak
    assert f"IoU below 40 %: {', '.join(weak)}." in card


def test_item_is_a_machine_learning_model(run: Path, tmp_path: Path) -> None:
    rsseg("export", run, "-o", tmp_path / "out")
    item = json.loads((tmp_path / "out" / "item.json").read_text())
    assert (item["type"], item["stac_version"], item["geometry"]) == ("Feature", "1.1.0", None)
    assert "bbox" not in item
    assert any("/mlm/v1" in url for url in item["stac_extensions"])
    properties = item["properties"]
    required = {"name", "architecture", "framework", "tasks", "input", "output"}
    assert {f"mlm:{name}" for name in required} <= properties.keys()
    assert re.fullmatch(r"[a-zA-Z][a-zA-Z0-9_.-]+[a-zA-Z0-9]", properties["mlm:name"])
    assert properties["mlm:pretrained"] is False
    assert properties["mlm:pretrained_source"] is None
    (seen,), (said,) = properties["mlm:input"], properties["mlm:output"]
    assert seen["bands"] == list(BANDS)
    assert seen["input"]["shape"] == [-1, 3, 32, 32]
    assert len(seen["value_scaling"]) == 3
    assert all(one["stddev"] > 0 for one in seen["value_scaling"])
    assert {one["value"]: one["description"] for one in said["classification:classes"]} == CLASSES
    asset = item["assets"]["model"]
    assert "mlm:model" in asset["roles"]
    assert properties["bands"][0] == {"name": "blue", "eo:center_wavelength": 0.49}
    assert asset["file:size"] == (tmp_path / "out" / "model.safetensors").stat().st_size


SEMVER = r"\d+\.\d+\.\d+(-[0-9A-Za-z.-]+)?(\+[0-9A-Za-z.-]+)?"


def breaches(item: dict[str, Any]) -> list[str]:
    """Return violations of the schema of the extension (mlm v1.5.0), with its rules written out."""
    properties, assets = item["properties"], item["assets"].values()
    own = {name for name in properties if name.startswith("mlm:")}
    known = {
        "name", "architecture", "tasks", "framework", "framework_version", "memory_size",
        "total_parameters", "pretrained", "pretrained_source", "batch_size_suggestion",
        "accelerator", "accelerator_constrained", "accelerator_summary", "accelerator_count",
        "input", "output", "hyperparameters",
    }  # fmt: skip
    rules = {
        "declares the schema": any("/mlm/v1.5.0/" in url for url in item["stac_extensions"]),
        "knows its fields": own <= {f"mlm:{name}" for name in known},
        "has what is required": own
        >= {f"mlm:{name}" for name in ("name", "architecture", "tasks", "input", "output")},
        "is named": re.fullmatch(r"[a-zA-Z][a-zA-Z0-9_.\-\s]+[a-zA-Z0-9]", properties["mlm:name"]),
        "names a version": re.fullmatch(SEMVER, properties["mlm:framework_version"]),
        "says that it is from scratch": properties["mlm:pretrained"]
        or properties["mlm:pretrained_source"] is None,
        "has hyperparameters": all(
            re.fullmatch(r"[0-9a-zA-Z_.-]+", key) for key in properties["mlm:hyperparameters"]
        ),
        "describes its bands": [one["name"] for one in properties["bands"]]
        == properties["mlm:input"][0]["bands"],
        "has a model": any("mlm:model" in one["roles"] for one in assets),
        "has an artifact type where a model is, only": all(
            ("mlm:model" in one["roles"]) == ("mlm:artifact_type" in one) for one in assets
        ),
    }
    for side, structure in (("input", "input"), ("output", "result")):
        for one in properties[f"mlm:{side}"]:
            order, shape = one[structure]["dim_order"], one[structure]["shape"]
            rules[f"{side}: bands are a dimension"] = ("bands" in order) == bool(one.get("bands"))
            rules[f"{side}: dimensions"] = len(order) == len(set(order)) == len(shape)
            rules[f"{side}: names"] = all(re.fullmatch(r"[a-z-_]+", name) for name in order)
            rules[f"{side}: sizes"] = all(isinstance(n, int) and n >= -1 for n in shape)
    for one in properties["mlm:output"][0]["classification:classes"]:
        rules[f"class {one['value']}"] = (
            isinstance(one["value"], int)
            and bool(one["description"])
            and re.fullmatch(r"[0-9A-Za-z_.-]+", one["name"])
            and re.fullmatch(r"[0-9A-F]{6}", one["color_hint"])
        )
    return [rule for rule, kept in rules.items() if not kept]


def test_item_keeps_to_the_schema_of_the_extension(run: Path, tmp_path: Path) -> None:
    for name in ("out", "7"):  # a folder's name becomes the model's
        shutil.copytree(run, tmp_path / name)
        rsseg("export", tmp_path / name, "-o", tmp_path / f"{name}-model")
        item = json.loads((tmp_path / f"{name}-model" / "item.json").read_text())
        assert breaches(item) == []
    item["properties"]["mlm:rank"] = 8
    del item["properties"]["bands"][0]
    assert breaches(item) == ["knows its fields", "describes its bands"]


def test_licences_of_backbones_are_those_of_their_weights() -> None:
    large = backbone_licence({"name": "mae_large", "pretrained": True})
    assert large.terms == "cc-by-nc-4.0"
    assert large.source.startswith("https://huggingface.co/")
    assert "dinov3" in backbone_licence({"name": "dinov3_base"}).terms
    for name, terms, where in [
        ("galileo_nano", "MIT", "nasaharvest/galileo"),
        ("dofa_base", "CC-BY-4.0", "torchgeo/dofa"),  # not that of the name behind timm's class
        ("softcon_sar_base", "CC-BY-4.0", "wangyi111/softcon"),
        ("copernicus_fm_base", "CC-BY-4.0", "torchgeo/copernicus-fm"),
        ("uniperceiver_large", "Apache-2.0", "czczup/ViT-Adapter"),
        ("vit_tiny", "none", "-"),
    ]:
        found = backbone_licence({"name": name})
        assert found.terms.startswith(terms), name
        assert where in found.source


def test_the_model_file_says_how_its_backbone_was_made(run: Path) -> None:
    _, about = load_model(run / "model.safetensors")
    assert about["backbone"]["name"] == "vit_tiny"
    assert about["backbone"]["resize"] == "timm"


def test_a_licence_that_nobody_says_is_not_made_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Galileo, "licence", classmethod(lambda cls, size: ("", "a page")))
    assert backbone_licence({"name": "galileo_nano"}) == Licence("galileo_nano", UNKNOWN, "a page")


@pytest.mark.parametrize("name", backbone_names())
def test_every_backbone_says_its_terms(name: str) -> None:
    found = backbone_licence({"name": name})
    assert found.terms != UNKNOWN
    assert found.source


def test_nothing_is_replaced_unasked(run: Path, tmp_path: Path) -> None:
    target = tmp_path / "out"
    target.mkdir()
    (target / "mine.txt").write_text("x")
    refused = rsseg("export", run, "-o", target)
    assert refused.code == 1
    assert "already exists" in refused.err
    assert rsseg("export", run, "-o", target, "--overwrite").out.strip() == str(target)
    assert (target / "mine.txt").read_text() == "x"
    missing = rsseg("export", tmp_path / "none")
    assert missing.code == 1
    assert "does not exist" in missing.err


def test_a_folder_that_cannot_be_written(run: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    call = rsseg("export", run, "-o", tmp_path / "file" / "below")
    assert call.code == 1
    assert "the model cannot be written" in call.err
