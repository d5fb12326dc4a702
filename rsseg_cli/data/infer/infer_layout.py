"""Inference of the image and label files of a folder from common names."""

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
"""Folder names, case-insensitive; the first of both are the documented ones."""

ENDINGS = ("_mask", "_masks", "_label", "_labels", "_gt", "_seg")
"""Suffixes that a label may have after the name of its image."""
ENDED = re.compile(f"(?P<stem>.+?)(?P<ending>{'|'.join(ENDINGS)})", re.IGNORECASE)


@dataclass(frozen=True)
class Layout:
    """Image and label files, also as settings of a spec."""

    glob: str
    """Glob pattern of the images; may match other files too."""
    pattern: str
    """Regular expression that matches images only; its group `stem` names them."""
    template: str
    """Template of the label path."""
    images: tuple[Path, ...]
    labels: tuple[Path, ...]
    remarks: tuple[str, ...] = ()
    """Assumptions."""


@dataclass(frozen=True)
class _Folder:
    """A folder with its image or label files."""

    path: Path
    files: tuple[Path, ...]

    def stem(self, file: Path) -> str:
        return file.relative_to(self.path).with_suffix("").as_posix()

    def __str__(self) -> str:
        return f"{self.path.name}/"


def find_layout(root: Path) -> Layout:
    """Find a folder of images with a folder of labels, or labels beside their images.

    The documented layout, `images/` with `labels/`, takes precedence. Any other layout is used if
    it is the only one.

    Raises:
        RssegError: There is no known layout, or more than one.
    """
    images = _folders(root, IMAGE_FOLDERS, _is_raster)
    labels = _folders(root, LABEL_FOLDERS, is_label)
    beside = labels_beside(root)
    layouts = {f"{image} with {label}": (image, label) for image in images for label in labels}
    others = [f"labels named *{ending} beside their images" for ending in _endings(beside)]
    documented = f"{IMAGE_FOLDERS[0]}/ with {LABEL_FOLDERS[0]}/"
    if documented in layouts:
        folders = [str(folder) for folder in (*images, *labels)]
        unread = [folder for folder in folders if folder not in documented.split()] + others
        remarks = [f"Not read: {', '.join(unread)}."] if unread else []
        return _in_folders(*layouts[documented], remarks)
    if len(layouts) + len(others) > 1:
        raise RssegError(
            f"the layout is ambiguous: {', or '.join([*layouts, *others])}",
            where=str(root),
            fix="keep one of these, or set `images`, `pattern` and `labels` in dataset.yaml",
        )
    if others:
        return _side_by_side(root, beside)
    if not layouts:
        raise _unknown_layout(root, images)
    [(name, (image, label))] = layouts.items()
    return _in_folders(image, label, [f"{name} is assumed from the names."])


def image_folder(root: Path) -> Path:
    """Return the subfolder with a common name for images, else the folder itself.

    Raises:
        RssegError: There are several such subfolders, and none of them is the documented one.
    """
    folders = _folders(root, IMAGE_FOLDERS, _is_raster)
    folders = [f for f in folders if f.path.name == IMAGE_FOLDERS[0]] or folders
    if len(folders) > 1:
        raise RssegError(
            f"the folder of the images is ambiguous: {', or '.join(map(str, folders))}",
            where=str(root),
            fix="name one of these folders",
        )
    return folders[0].path if folders else root


def labels_beside(root: Path) -> dict[Path, str]:
    """Return the labels in a folder that are named after an image beside them, with endings."""
    files = sorted(path for path in root.iterdir() if is_label(path) and path.is_file())
    stems = {path.stem for path in files if _is_raster(path)}
    return _ended(_Folder(root, tuple(files)), stems)


def _is_raster(path: Path) -> bool:
    return path.suffix.lower() in RASTER_SUFFIXES


def _folders(root: Path, names: Iterable[str], fits: Callable[[Path], bool]) -> list[_Folder]:
    """Return the subfolders with one of these names that contain files that fit."""
    known = {name.lower() for name in names}
    paths = sorted(path for path in root.iterdir() if path.name.lower() in known and path.is_dir())
    folders = [_Folder(path, tuple(sorted(filter(fits, path.rglob("*"))))) for path in paths]
    return [folder for folder in folders if folder.files]


def _unknown_layout(root: Path, images: Sequence[_Folder]) -> UnreadableError:
    """Build the error that lists the known layouts."""
    if images:
        folders = f"{', '.join(map(str, images))} without any of {_either(LABEL_FOLDERS, '{}/')}"
        problem = f"the folder has images but no labels: {folders}"
    else:
        problem = (
            f"the folder is not a dataset: no images in {_either(IMAGE_FOLDERS, '{}/')}, "
            f"and no label beside its image, such as a.tif with {_either(ENDINGS, 'a{}.*')}"
        )
    return UnreadableError(
        problem,
        where=str(root),
        fix="put scenes into images/ and labels (rasters on their grid, or polygons) of the same "
        "names into labels/, or describe your layout in dataset.yaml",
    )


def _either(names: Sequence[str], form: str) -> str:
    *first, last = map(form.format, names)
    return f"{', '.join(first)} or {last}"


def _in_folders(images: _Folder, labels: _Folder, remarks: Sequence[str]) -> Layout:
    template, used, assumed = _match(images, labels)
    return Layout(
        glob=f"{images}**/*",
        pattern=rf"{images}(?P<stem>.+)\.[^./]+$",
        template=template,
        images=images.files,
        labels=used,
        remarks=(*remarks, *assumed),
    )


def _match(images: _Folder, labels: _Folder) -> tuple[str, tuple[Path, ...], tuple[str, ...]]:
    """Match labels to images: by name, by name and ending, or one label for all images.

    Returns:
        The template of the label path, the labels in use, and the assumptions.
    """
    by_name = f"{labels}{{stem}}.*"
    stems = {images.stem(path) for path in images.files}
    if any(labels.stem(path) in stems for path in labels.files):
        return by_name, labels.files, ()
    ended = _ended(labels, stems)
    if ended:
        endings = _endings(ended)
        if len(endings) > 1:
            raise RssegError(
                f"the labels are ambiguous: some end in {', some in '.join(endings)}",
                where=str(labels.path),
                fix="keep one of these, or list them in `labels` of dataset.yaml",
            )
        (ending,) = endings
        remark = f"Labels are assumed to have the name of their image, followed by {ending}."
        return f"{labels}{{stem}}{ending}.*", tuple(ended), (remark,)
    if len({path.stem for path in labels.files}) > 1:
        return by_name, labels.files, ()
    # One label for all images: several dates of one area.
    label = next((path for path in labels.files if not is_vector(path)), labels.files[0])
    others = [path.name for path in labels.files if path != label]
    if others:
        warnings.warn(
            f"{label.name} is read as the label, not {', '.join(others)}",
            RssegWarning,
            stacklevel=6,
        )
    path = label.relative_to(labels.path.parent).as_posix()
    return path, (label,), (f"{path} is assumed to be the label of every image.",)


def _ended(labels: _Folder, stems: set[str]) -> dict[Path, str]:
    """Return the labels with an ending, if any of them is named after an image."""
    matches = {path: ENDED.fullmatch(labels.stem(path)) for path in labels.files}
    ended = {path: match for path, match in matches.items() if match}
    named = any(match["stem"] in stems for match in ended.values())
    return {path: match["ending"] for path, match in ended.items()} if named else {}


def _endings(ended: dict[Path, str]) -> list[str]:
    return sorted(set(ended.values()))


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
