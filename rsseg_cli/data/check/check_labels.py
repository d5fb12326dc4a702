"""Checks the values of labels against the spec, and suggests how to correct it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rsseg_cli.data.pair import Opener, Pair
from rsseg_cli.errors import RssegError
from rsseg_cli.number_format import counted
from rsseg_cli.raster.decode import Color, LabelCode
from rsseg_cli.raster.grid import Window
from rsseg_cli.raster.labels import inexact_colors, is_vector
from rsseg_cli.raster.scene import Scene

SIDE_PX = 512
"""Side of a window that is looked at."""
ACROSS = 3
"""Windows along either side of a large label."""
SHOWN = 12


@dataclass(frozen=True)
class Finding:
    """Result of one check.

    Attributes:
        what: What was checked.
        expected: Value in the spec.
        found: What is on disk.
        fits: Whether the two agree; None for a remark.
        fix: What to change where they do not.
    """

    what: str
    expected: str
    found: str
    fits: bool | None
    fix: str = ""


def check_labels(opener: Opener, pairs: Sequence[Pair]) -> list[Finding]:
    """Sample the values of some labels and compare them with how they are to be read."""
    code = opener.code
    rasters = [pair for pair in pairs if pair.label is not None and not is_vector(pair.label)]
    seen: set[int] = set()
    empty: set[int] = set()
    colors: set[Color] = set()
    findings: list[Finding] = []
    bands: set[int] = set()
    for pair in rasters:
        try:
            for values, nodata in _samples(pair):
                bands.add(len(values))
                empty |= set() if nodata is None else {int(nodata)}
                if len(values) >= 3:
                    colors |= _colors(values)
                seen |= {int(value) for value in np.unique(values[0])}
        except RssegError as error:
            findings.append(_refused("label", error))
    if bands:
        # A nodata value that is the id of a class means that class.
        findings += _values(code, bands, seen - (empty - set(code.ids())), colors)
    misread = [finding for finding in findings if finding.fits is False]
    findings += _decoding(opener, pairs, told=bool(misread))
    return findings


def _refused(what: str, error: RssegError) -> Finding:
    return Finding(what, "readable", f"{error.what} ({error.where})", False, error.fix)


def _samples(pair: Pair) -> Iterable[tuple[NDArray[np.generic], float | None]]:
    """Read windows (bands, h, w) of a label as stored, all over it, and the file's nodata."""
    assert pair.label is not None
    with Scene.open(pair.label, warn=False) as tagged:
        nodata = tagged.nodata
    with Scene.open(pair.label, nodata=float("nan"), warn=False) as scene:
        for x in _starts(scene.width):
            for y in _starts(scene.height):
                width, height = min(SIDE_PX, scene.width), min(SIDE_PX, scene.height)
                yield scene.read(Window(x, y, width, height))[0], nodata


def _starts(length: int) -> list[int]:
    if length <= SIDE_PX:
        return [0]
    return sorted({int(i * (length - SIDE_PX) / (ACROSS - 1)) for i in range(ACROSS)})


def _colors(values: NDArray[np.generic]) -> set[Color]:
    flat = values[:3].reshape(3, -1).T
    return {(int(r), int(g), int(b)) for r, g, b in np.unique(flat, axis=0)}


def _values(code: LabelCode, bands: set[int], seen: set[int], colors: set[Color]) -> list[Finding]:
    if code.encoding == "rgb":
        return [_rgb(code, bands, colors)]
    if code.encoding == "onehot":
        needed = max(code.onehot_bands())
        fits = min(bands) >= needed
        fix = "" if fits else "encoding: index, or a `value` (band) per class"
        return [Finding("label bands", f"{needed} one-hot", _list(bands), fits, fix)]
    if code.encoding == "threshold":
        return [_threshold(code, seen)]
    if code.encoding == "index" and bands != {1}:
        fix = "encoding: rgb" if min(bands) >= 3 else "one band of ids"
        return [Finding("label bands", "1", _list(bands), False, fix)]
    return [_index(code, seen)] if code.encoding == "index" else []


def _index(code: LabelCode, seen: set[int]) -> Finding:
    known = code.ids()
    expected = f"ids {_list(known)}"
    strange = seen - set(known) - {255}
    if not strange:
        note = "" if len(seen) > 1 else "a single value: are the labels whole?"
        if _from_zero(code, seen):
            table = ", ".join(f"{one.id - 1}: {one.id}" for one in code.classes)
            note = f"if ids start at 0 here: remap: {{{table}}}"
        return Finding("label values", expected, _list(seen), None if note else True, note)
    return Finding("label values", expected, _list(seen), False, override(code, seen))


def _from_zero(code: LabelCode, seen: set[int]) -> bool:
    """Return whether ids seem to begin at 0 where those of the classes begin at 1."""
    ids = {one.id for one in code.classes}
    return min(ids) == 1 and seen - {255} == {value - 1 for value in ids}


def override(code: LabelCode, seen: set[int]) -> str:
    """Return the lines of a spec that would read ids as they are.

    Args:
        code: How they are to be read now.
        seen: Ids in the labels, of which some are unknown.
    """
    ids = [one.id for one in code.classes]
    if seen <= {0, 255} and len(ids) == 2:
        return "encoding: threshold"
    for shift, ignored in ((1, 0), (-1, None)):
        moved = {value + shift: value for value in ids}
        if seen - {255} <= set(moved) | ({ignored} if ignored is not None else set()):
            table = ", ".join(f"{theirs}: {ours}" for theirs, ours in sorted(moved.items()))
            rest = f" and ignore: [{ignored}]" if ignored is not None else ""
            return f"remap: {{{table}}}{rest}"
    strange = sorted(seen - set(code.ids()))
    return f"ignore: {strange[:SHOWN]}, or `remap` them to classes"


def _threshold(code: LabelCode, seen: set[int]) -> Finding:
    expected = f"background up to {code.threshold:g}, object above"
    if seen == {0, 1} and code.threshold >= 1:
        return Finding("label values", expected, _list(seen), False, "threshold: 0.5")
    alone = all(value > code.threshold for value in seen) or max(seen) <= code.threshold
    note = "only one of the two classes was seen" if alone else ""
    return Finding("label values", expected, _list(seen), None if alone else True, note)


def _rgb(code: LabelCode, bands: set[int], colors: set[Color]) -> Finding:
    expected = counted(len(code.colors()), "colour")
    if min(bands) < 3:
        fix = "encoding: index, or palette for a colour table"
        return Finding("label colours", expected, counted(min(bands), "band"), False, fix)
    centres = np.array(list(code.colors()), np.float64)
    apart = {
        color: float(np.linalg.norm(centres - np.array(color), axis=1).min()) for color in colors
    }
    far = {color: distance for color, distance in apart.items() if distance > code.tolerance}
    if far:
        shown = ", ".join(str(color) for color in sorted(far)[:SHOWN])
        fix = "`value` of a class, `ignore`, or a larger `tolerance`"
        return Finding("label colours", expected, f"{len(far)} unknown: {shown}", False, fix)
    near = [distance for distance in apart.values() if distance > 0]
    found = counted(len(colors), "colour") + (
        f", {len(near)} of them up to {max(near):.0f} off: read as the nearest" if near else ""
    )
    return Finding("label colours", expected, found, None if near else True)


def _decoding(opener: Opener, pairs: Sequence[Pair], *, told: bool) -> list[Finding]:
    """Read labels as `fit` does, and collect its errors, each once."""
    findings: dict[str, Finding] = {}
    for pair in pairs:
        try:
            reader = opener.labels(pair)
            if reader is None:
                continue
            with reader:
                if not told:
                    side = Window(0, 0, min(SIDE_PX, pair.info.width),
                                  min(SIDE_PX, pair.info.height))  # fmt: skip
                    reader.read(side)
        except RssegError as error:
            findings.setdefault(error.what, _refused("label and image", error))
    if opener.code.encoding == "palette":
        near = inexact_colors(opener.code)
        found = f"{counted(len(near), 'colour')} read as the nearest" if near else "known colours"
        findings["palette"] = Finding("label colours", "known", found, None if near else True)
    return list(findings.values())


def _list(values: Iterable[int]) -> str:
    """Write numbers with runs joined: 0..4, 9."""
    runs: list[list[int]] = []
    for value in sorted(values):
        if runs and value == runs[-1][-1] + 1:
            runs[-1].append(value)
        else:
            runs.append([value])
    shown = [f"{run[0]}..{run[-1]}" if len(run) > 2 else ", ".join(map(str, run)) for run in runs]
    return ", ".join(shown[:SHOWN]) + (", ..." if len(shown) > SHOWN else "")
