"""Infers where a folder has its images and labels, by the usual names."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rsseg_cli.data.spec.layout import RASTER_SUFFIXES, is_label
from rsseg_cli.errors import RssegError, RssegWarning, UnreadableError
from rsseg_cli.raster.labels import is_vector

IMAGE_FOLDERS = ("images", "image", "imgs", "img", "JPEGImages")
LABEL_FOLDERS = (
    "labels", "label", "lbls", "lbl", "masks", "mask", "gt", "annotations", "annotation",
    "ground_truth", "SegmentationClass",
)  # fmt: skip
"""Names of folders, in capitals or not; the first of both are the documented ones."""

ENDINGS = ("_mask", "_masks", "_label", "_labels", "_gt", "_seg")
"""What the name of a label has behind the name of its image, if anything."""
ENDED = re.compile(f"(?P<stem>.+?)(?P<ending>{'|'.join(ENDINGS)})", re.IGNORECASE)


@dataclass(frozen=True)
class Layout:
    """Location of images and labels, as settings of a spec.

    Attributes:
        glob: Matches the images, and maybe more.
        pattern: Regular expression that tells images from the rest; its group `stem` names them.
        template: Path of the label of an image, or of all of them.
        images: The files.
        labels: The files.
        remarks: What was assumed.
    """

    glob: str
    pattern: str
    template: str
    images: tuple[Path, ...]
    labels: tuple[Path, ...]
    remarks: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Folder:
    """A folder, and the files below it that matter."""

    path: Path
    files: tuple[Path, ...]

    def stem(self, file: Path) -> str:
        return file.relative_to(self.path).with_suffix("").as_posix()

    def __str__(self) -> str:
        return f"{self.path.name}/"


def find_layout(root: Path) -> Layout:
    """Find a folder of images with a folder of labels, or labels beside their images.

    `images/` with `labels/` is the documented layout and comes first. Any other layout is used if
    it is the only one.

    Raises:
        RssegError: There is no known layout, or more than one.
    """
    images = _folders(root, IMAGE_FOLDERS, _is_raster)
    labels = _folders(root, LABEL_FOLDERS, is_label)
    beside = labels_beside(root)
    found = {f"{image} with {label}": (image, label) for image in images for label in labels}
    others = [f"labels named *{ending} beside their images" for ending in _endings(beside)]
    asked_for = f"{IMAGE_FOLDERS[0]}/ with {LABEL_FOLDERS[0]}/"
    if asked_for in found:
        unread = [str(one) for one in (*images, *labels) if str(one) not in asked_for.split()]
        remarks = [f"Not read: {', '.join(unread + others)}."] if unread + others else []
        return _in_folders(*found[asked_for], remarks)
    if len(found) + len(others) > 1:
        raise RssegError(
            f"the layout is ambiguous: {', or '.join([*found, *others])}",
            where=str(root),
            fix="keep one of these, or set `images`, `pattern` and `labels` in dataset.yaml",
        )
    if others:
        return _side_by_side(root, beside)
    if not found:
        raise _nothing(root, images)
    [(said, folders)] = found.items()
    return _in_folders(*folders, [f"{said} is assumed from the names."])


def image_folder(root: Path) -> Path:
    """Return the subfolder of images by a usual name, else the folder itself.

    Raises:
        RssegError: Several have a usual name, and none of them is the documented one.
    """
    found = _folders(root, IMAGE_FOLDERS, _is_raster)
    asked_for = [folder for folder in found if folder.path.name == IMAGE_FOLDERS[0]]
    chosen = asked_for or found
    if len(chosen) > 1:
        raise RssegError(
            f"the folder of the images is ambiguous: {', or '.join(map(str, chosen))}",
            where=str(root),
            fix="name one of these folders",
        )
    return chosen[0].path if chosen else root


def labels_beside(root: Path) -> dict[Path, str]:
    """Return the labels in a folder that are named after an image there, with their endings."""
    files = sorted(path for path in root.iterdir() if is_label(path) and path.is_file())
    stems = {path.stem for path in files if _is_raster(path)}
    return _ended(_Folder(root, tuple(files)), stems)


def _is_raster(path: Path) -> bool:
    return path.suffix.lower() in RASTER_SUFFIXES


def _folders(root: Path, names: Iterable[str], fits: Callable[[Path], bool]) -> list[_Folder]:
    """List the folders that have one of these names and files that fit."""
    known = {name.lower() for name in names}
    paths = sorted(path for path in root.iterdir() if path.name.lower() in known and path.is_dir())
    found = [_Folder(path, tuple(sorted(filter(fits, path.rglob("*"))))) for path in paths]
    return [folder for folder in found if folder.files]


def _nothing(root: Path, images: Sequence[_Folder]) -> UnreadableError:
    """Build the error that lists the known layouts."""
    if images:
        have = f"{', '.join(map(str, images))} without any of {_either(LABEL_FOLDERS, '{}/')}"
        what = f"the folder has images but no labels: {have}"
    else:
        what = (
            f"the folder is not a dataset: no images in {_either(IMAGE_FOLDERS, '{}/')}, "
            f"and no label beside its image, as a.tif with {_either(ENDINGS, 'a{}.*')}"
        )
    return UnreadableError(
        what,
        where=str(root),
        fix="put scenes into images/ and labels (rasters on their grid, or polygons) of the same "
        "names into labels/, or describe your layout in dataset.yaml",
    )


def _either(names: Sequence[str], form: str) -> str:
    *first, last = map(form.format, names)
    return f"{', '.join(first)} or {last}"


def _in_folders(images: _Folder, labels: _Folder, remarks: Sequence[str]) -> Layout:
    template, used, more = _pair(images, labels)
    return Layout(
        glob=f"{images}**/*",
        pattern=rf"{images}(?P<stem>.+)\.[^./]+$",
        template=template,
        images=images.files,
        labels=used,
        remarks=(*remarks, *more),
    )


def _pair(images: _Folder, labels: _Folder) -> tuple[str, tuple[Path, ...], tuple[str, ...]]:
    """Match labels to images: by name, by name and ending, or one for all of them.

    Returns:
        The template of a label's path, the labels that count, and what was assumed.
    """
    by_name = f"{labels}{{stem}}.*"
    stems = {images.stem(path) for path in images.files}
    if any(labels.stem(path) in stems for path in labels.files):
        return by_name, labels.files, ()
    ended = _ended(labels, stems)
    if ended:
        ending = _the_ending(labels, ended)
        remark = f"A label is taken to be named like its image, with {ending} behind."
        return f"{labels}{{stem}}{ending}.*", tuple(ended), (remark,)
    if len({path.stem for path in labels.files}) > 1:
        return by_name, labels.files, ()
    # One label for all images: dates of the same ground.
    label = next((path for path in labels.files if not is_vector(path)), labels.files[0])
    others = [path.name for path in labels.files if path != label]
    if others:
        warnings.warn(
            f"{label.name} is taken as the labels, not {', '.join(others)}",
            RssegWarning,
            stacklevel=6,
        )
    path = label.relative_to(labels.path.parent).as_posix()
    return path, (label,), (f"{path} is taken as the label of every image.",)


def _ended(labels: _Folder, stems: set[str]) -> dict[Path, str]:
    """Return the endings of labels that have one, if any of these is named after an image."""
    matches = {path: ENDED.fullmatch(labels.stem(path)) for path in labels.files}
    ended = {path: match for path, match in matches.items() if match}
    named = any(match["stem"] in stems for match in ended.values())
    return {path: match["ending"] for path, match in ended.items()} if named else {}


def _endings(ended: dict[Path, str]) -> list[str]:
    return sorted(set(ended.values()))


def _the_ending(labels: _Folder, ended: dict[Path, str]) -> str:
    endings = _endings(ended)
    if len(endings) > 1:
        raise RssegError(
            f"the labels are ambiguous: some end in {', some in '.join(endings)}",
            where=str(labels.path),
            fix="keep one of these, or list them in `labels` of dataset.yaml",
        )
    return endings[0]


def _side_by_side(root: Path, labels: dict[Path, str]) -> Layout:
    [ending] = _endings(labels)
    images = (path for path in root.iterdir() if _is_raster(path) and path.is_file())
    return Layout(
        glob="*",
        pattern=rf"^(?P<stem>[^/]+)(?<!{ending})\.[^./]+$",
        template=f"{{stem}}{ending}.*",
        images=tuple(sorted(path for path in images if path not in labels)),
        labels=tuple(labels),
        remarks=(f"Files named *{ending} are assumed to be the labels of those beside them.",),
    )
