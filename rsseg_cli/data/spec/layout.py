"""Finds the files of a dataset: which images there are, and the label of each."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from glob import escape
from pathlib import Path
from string import Formatter

from rsseg_cli.data.spec.dataset_spec import DatasetSpec, Listing, Selection, Table
from rsseg_cli.data.spec.split_lists import column, first_words, read_lines
from rsseg_cli.errors import RssegError, UnreadableError
from rsseg_cli.raster.labels import VECTOR_SUFFIXES

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
class Entry:
    """An image on disk, with its label if there is one.

    Attributes:
        name: The `stem` group, or the path without suffix where stems repeat.
        path: Path below the root, with `/`.
        image: The file.
        label: Its label's file.
        groups: What the named groups of `pattern` caught.
    """

    name: str
    path: str
    image: Path
    label: Path | None
    groups: dict[str, str]


def expand_braces(pattern: str) -> list[str]:
    """Write `a{b,c}d` as `abd` and `acd`, for every pair of braces."""
    match = re.search(r"\{([^{}]*)\}", pattern)
    if match is None:
        return [pattern]
    head, tail = pattern[: match.start()], pattern[match.end() :]
    return [text for inner in match[1].split(",") for text in expand_braces(f"{head}{inner}{tail}")]


@cache
def glob_regex(pattern: str) -> re.Pattern[str]:
    """Compile a glob over whole relative paths; `**` crosses folders, `{a,b}` is either."""
    return re.compile("|".join(_glob_source(one) for one in expand_braces(pattern)))


def _glob_source(pattern: str) -> str:
    parts = re.split(r"(\*\*/|\*\*|\*|\?)", pattern)
    meant = {"**/": r"(?:[^/]+/)*", "**": r".*", "*": r"[^/]*", "?": r"[^/]"}
    return "".join(meant.get(part, re.escape(part)) for part in parts)


def find_entries(spec: DatasetSpec, root: Path) -> list[Entry]:
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
        Entry(names[path], path, image, labels.of(image, groups), groups)
        for path, (image, groups) in sorted(found.items())
    ]


def _images(spec: DatasetSpec, root: Path) -> dict[str, tuple[Path, dict[str, str]]]:
    """Find the images: path below the root to the file and what the groups caught."""
    pattern = re.compile(spec.pattern)
    found: dict[str, tuple[Path, dict[str, str]]] = {}
    for image in _listed(root, spec.images):
        path = image.relative_to(root).as_posix()
        match = pattern.search(path)
        if match and image.suffix.lower() in RASTER_SUFFIXES:
            found[path] = (image, {"stem": image.stem} | match.groupdict(default=""))
    return found


def read_listing(spec: DatasetSpec, listing: Listing, root: Path) -> list[Entry]:
    """Read the lines that name images and labels; images that are not on disk are left out.

    Raises:
        UnreadableError: There is no list, a line is of another form, or no image is there.
    """
    line_regex = re.compile(listing.line)
    entries: dict[str, Entry] = {}
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
                entries[path] = Entry(name, path, image, found, groups)
    if not entries:
        raise UnreadableError(
            f"no listed images of {spec.name} are here",
            where=", ".join(str(root / file) for file in listing.files.values()),
            fix=f"the lists and the images they name{f' (see {spec.url})' if spec.url else ''}",
        )
    return [entries[path] for path in sorted(entries)]


def _listed(root: Path, patterns: Iterable[str]) -> Iterator[Path]:
    for pattern in patterns:
        for one in expand_braces(pattern):
            yield from (path for path in root.glob(one) if path.is_file())


def _names(found: dict[str, tuple[Path, dict[str, str]]]) -> dict[str, str]:
    """Name images by stem where that is unique, else by path without suffix."""
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
            escaped = {name: escape(value) for name, value in groups.items()}
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
            escaped = {name: escape(value) for name, value in groups.items()}
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
        return sorted(path for path in self._root.glob(pattern) if is_label(path))

    def _by_stem(self, folder: Path) -> dict[str, list[Path]]:
        if folder not in self._folders:
            listing: dict[str, list[Path]] = defaultdict(list)
            for path in sorted(folder.iterdir()) if folder.is_dir() else ():
                if is_label(path):
                    listing[path.stem].append(path)
            self._folders[folder] = dict(listing)
        return self._folders[folder]


def is_label(path: Path) -> bool:
    """Tell by the suffix whether a file can be a label."""
    return path.suffix.lower() in RASTER_SUFFIXES | VECTOR_SUFFIXES


def orphans(spec: DatasetSpec, root: Path, entries: Iterable[Entry]) -> list[Path]:
    """List label files that belong to no image."""
    if spec.listing is not None or spec.spare_labels:
        return []
    labels = _Labels(root, spec.labels)
    used = {path for entry in entries for path in labels.all_of(entry.groups)}
    return sorted(label_files(spec, root) - used)


def label_files(spec: DatasetSpec, root: Path) -> set[Path]:
    """List every file that a label template with a group in it could lead to."""
    found: set[Path] = set()
    for template in spec.labels:
        parts = list(Formatter().parse(template))
        if len(parts) == 1 and parts[0][1] is None:
            continue
        fixed = parts[0][0].rpartition("/")[0]
        regex = re.compile(
            "".join(
                _glob_source(text) + ("" if name is None else group_source(spec.pattern, name))
                for text, name, *_ in parts
            )
        )
        found |= {
            path
            for path in (root / fixed).rglob("*")
            if is_label(path) and regex.fullmatch(path.relative_to(root).as_posix())
        }
    return found


def group_source(pattern: str, name: str) -> str:
    """Give what a group of `pattern` catches as an expression without names; `.+` if unknown."""
    _, opening, rest = pattern.partition(f"(?P<{name}>")
    if not opening:
        return ".+"
    depth, end = 1, 0
    for end, letter in enumerate(rest):
        escaped = end > 0 and rest[end - 1] == "\\" and rest[end - 2 : end] != "\\\\"
        depth += 0 if escaped else {"(": 1, ")": -1}.get(letter, 0)
        if depth == 0:
            break
    inner = re.sub(r"\(\?P<\w+>", "(?:", rest[:end])
    return ".+" if "(?P=" in inner else f"(?:{inner})"


def selects(selection: Selection, entry: Entry, root: Path) -> bool:
    """Tell whether an image passes every condition of a selection."""
    if any(entry.groups.get(name) not in texts for name, texts in selection.groups.items()):
        return False
    if selection.glob and not any(glob_regex(g).fullmatch(entry.path) for g in selection.glob):
        return False
    called = {entry.name, entry.path, entry.groups["stem"], entry.image.stem, entry.image.name}
    if selection.names and not called & set(selection.names):
        return False
    if selection.table and not _in_table(selection.table, entry, root):
        return False
    return not selection.listed_in or bool(called & first_words(root / selection.listed_in))


def _in_table(table: Table, entry: Entry, root: Path) -> bool:
    rows = column(root / table.file, table.key, table.column)
    return rows.get(table.name.format_map(entry.groups)) in table.value
