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
    """Split `name:split:domain`; an existing path is the name as a whole, colons included."""
    if Path(text).expanduser().exists():
        return text, None, None
    name, _, rest = text.partition(":")
    split, _, domain = rest.partition(":")
    return name, split or None, domain or None


def find_dataset(name: str, data_root: Path | None) -> tuple[DatasetSpec, Path, str]:
    """Find a dataset by folder, YAML file or preset.

    Args:
        name: The source without split and domain.
        data_root: Folder that holds datasets; for presets $RSSEG_DATA when None.

    Returns:
        The spec, the folder that its paths are relative to, and the assumptions made if the spec
        was inferred.

    Raises:
        RssegError: There is no such dataset; the error lists the folders that were tried.
    """
    path = Path(name).expanduser()
    if path.is_dir():
        spec_file = path / SPEC_FILE
        if not spec_file.is_file():
            spec, remark = infer_spec(path)
            return spec, path, remark
        spec = presets.read(spec_file).parse(DatasetSpec)
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
    """Find a preset's files in its own folder below the data root, or in the root itself."""
    page = f"; it is at {spec.url}" if spec.url else ""
    if data_root is None and DATA_VARIABLE in os.environ:
        data_root = Path(os.environ[DATA_VARIABLE])
    if data_root is None:
        raise UnreadableError(
            f"{spec.name} is a preset, and the folder of its data is not set",
            fix=f"--data-root FOLDER or ${DATA_VARIABLE}, where FOLDER holds {spec.root}{page}",
        )
    roots = list(dict.fromkeys((data_root / spec.root, data_root / spec.name, data_root)))
    patterns = tuple(spec.listing.files.values()) if spec.listing else spec.images
    for root in roots:
        if next(glob_files(root, patterns), None):
            return root
    raise UnreadableError(
        f"{spec.name} was not found: no {' or '.join(patterns)}",
        where=" or ".join(str(root) for root in roots),
        fix=f"unpack it there as published{page}",
    )
