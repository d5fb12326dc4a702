"""`rsseg export`: writes a model as a folder to publish."""

from __future__ import annotations

import json
import shutil
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rsseg_cli.atomic_write import atomic_path, write_bytes, write_errors
from rsseg_cli.commands.model import model_file
from rsseg_cli.config import family
from rsseg_cli.contract import Backbone, Bands
from rsseg_cli.errors import OutputExistsError, RssegWarning
from rsseg_cli.find import find
from rsseg_cli.metrics.scores import Scores
from rsseg_cli.presets import to_yaml
from rsseg_cli.report.model_card import Licence, ModelCard
from rsseg_cli.training.checkpoint import load_model, model_classes

UNNAMED = "not named"
"""Licence of data whose dataset.yaml does not name one."""
UNKNOWN = "unknown; see the publisher of the weights"
FILES = ("model.safetensors", "config.yaml", "README.md", "item.json")


@dataclass(frozen=True)
class Exported:
    """Result of `rsseg export`."""

    folder: str
    model: str
    card: str
    item: str


def export(model: Path, output: Path | None = None, *, overwrite: bool = False) -> Exported:
    """Write the model file, its settings, a model card and a STAC item into a folder.

    Only the model file is read, not the backbone's weights.

    Args:
        model: Run folder or model file.
        output: The folder; NAME-model in the working folder when None.
        overwrite: Replace an earlier export. Other files in the folder stay.

    Raises:
        RssegError: The model cannot be read, or the folder is not empty.
    """
    file = model_file(model)
    tensors, about = load_model(file)
    name = file.absolute().parent.name
    folder = output or Path(f"{name}-model")
    if folder.exists() and not overwrite and (not folder.is_dir() or any(folder.iterdir())):
        raise OutputExistsError(
            f"{folder} already exists", where=str(folder), fix="--overwrite, or another -o"
        )
    score = about.get("score")
    licences = [backbone_licence(about["config"]["backbone"]), *_data_licences(about["sources"])]
    card = ModelCard(
        name=name,
        config=about["config"],
        classes=model_classes(about, file),
        bands=Bands.model_validate(about["bands"]),
        sources=about["sources"],
        scores=Scores.from_json(score) if score and "classes" in score else None,
        licences=licences,
        versions={key: about[key] for key in ("rsseg", "torch")},
        parameters=sum(tensor.numel() for tensor in tensors.values()),
        size=file.stat().st_size,
    )
    for licence in licences:
        if licence.terms in (UNNAMED, UNKNOWN):
            warnings.warn(
                f"the licence of {licence.component} is unknown", RssegWarning, stacklevel=2
            )
    texts = (
        to_yaml(about["config"]),
        card.to_markdown(),
        json.dumps(card.to_stac(), indent=1, ensure_ascii=False) + "\n",
    )
    with write_errors("the model", folder):
        folder.mkdir(parents=True, exist_ok=True)
        if file.resolve() != (folder / FILES[0]).resolve():
            with atomic_path(folder / FILES[0]) as part:
                shutil.copyfile(file, part)
        for file_name, text in zip(FILES[1:], texts, strict=True):
            write_bytes(folder / file_name, text.encode("utf-8"))
    return Exported(str(folder), *(str(folder / FILES[index]) for index in (0, 2, 3)))


def backbone_licence(settings: dict[str, Any]) -> Licence:
    """Return the licence of a backbone's weights."""
    name = settings["name"]
    if not settings.get("pretrained", True):
        return Licence(name, "none: initialised at random", "-")
    kind = family(name)
    terms, page = find("backbones", kind, Backbone).licence(name.removeprefix(f"{kind}_"))
    return Licence(name, terms or UNKNOWN, page)


def _data_licences(sources: list[dict[str, Any]]) -> list[Licence]:
    return [
        Licence(source["name"], source.get("licence") or UNNAMED, "the page of the dataset")
        for source in sources
    ]
