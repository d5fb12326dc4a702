"""Settings of an interrupted run: what may change, and what must stay."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path

import pytest
from pydantic import BaseModel

from rsseg_cli.commands.fit.options import FitOptions
from rsseg_cli.commands.fit.run_folder_checks import (
    MAY_CHANGE,
    SOURCES,
    changed_settings,
    require_same_data,
)
from rsseg_cli.config import RunConfig, resolve
from rsseg_cli.errors import RssegError

COMMON = ("data", "augment", "optimizer", "training", "adapt")
"""Sections with the same settings for every method, head and backbone."""

MATTERS = {
    "data": "class_map tile sampling val_fraction class_weights",
    "augment": "scale flip rot90 gain offset band_gain band_offset noise blur",
    "optimizer": "lr backbone_lr weight_decay betas clip_grad_norm schedule power warmup",
    "training": "steps batch precision validate_every seed",
    "adapt": "warmup_fraction decay threshold weight target_weight jitter jitter_chance blur "
    "keep_fraction source_free rare_class_temperature holdout patience max_class_shift "
    "report_labels bands nodata gsd_m",
}
"""Settings that change the model, or which of its states is kept."""


@pytest.fixture(scope="module")
def config() -> RunConfig:
    return resolve(method="lora", file=None, sources=["city:train"])


def test_every_setting_is_decided_upon(config: RunConfig) -> None:
    """A new setting belongs to `MATTERS` here, or to `MAY_CHANGE` or `SOURCES`."""
    settings = {
        f"{section}.{name}"
        for section in COMMON
        for name in type(getattr(config, section)).model_fields
    }
    matters = {f"{section}.{name}" for section in COMMON for name in MATTERS[section].split()}
    free = {name for name in MAY_CHANGE if not name.startswith("backbone.")}
    assert not matters & (free | SOURCES)
    assert settings == matters | free | SOURCES


def test_options_beside_the_settings_do_not_matter() -> None:
    """A new option that changes the model becomes a setting: only settings are compared."""
    of_settings = "src method backbone head weights no_pretrained config settings experiment"
    free = "data_root output device resume overwrite max_time dry_run quiet as_json"
    others = {field.name for field in fields(FitOptions) if not field.metadata["setting"]}
    assert others == {*of_settings.split(), *free.split()}


def test_every_section_is_compared(config: RunConfig) -> None:
    assert {*COMMON, "title", "backbone", "method", "head"} == {f.name for f in fields(config)}


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("data.tile", 64),
        ("training.seed", 7),
        ("training.validate_every", 3),
        ("adapt.source_free", True),
        ("data.src", ("city:val",)),
        ("data.src", ("city:train", "town:train")),
        ("adapt.tgt", ("suburb",)),
    ],
)
def test_what_changes_the_model_is_refused(config: RunConfig, setting: str, value: object) -> None:
    assert [
        text.split()[0] for text in changed_settings(config, changed(config, setting, value))
    ] == [setting]


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("training.num_workers", 1),
        ("training.log_every", 3),
        ("adapt.model", "elsewhere"),
        ("data.src", ("/moved/city:train",)),
    ],
)
def test_what_does_not_matter_may_change(config: RunConfig, setting: str, value: object) -> None:
    assert not changed_settings(config, changed(config, setting, value))


@pytest.mark.parametrize("key", ["classes", "bands", "fingerprint", "train"])
def test_other_data_or_weights_are_refused(key: str) -> None:
    about = {
        "classes": ["road"],
        "bands": ["red"],
        "fingerprint": "a",
        "sources": [{"name": "city", "root": "/here", "train": 2}],
    }
    moved = about | {"sources": [{"name": "city", "root": "/there", "train": 2}]}
    require_same_data({"about": about}, moved, Path("run"))
    if key == "train":
        other = about | {"sources": [{"name": "city", "root": "/here", "train": 3}]}
    else:
        other = about | {key: "other"}
    with pytest.raises(RssegError, match="the data have changed"):
        require_same_data({"about": about}, other, Path("run"))


def changed(config: RunConfig, setting: str, value: object) -> RunConfig:
    section, _, key = setting.partition(".")
    model: BaseModel = getattr(config, section)
    return replace(config, **{section: model.model_copy(update={key: value})})
