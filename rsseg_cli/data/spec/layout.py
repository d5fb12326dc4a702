"""Image and label files of a dataset."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from wcmatch import glob

from rsseg_cli.data.spec.dataset_spec import (
    DatasetSpec,
    ImageSelection,
    Listing,
    SplitTable,
    template_groups,
)
from rsseg_cli.data.spec.split_lists import column, first_words, read_lines
from rsseg_cli.errors import RssegError, UnreadableError
from rsseg_cli.raster.labels import VECTOR_SUFFIXES

GLOB = glob.BRACE | glob.GLOBSTAR
"""Flags for patterns as in bash."""
RASTER_SUFFIXES = frozenset({
    ".tif", ".tiff", ".gtif", ".gtiff", ".vrt", ".jp2", ".j2k", ".png", ".jpg", ".jpeg", ".img",
    ".bmp", ".webp", ".bil", ".bsq", ".nc",
})  # fmt: skip


@dataclass(frozen=True)
class ImageEntry:
    """An image on disk, with its label if there is one.

    Attributes:
        name: The `stem` group, or the path without suffix where stems repeat.
        path: Path below the root, with `/`.
        groups: Values of the named groups of `pattern`.
    """

    name: str
    path: str
    image: Path
    label: Path | None
    groups: dict[str, str]


def glob_files(root: Path, patterns: str | Iterable[str], flags: int = GLOB) -> Iterator[Path]:
    """Yield the files below `root` that match any pattern, each once and in no particular order."""
    patterns = patterns if isinstance(patterns, str) else list(patterns)
    return (root / path for path in glob.iglob(patterns, root_dir=root, flags=flags | glob.NODIR))


def find_entries(spec: DatasetSpec, root: Path) -> list[ImageEntry]:
    """Find every image of a dataset and its label, sorted by path.

    Raises:
        RssegError: There are no images, or names or labels are ambiguous.
    """
    if spec.listing is not None:
        return read_listing(spec, spec.listing, root)
    images = _images(spec, root)
    if not images:
        raise UnreadableError(
            f"there are no images of {spec.name}: {' or '.join(spec.images)}",
            where=str(root),
            fix=f"arrange the files like that{f' (see {spec.url})' if spec.url else ''}",
        )
    names = _names(images)
    labels = _LabelFinder(root, spec.labels)
    return [
        ImageEntry(names[path], path, image, labels.find(image, groups), groups)
        for path, (image, groups) in sorted(images.items())
    ]


def _images(spec: DatasetSpec, root: Path) -> dict[str, tuple[Path, dict[str, str]]]:
    """Find the images: path below the root to the file and the values of its groups."""
    pattern = re.compile(spec.pattern)
    images: dict[str, tuple[Path, dict[str, str]]] = {}
    for image in glob_files(root, spec.images):
        path = image.relative_to(root).as_posix()
        match = pattern.search(path)
        if match and image.suffix.lower() in RASTER_SUFFIXES:
            images[path] = (image, {"stem": image.stem} | match.groupdict(default=""))
    return images


def read_listing(spec: DatasetSpec, listing: Listing, root: Path) -> list[ImageEntry]:
    """Read lists of images and labels; images that are not on disk are left out.

    Raises:
        UnreadableError: There is no list, a line does not match, or no image exists.
    """
    line_regex = re.compile(listing.line)
    entries: dict[str, ImageEntry] = {}
    for split, file in listing.files.items():
        if not (root / file).is_file():
            continue
        for number, line in enumerate(read_lines(root / file), start=1):
            match = line_regex.search(line)
            if match is None:
                raise UnreadableError(
                    f"the line does not name an image: {line[:80]}",
                    where=f"{root / file}, line {number}",
                    fix=f"lines like {listing.line}",
                )
            groups = {"split": split} | match.groupdict(default="")
            path = listing.image.format_map(groups).lstrip("/")
            label = root / listing.label.format_map(groups).lstrip("/")
            image = root / path
            if image.is_file():
                groups = {"stem": image.stem} | groups
                name = path.removesuffix(image.suffix)
                existing = label if label.is_file() else None
                entries[path] = ImageEntry(name, path, image, existing, groups)
    if not entries:
        raise UnreadableError(
            f"there are no listed images of {spec.name}",
            where=", ".join(str(root / file) for file in listing.files.values()),
            fix=f"add the lists and their images{f' (see {spec.url})' if spec.url else ''}",
        )
    return [entries[path] for path in sorted(entries)]


def _names(images: dict[str, tuple[Path, dict[str, str]]]) -> dict[str, str]:
    """Return names of images: the stems if they are unique, else the paths without suffix."""
    stems = [groups["stem"] for _, groups in images.values()]
    unique = len(set(stems)) == len(stems)
    paths: dict[str, str] = {}
    for path, (image, groups) in images.items():
        name = groups["stem"] if unique else path.removesuffix(image.suffix)
        if name in paths:
            raise RssegError(
                f"two images are called {name}",
                where=f"{paths[name]}, {path}",
                fix="keep one of them, or narrow `images` in dataset.yaml",
            )
        paths[name] = path
    return {path: name for name, path in paths.items()}


class _LabelFinder:
    """Finds labels by template, listing each folder once."""

    def __init__(self, root: Path, templates: Sequence[str]) -> None:
        self._root, self._templates = root, templates
        self._folders: dict[Path, dict[str, list[Path]]] = {}

    def find(self, image: Path, groups: dict[str, str]) -> Path | None:
        """Return the label of an image: the file of the first template that matches any."""
        for matches in self.matches(groups):
            if len(matches) > 1:
                raise RssegError(
                    f"{image.name} has {len(matches)} labels",
                    where=", ".join(str(match) for match in matches),
                    fix="keep one of them, or name the suffix in `labels` of dataset.yaml",
                )
            if matches:
                return matches[0]
        return None

    def matches(self, groups: dict[str, str]) -> Iterator[list[Path]]:
        """Yield for each template the files that it matches for an image."""
        for template in self._templates:
            path = template.format_map(groups)
            if "*" not in template:
                label = self._root / path
                yield [label] if label in self._by_stem(label.parent).get(label.stem, []) else []
            elif path.endswith(".*") and path.count("*") == 1:
                stem = self._root / path.removesuffix(".*")
                yield self._by_stem(stem.parent).get(stem.name, [])
            else:
                escaped = {name: glob.escape(value) for name, value in groups.items()}
                files = glob_files(self._root, template.format_map(escaped))
                yield sorted(file for file in files if is_label(file))

    def _by_stem(self, folder: Path) -> dict[str, list[Path]]:
        if folder not in self._folders:
            listing: dict[str, list[Path]] = defaultdict(list)
            for path in sorted(folder.iterdir()) if folder.is_dir() else ():
                if is_label(path):
                    listing[path.stem].append(path)
            self._folders[folder] = listing
        return self._folders[folder]


def is_label(path: Path) -> bool:
    """Return whether a file can be a label, by its suffix."""
    return path.suffix.lower() in RASTER_SUFFIXES | VECTOR_SUFFIXES


def orphans(spec: DatasetSpec, root: Path, entries: Iterable[ImageEntry]) -> list[Path]:
    """Return the label files without an image.

    Candidates are the files that match a label template when the groups of an image are replaced
    by wildcards.
    """
    if spec.listing is not None or spec.spare_labels:
        return []
    labels = _LabelFinder(root, spec.labels)
    used: set[Path] = set()
    patterns: set[str] = set()
    for entry in entries:
        used.update(*labels.matches(entry.groups))
        groups = {name: re.sub("[^/]+", _wildcard, value) for name, value in entry.groups.items()}
        patterns |= {text.format_map(groups) for text in spec.labels if template_groups(text)}
    candidates = glob_files(root, patterns, flags=GLOB | glob.EXTGLOB)
    return sorted(path for path in candidates if is_label(path) and path not in used)


def _wildcard(name: re.Match[str]) -> str:
    """Return a wildcard for a path component; numbers only for a number, so not `1_eroded`."""
    return "+([0-9])" if name[0].isdecimal() else "*"


def selects(selection: ImageSelection, entry: ImageEntry, root: Path) -> bool:
    """Return whether an image meets every condition of a selection."""
    if any(entry.groups.get(name) not in texts for name, texts in selection.groups.items()):
        return False
    if selection.glob and not glob.globmatch(entry.path, selection.glob, flags=GLOB):
        return False
    names = {entry.name, entry.path, entry.groups["stem"], entry.image.stem, entry.image.name}
    if selection.names and not names & set(selection.names):
        return False
    if selection.table and not _in_table(selection.table, entry, root):
        return False
    return not selection.listed_in or bool(names & first_words(root / selection.listed_in))


def _in_table(table: SplitTable, entry: ImageEntry, root: Path) -> bool:
    rows = column(root / table.file, table.key, table.column)
    return rows.get(table.name.format_map(entry.groups)) in table.value
