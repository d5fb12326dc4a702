"""Resolves the text of `--src` to a spec and the folder of its files."""

from __future__ import annotations

import os
from pathlib import Path

from rsseg_cli import presets
from rsseg_cli.data.infer.infer_spec import infer_spec
from rsseg_cli.data.spec.dataset_spec import DatasetSpec
from rsseg_cli.data.spec.layout import glob_files
from rsseg_cli.errors import UnreadableError

SPEC_FILE = "dataset.yaml"
DATA_VARIABLE = "RSSEG_DATA"


def parse_source(text: str) -> tuple[str, str | None, str | None]:
    """Split `name:split:domain`; a path that exists is taken whole, colons and all."""
    if Path(text).expanduser().exists():
        return text, None, None
    name, _, rest = text.partition(":")
    split, _, domain = rest.partition(":")
    return name, split or None, domain or None


def find_dataset(name: str, data_root: Path | None) -> tuple[DatasetSpec, Path, str]:
    """Find a dataset by folder, YAML file or preset.

    Args:
        name: What the user typed, without split and domain.
        data_root: Folder that holds datasets; for presets $RSSEG_DATA when None.

    Returns:
        The spec, the folder its paths are relative to, and, for a folder without `dataset.yaml`,
        what was found in it.

    Raises:
        RssegError: Nothing is there, with the places looked at.
    """
    path = Path(name).expanduser()
    if path.is_dir():
        written = path / SPEC_FILE
        if not written.is_file():
            spec, remark = infer_spec(path)
            return spec, path, remark
        spec = presets.read(written).parse(DatasetSpec)
        return spec, path / spec.root, ""
    if path.suffix.lower() in (".yaml", ".yml"):
        spec = presets.read(path).parse(DatasetSpec)
        root = (data_root or path.parent) / spec.root
        if not root.is_dir():
            raise UnreadableError(
                f"the folder of {spec.name} is missing",
                where=str(root),
                fix=f"correct `root` in {path.name}, or give --data-root",
            )
        return spec, root, ""
    if len(path.parts) > 1 or name in (".", "..", ""):
        raise UnreadableError("there is no such folder or file", where=name)
    spec = presets.read(presets.find("datasets", name)).parse(DatasetSpec)
    return spec, _root_of_preset(spec, data_root), ""


def _root_of_preset(spec: DatasetSpec, data_root: Path | None) -> Path:
    """Find a preset's data below the data root: in its own folder, then in the root itself."""
    given = data_root or (Path(os.environ[DATA_VARIABLE]) if DATA_VARIABLE in os.environ else None)
    page = f"; it is at {spec.url}" if spec.url else ""
    if given is None:
        raise UnreadableError(
            f"{spec.name} is a preset, but where the data lie is not known",
            fix=f"--data-root FOLDER or ${DATA_VARIABLE}, where FOLDER holds {spec.root}{page}",
        )
    places = list(dict.fromkeys((given / spec.root, given / spec.name, given)))
    wanted = tuple(spec.listing.files.values()) if spec.listing else spec.images
    for place in places:
        if next(glob_files(place, wanted), None):
            return place
    raise UnreadableError(
        f"{spec.name} was not found: no {' or '.join(wanted)}",
        where=" or ".join(str(place) for place in places),
        fix=f"unpack it there as published{page}",
    )
