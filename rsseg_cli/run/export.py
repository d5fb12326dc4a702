"""`export`: a model as a folder that can be handed on."""

from __future__ import annotations

import json
import shutil
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from rsseg_cli.bands import Bands
from rsseg_cli.classes import Class
from rsseg_cli.config import family
from rsseg_cli.contract import Backbone
from rsseg_cli.errors import OutputExistsError, RssegWarning
from rsseg_cli.find import find
from rsseg_cli.metrics.scores import Scores
from rsseg_cli.report.card import Card, Licence
from rsseg_cli.report.report import replace_file, writing
from rsseg_cli.training.checkpoint import load_model

UNNAMED = "not named"
"""Terms of data whose spec says nothing."""
UNKNOWN = "unknown, ask those who published the weights"
FILES = ("model.safetensors", "config.yaml", "README.md", "item.json")


@dataclass(frozen=True)
class Exported:
    """What `export --json` prints."""

    folder: str
    model: str
    card: str
    item: str

    def document(self) -> dict[str, Any]:
        """Give the machine-readable form."""
        return asdict(self)


def export(model: Path, output: Path | None = None, *, overwrite: bool = False) -> Exported:
    """Write the model file, its settings, a model card and a STAC item into a folder.

    The backbone need not be at hand: all is read from the model file.

    Args:
        model: Run folder or model file.
        output: The folder; NAME-model in the working folder when None.
        overwrite: Replace an earlier export. Other files in the folder stay.

    Raises:
        RssegError: There is no model, or the folder holds something.
    """
    file = model / "model.safetensors" if model.is_dir() else model
    tensors, about = load_model(file)
    name = file.absolute().parent.name
    folder = output or Path(f"{name}-model")
    if folder.exists() and not overwrite and (not folder.is_dir() or any(folder.iterdir())):
        raise OutputExistsError(
            f"{folder} is there already", where=str(folder), fix="--overwrite, or another -o"
        )
    score = about.get("score")
    licences = [backbone_licence(about["config"]["backbone"]), *_data_licences(about["sources"])]
    card = Card(
        name=name,
        config=about["config"],
        classes=[Class(c["id"], c["name"], tuple(c["color"])) for c in about["classes"]],
        bands=Bands.model_validate(about["bands"]),
        sources=about["sources"],
        scores=Scores.from_json(score) if score and "classes" in score else None,
        licences=licences,
        versions={key: about[key] for key in ("rsseg", "torch")},
        parameters=sum(tensor.numel() for tensor in tensors.values()),
        size=file.stat().st_size,
    )
    for one in licences:
        if one.terms in (UNNAMED, UNKNOWN):
            warnings.warn(f"the licence of {one.what} is not named", RssegWarning, stacklevel=2)
    texts = (
        yaml.safe_dump(about["config"], sort_keys=False),
        card.to_markdown(),
        json.dumps(card.to_stac(), indent=1, ensure_ascii=False) + "\n",
    )
    with writing("the model", folder):
        folder.mkdir(parents=True, exist_ok=True)
        if file.resolve() != (folder / FILES[0]).resolve():
            part = folder / f".{FILES[0]}.part"
            shutil.copyfile(file, part)
            part.replace(folder / FILES[0])
        for file_name, text in zip(FILES[1:], texts, strict=True):
            replace_file(folder / file_name, text.encode("utf-8"))
    return Exported(str(folder), *(str(folder / FILES[index]) for index in (0, 2, 3)))


def backbone_licence(settings: dict[str, Any]) -> Licence:
    """Find the terms of a backbone's weights."""
    name = settings["name"]
    if not settings.get("pretrained", True):
        return Licence(name, "none: it started at random", "-")
    kind = family(name)
    terms, page = find("backbones", kind, Backbone).licence(name.removeprefix(f"{kind}_"))
    return Licence(name, terms or UNKNOWN, page)


def _data_licences(sources: list[dict[str, Any]]) -> list[Licence]:
    return [
        Licence(one["name"], one.get("licence") or UNNAMED, "the page of the dataset")
        for one in sources
    ]
