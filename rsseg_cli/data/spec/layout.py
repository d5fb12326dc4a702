"""Files of a dataset: the images, and the label of each."""

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
"""How patterns are meant: as in bash."""
RASTER_SUFFIXES = frozenset(
    [
        ".tif",
        ".tiff",
        ".gtif",
        ".gtiff",
        ".vrt",
        ".jp2",
        ".j2k",
        ".png",
        ".jpg",
        ".jpeg",
        ".img",
        ".bmp",
        ".webp",
        ".bil",
        ".bsq",
        ".nc",
    ]
)


@dataclass(frozen=True)
class ImageEntry:
    """An image on disk, with its label if there is one.

    Attributes:
        name: The `stem` group, or the path without suffix where stems repeat.
        path: Path below the root, with `/`.
        image: The file.
        label: Its label's file.
        groups: Text of the named groups of `pattern`.
    """

    name: str
    path: str
    image: Path
    label: Path | None
    groups: dict[str, str]


def glob_files(root: Path, patterns: str | Iterable[str], flags: int = GLOB) -> Iterator[Path]:
    """Yield the files below `root` that match a pattern; `**` crosses folders, `{a,b}` is either.

    Each file comes once; the order is that of the disk.
    """
    patterns = patterns if isinstance(patterns, str) else list(patterns)
    return (root / path for path in glob.iglob(patterns, root_dir=root, flags=flags | glob.NODIR))


def find_entries(spec: DatasetSpec, root: Path) -> list[ImageEntry]:
    """Find every image of a dataset and its label, sorted by path.

    Raises:
        RssegError: No images at all, two images of one name, two labels for an image.
    """
    if spec.listing is not None:
        return read_listing(spec, spec.listing, root)
    found = _images(spec, root)
    if not found:
        raise UnreadableError(
            f"no images of {spec.name} are here: {' or '.join(spec.images)}",
            where=str(root),
            fix=f"lay the files out like that{f' (see {spec.url})' if spec.url else ''}",
        )
    names = _names(found)
    labels = _Labels(root, spec.labels)
    return [
        ImageEntry(names[path], path, image, labels.of(image, groups), groups)
        for path, (image, groups) in sorted(found.items())
    ]


def _images(spec: DatasetSpec, root: Path) -> dict[str, tuple[Path, dict[str, str]]]:
    """Find the images: path below the root to the file and what the groups caught."""
    pattern = re.compile(spec.pattern)
    found: dict[str, tuple[Path, dict[str, str]]] = {}
    for image in glob_files(root, spec.images):
        path = image.relative_to(root).as_posix()
        match = pattern.search(path)
        if match and image.suffix.lower() in RASTER_SUFFIXES:
            found[path] = (image, {"stem": image.stem} | match.groupdict(default=""))
    return found


def read_listing(spec: DatasetSpec, listing: Listing, root: Path) -> list[ImageEntry]:
    """Read lists of images and labels; images that are not on disk are left out.

    Raises:
        UnreadableError: There is no list, a line has another form, or no image exists.
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
                    f"the line names no image: {line[:80]}",
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
                found = label if label.is_file() else None
                entries[path] = ImageEntry(name, path, image, found, groups)
    if not entries:
        raise UnreadableError(
            f"no listed images of {spec.name} are here",
            where=", ".join(str(root / file) for file in listing.files.values()),
            fix=f"the lists and the images they name{f' (see {spec.url})' if spec.url else ''}",
        )
    return [entries[path] for path in sorted(entries)]


def _names(found: dict[str, tuple[Path, dict[str, str]]]) -> dict[str, str]:
    """Return names of images: the stem where that is unique, else the path without suffix."""
    stems = [groups["stem"] for _, groups in found.values()]
    unique = len(set(stems)) == len(stems)
    named: dict[str, str] = {}
    taken: dict[str, str] = {}
    for path, (image, groups) in found.items():
        name = groups["stem"] if unique else path.removesuffix(image.suffix)
        if name in taken:
            raise RssegError(
                f"two images are called {name}",
                where=f"{taken[name]}, {path}",
                fix="keep one of them, or narrow `images` in dataset.yaml",
            )
        taken[name] = path
        named[path] = name
    return named


class _Labels:
    """Finds labels by template, listing each folder once."""

    def __init__(self, root: Path, templates: Sequence[str]) -> None:
        self._root, self._templates = root, templates
        self._folders: dict[Path, dict[str, list[Path]]] = {}

    def of(self, image: Path, groups: dict[str, str]) -> Path | None:
        """Find the label of an image: the first template that leads to a file."""
        for template in self._templates:
            escaped = {name: glob.escape(value) for name, value in groups.items()}
            plain, pattern = template.format_map(groups), template.format_map(escaped)
            hits = self._hits(plain, pattern) if "*" in template else self._one(plain)
            if len(hits) > 1:
                raise RssegError(
                    f"{image.name} has {len(hits)} labels",
                    where=", ".join(str(hit) for hit in hits),
                    fix="keep one of them, or name the suffix in `labels` of dataset.yaml",
                )
            if hits:
                return hits[0]
        return None

    def all_of(self, groups: dict[str, str]) -> set[Path]:
        """List every file that any template leads to for an image."""
        found: set[Path] = set()
        for template in self._templates:
            escaped = {name: glob.escape(value) for name, value in groups.items()}
            plain, pattern = template.format_map(groups), template.format_map(escaped)
            found.update(self._hits(plain, pattern) if "*" in template else self._one(plain))
        return found

    def _one(self, path: str) -> list[Path]:
        label = self._root / path
        return [label] if label.name in self._names(label.parent) else []

    def _names(self, folder: Path) -> set[str]:
        return {path.name for paths in self._by_stem(folder).values() for path in paths}

    def _hits(self, plain: str, pattern: str) -> list[Path]:
        if plain.endswith(".*") and plain.count("*") == 1:
            label = self._root / plain.removesuffix(".*")
            return self._by_stem(label.parent).get(label.name, [])
        return sorted(path for path in glob_files(self._root, pattern) if is_label(path))

    def _by_stem(self, folder: Path) -> dict[str, list[Path]]:
        if folder not in self._folders:
            listing: dict[str, list[Path]] = defaultdict(list)
            for path in sorted(folder.iterdir()) if folder.is_dir() else ():
                if is_label(path):
                    listing[path.stem].append(path)
            self._folders[folder] = dict(listing)
        return self._folders[folder]


def is_label(path: Path) -> bool:
    """Return whether a file can be a label, by its suffix."""
    return path.suffix.lower() in RASTER_SUFFIXES | VECTOR_SUFFIXES


def orphans(spec: DatasetSpec, root: Path, entries: Iterable[ImageEntry]) -> list[Path]:
    """List label files that belong to no image.

    Candidates are the files that the label templates match with wildcards in place of what the
    groups of a known image hold.
    """
    if spec.listing is not None or spec.spare_labels:
        return []
    labels = _Labels(root, spec.labels)
    used: set[Path] = set()
    patterns: set[str] = set()
    for entry in entries:
        used |= labels.all_of(entry.groups)
        groups = {name: re.sub("[^/]+", _wildcard, value) for name, value in entry.groups.items()}
        patterns |= {text.format_map(groups) for text in spec.labels if template_groups(text)}
    candidates = glob_files(root, patterns, flags=GLOB | glob.EXTGLOB)
    return sorted(path for path in candidates if is_label(path) and path not in used)


def _wildcard(name: re.Match[str]) -> str:
    """Return a wildcard for names like this one: labels `1.png` do not match `1_eroded.png`."""
    return "+([0-9])" if name[0].isdecimal() else "*"


def selects(selection: ImageSelection, entry: ImageEntry, root: Path) -> bool:
    """Return whether an image meets every condition of a selection."""
    if any(entry.groups.get(name) not in texts for name, texts in selection.groups.items()):
        return False
    if selection.glob and not glob.globmatch(entry.path, selection.glob, flags=GLOB):
        return False
    called = {entry.name, entry.path, entry.groups["stem"], entry.image.stem, entry.image.name}
    if selection.names and not called & set(selection.names):
        return False
    if selection.table and not _in_table(selection.table, entry, root):
        return False
    return not selection.listed_in or bool(called & first_words(root / selection.listed_in))


def _in_table(table: SplitTable, entry: ImageEntry, root: Path) -> bool:
    rows = column(root / table.file, table.key, table.column)
    return rows.get(table.name.format_map(entry.groups)) in table.value
