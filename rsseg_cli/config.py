"""A run's settings: composed of its parts' own, read from YAML, changed from the command line."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml
from pydantic import Field, ValidationError

from rsseg_cli import presets
from rsseg_cli.contract import Backbone, Head, Method
from rsseg_cli.data.augment import Augment
from rsseg_cli.errors import RssegError, unknown
from rsseg_cli.find import backbone_names, find, names
from rsseg_cli.plain import Strict
from rsseg_cli.presets import Document
from rsseg_cli.training.loop import Training
from rsseg_cli.training.optimizer import Optimization
from rsseg_cli.training.self_training import SelfTraining

C = TypeVar("C", bound=Strict)


class Data(Strict):
    """Settings of the tiles."""

    src: tuple[str, ...] = ()
    """What `--src` named."""
    map: str | None = None
    """What `--class-map` named: a class map that is applied to all of them."""
    tile: int = Field(512, ge=8)
    """Side of a training tile in pixels."""
    sampling: Literal["uniform", "balanced"] = "uniform"
    """Where tiles lie: anywhere, or around a pixel of a class drawn with equal chance."""
    validation: float = Field(0.2, ge=0, lt=1)
    """Share of the ground held out for validation when the dataset has no split."""
    class_weights: Literal["none", "balanced"] = "none"
    """`balanced` weighs classes by the inverse square root of their share, capped at 10."""


class Adapt(SelfTraining.Config):
    """Settings of `rsseg adapt`; other commands leave them alone."""

    tgt: tuple[str, ...] = ()
    """What `--tgt` named."""
    model: str | None = None
    """Model file that the run starts from; null: from the backbone as published."""
    source_free: bool = False
    """Learn from the target alone."""
    rare: float | None = Field(None, gt=0)
    """Temperature of rare class sampling on the source (DAFormer .01); null: as `data.sampling`."""
    held_back: float = Field(0.1, ge=0, lt=1)
    """Share of the target's tiles by which the model is chosen."""
    patience: int | None = Field(None, ge=1)
    """Validations without a better model after which the run ends; null: never."""
    collapse: float = Field(0.3, gt=0, le=1)
    """The run ends when this part of the target has changed class, compared with the start, and
    the shares of the classes are as far from the source's."""
    report_labels: bool = False
    """Score validations on the target's labels too, for the log and the report only."""
    bands: tuple[int, ...] | None = None
    """File bands of target scenes, from 1, in the model's order; null: found by their names."""
    nodata: float | None = None
    """Value of missing pixels in target scenes, in place of the file's own."""
    gsd_m: float | None = Field(None, gt=0)
    """Size of a pixel in metres that target scenes are resampled to; null: read as they are."""


@dataclass(frozen=True)
class Part:
    """A method or a head: which one, and its settings."""

    name: str
    config: Strict

    def document(self) -> dict[str, Any]:
        """Give the section of a YAML file that says the same."""
        return {"name": self.name} | self.config.model_dump(mode="json")


@dataclass(frozen=True)
class RunConfig:
    """The resolved whole; `document` and `parse` are inverse to each other."""

    title: str
    backbone: Backbone.Config
    method: Part
    head: Part
    data: Data
    augment: Augment.Config
    optimizer: Optimization
    training: Training
    adapt: Adapt = field(default_factory=Adapt)

    def document(self) -> dict[str, Any]:
        """Give the YAML document that says the same."""
        return {
            "title": self.title,
            "backbone": self.backbone.model_dump(mode="json"),
            "method": self.method.document(),
            "head": self.head.document(),
            "data": self.data.model_dump(mode="json"),
            "augment": self.augment.model_dump(mode="json"),
            "optimizer": self.optimizer.model_dump(mode="json"),
            "training": self.training.model_dump(mode="json"),
            "adapt": self.adapt.model_dump(mode="json"),
        }

    def text(self) -> str:
        """Write the document as YAML."""
        return yaml.safe_dump(self.document(), sort_keys=False)


SECTIONS = ("backbone", "method", "head", "data", "augment", "optimizer", "training", "adapt")


def family(name: str) -> str:
    """Give the file of a backbone: `dinov3_sat_large` and `dinov3_base` are in `dinov3`."""
    return next(
        (file for file in names("backbones") if name.startswith(f"{file}_")), name.partition("_")[0]
    )


def parse(document: Document) -> RunConfig:
    """Check a document and make the settings.

    Raises:
        RssegError: A key or name is unknown or missing, or a value is out of range.
    """
    _check_sections(document)
    named = {key: _name(document, key) for key in ("backbone", "method", "head")}
    kind = family(named["backbone"])
    if kind not in names("backbones"):
        where = document.where(("backbone", "name"))
        raise unknown("backbone", named["backbone"], backbone_names(), where=where)
    backbone = find("backbones", kind, Backbone)
    method = find("methods", named["method"], Method, where=document.where(("method", "name")))
    head = find("heads", named["head"], Head, where=document.where(("head", "name")))
    return RunConfig(
        title=str(document.values.get("title", "")),
        backbone=_section(document, "backbone", backbone.Config),
        method=Part(named["method"], _section(document, "method", method.Config, drop="name")),
        head=Part(named["head"], _section(document, "head", head.Config, drop="name")),
        data=_section(document, "data", Data),
        augment=_section(document, "augment", Augment.Config),
        optimizer=_section(document, "optimizer", Optimization),
        training=_section(document, "training", Training),
        adapt=_section(document, "adapt", Adapt),
    )


def _check_sections(document: Document) -> None:
    """Refuse sections that are unknown or hold no settings."""
    for key, values in document.values.items():
        if key not in ("title", *SECTIONS):
            raise unknown("setting", str(key), SECTIONS, where=document.where((key,)))
        if key != "title" and not isinstance(values, dict):
            raise RssegError(
                f"{document.path.name}: {key} is no section",
                where=document.where((key,)),
                fix=f"a line `{key}:` and below it, indented, lines `setting: value`",
            )


def _name(document: Document, section: str) -> str:
    values = document.values.get(section, {})
    if "name" not in values:
        raise RssegError(
            f"{document.path.name}: {section}.name is missing",
            where=document.where((section,)),
            fix=f"a section `{section}:` with a line `name: ...`",
        )
    return str(values["name"])


def _section(document: Document, name: str, model: type[C], *, drop: str = "") -> C:
    """Check one section; its errors name the whole key."""
    values = document.values.get(name, {})
    try:
        return model.model_validate({key: value for key, value in values.items() if key != drop})
    except ValidationError as error:
        raise presets.explain(error, model, document, section=(name,)) from error


def resolve(
    *,
    method: str | None,
    file: Path | None,
    sources: Sequence[str] = (),
    backbone: str | None = None,
    head: str | None = None,
    weights: Path | None = None,
    pretrained: bool = True,
    changes: Sequence[str] = (),
) -> RunConfig:
    """Take a preset or a file and apply what the command line changes.

    Args:
        method: Name of a method preset.
        file: A `config.yaml`, instead of a preset.
        sources: Datasets; they replace the file's.
        backbone: Another backbone; its section then starts from that family's defaults.
        head: Another head; likewise.
        weights: Weights file of the backbone.
        pretrained: False starts the backbone at random.
        changes: `section.key=value`, the value in YAML.
    """
    if (method is None) == (file is None):
        raise RssegError(
            "one of --method and --config is needed",
            fix="--method " + " | ".join(presets.names("methods")),
        )
    path = presets.find("methods", method) if method is not None else file
    assert path is not None
    document = presets.read(path)
    _check_sections(document)
    values = document.values
    if backbone is not None:
        values["backbone"] = {"name": backbone}
    if head is not None:
        values["head"] = {"name": head}
    section = values.setdefault("backbone", {})
    if weights is not None and not pretrained:
        raise RssegError(
            "weights are given and refused at once",
            where="--weights and --no-pretrained",
            fix="one of the two",
        )
    if weights is not None:
        section |= {"weights": str(weights.resolve()), "pretrained": True}
    if not pretrained:
        section |= {"pretrained": False, "weights": None}
    return _changed(document, sources, changes)


def revise(
    config: RunConfig, path: Path, *, sources: Sequence[str] = (), changes: Sequence[str] = ()
) -> RunConfig:
    """Change the settings that a model was fitted with.

    Args:
        config: The settings.
        path: The model, for errors.
        sources: Datasets; they replace those of the fit.
        changes: `section.key=value`, the value in YAML.
    """
    return _changed(Document(path, config.document()), sources, changes)


def _changed(document: Document, sources: Sequence[str], changes: Sequence[str]) -> RunConfig:
    if sources:
        document.values.setdefault("data", {})["src"] = list(sources)
    for change in sorted(changes, key=lambda text: ".name=" not in text):
        _change(document, change)
    return parse(document)


def _change(document: Document, change: str) -> None:
    """Apply one `section.key=value`; another method or head starts from its own defaults."""
    key, sign, text = change.partition("=")
    section, dot, name = key.strip().partition(".")
    if not sign or not dot or section not in SECTIONS:
        raise RssegError(
            f"--set {change} is not of the form section.key=value",
            where="--set",
            fix="e.g. --set method.rank=8; sections: " + ", ".join(SECTIONS),
        )
    value = presets.read_text(f"value: {text}", Path("--set")).values["value"]
    values = document.values.setdefault(section, {})
    if name == "name" and section in ("method", "head") and values.get("name") != value:
        values.clear()
    values[name] = value
    document.elsewhere[section, name] = f"--set {change}"
