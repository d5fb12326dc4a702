"""Settings of a run: read from a preset or a file, changed by the command line."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

from pydantic import ValidationError

from rsseg_cli import presets
from rsseg_cli.contract import Backbone, Head, Method
from rsseg_cli.data.sources import Sources
from rsseg_cli.data.tiles.augment import Augment
from rsseg_cli.errors import RssegError, unknown
from rsseg_cli.find import backbone_names, find, names
from rsseg_cli.presets import Document
from rsseg_cli.settings import Strict
from rsseg_cli.training.adaptation import Adaptation
from rsseg_cli.training.loop import Training
from rsseg_cli.training.optimizer import Optimization

C = TypeVar("C", bound=Strict)


@dataclass(frozen=True)
class Component(Generic[C]):
    """Name and settings of a method or a head."""

    name: str
    config: C

    def to_json(self) -> dict[str, Any]:
        """Return the section of the YAML file."""
        return {"name": self.name} | self.config.model_dump(mode="json")


@dataclass(frozen=True)
class RunConfig:
    """All settings of a run; `parse` is the inverse of `document`."""

    title: str
    backbone: Backbone.Config
    method: Component[Method.Config]
    head: Component[Head.Config]
    data: Sources.Config
    augment: Augment.Config
    optimizer: Optimization
    training: Training
    adapt: Adaptation = field(default_factory=Adaptation)

    def to_json(self) -> dict[str, Any]:
        """Return the YAML document."""
        return {
            "title": self.title,
            "backbone": self.backbone.model_dump(mode="json"),
            "method": self.method.to_json(),
            "head": self.head.to_json(),
            "data": self.data.model_dump(mode="json"),
            "augment": self.augment.model_dump(mode="json"),
            "optimizer": self.optimizer.model_dump(mode="json"),
            "training": self.training.model_dump(mode="json"),
            "adapt": self.adapt.model_dump(mode="json"),
        }

    def text(self) -> str:
        """Return the document as YAML text."""
        return presets.to_yaml(self.to_json())


SECTIONS = ("backbone", "method", "head", "data", "augment", "optimizer", "training", "adapt")


def family(name: str) -> str:
    """Return the file of a backbone: `dinov3` for `dinov3_sat_large` and `dinov3_base`."""
    return next(
        (file for file in names("backbones") if name.startswith(f"{file}_")), name.partition("_")[0]
    )


def parse(document: Document) -> RunConfig:
    """Check a document and build the settings.

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
        method=Component(named["method"], _section(document, "method", method.Config, drop="name")),
        head=Component(named["head"], _section(document, "head", head.Config, drop="name")),
        data=_section(document, "data", Sources.Config),
        augment=_section(document, "augment", Augment.Config),
        optimizer=_section(document, "optimizer", Optimization),
        training=_section(document, "training", Training),
        adapt=_section(document, "adapt", Adaptation),
    )


def _check_sections(document: Document) -> None:
    """Raise an error for sections that are unknown or are not mappings."""
    for key, values in document.values.items():
        if key not in ("title", *SECTIONS):
            raise unknown("setting", str(key), SECTIONS, where=document.where((key,)))
        if key != "title" and not isinstance(values, dict):
            raise RssegError(
                f"{document.path.name}: {key} is not a section",
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
    """Check one section; errors name the full key."""
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
    """Resolve the settings of a preset or a file with the changes of the command line.

    Args:
        method: Name of a method preset.
        file: A `config.yaml`, instead of a preset.
        sources: Datasets; they replace the file's.
        backbone: Another backbone; its section starts from that family's defaults.
        head: Another head; likewise.
        weights: Weights file of the backbone.
        pretrained: False initialises the backbone at random.
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
            "--weights and --no-pretrained contradict each other",
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
    """Return the settings of a fitted model with some changes.

    Args:
        config: The settings of the model.
        path: The model file, for errors.
        sources: Datasets; they replace those of the fit.
        changes: `section.key=value`, the value in YAML.
    """
    return _changed(Document(path, config.to_json()), sources, changes)


def changed_keys(changes: Sequence[str]) -> set[str]:
    """Return the keys of changes `section.key=value`."""
    return {change.partition("=")[0].strip() for change in changes}


def _changed(document: Document, sources: Sequence[str], changes: Sequence[str]) -> RunConfig:
    if sources:
        document.values.setdefault("data", {})["src"] = list(sources)
    for change in sorted(changes, key=lambda text: ".name=" not in text):
        _change(document, change)
    return parse(document)


def _change(document: Document, change: str) -> None:
    """Apply one `section.key=value`; a new method or head starts from its own defaults."""
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
