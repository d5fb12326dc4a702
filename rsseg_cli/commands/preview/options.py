"""Options of `rsseg preview`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from rsseg_cli.commands.options import (
    MODEL,
    OUTPUT,
    RUNNING,
    BandsOptions,
    JsonOption,
    OverlapOption,
    OverwriteOption,
    argument,
    option,
)


@dataclass(frozen=True, kw_only=True)
class PreviewOptions(BandsOptions, OverlapOption, OverwriteOption, JsonOption):
    """Options of `rsseg preview`."""

    scene: Path = argument("Scene to show.")
    model: Path | None = option(None, "Run folder or model file to compare with.", MODEL)
    output: Path | None = option(None, "PNG file.", OUTPUT, "-o", show_default="SCENE.preview.png")
    tile: int | None = option(
        None, "Side of a tile in pixels.", RUNNING, min=8, show_default="as in training, or 512"
    )
