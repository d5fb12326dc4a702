"""Check of label values against the spec, with suggestions to correct it."""

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
"""Side of the windows that are read."""
ACROSS = 3
"""Number of windows along each side of a large label."""
SHOWN = 12
"""Largest number of values that are listed."""


@dataclass(frozen=True)
class Finding:
    """Result of one check."""

    what: str
    """Property that was checked."""
    expected: str
    """Value in the spec."""
    found: str
    """Value on disk."""
    fits: bool | None
    """True if the two agree; None for a remark."""
    fix: str = ""
    """Change to try if they do not agree."""


def check_labels(opener: Opener, pairs: Sequence[Pair]) -> list[Finding]:
    """Compare samples of the label values with the encoding in the spec."""
    code = opener.code
    rasters = [pair for pair in pairs if pair.label is not None and not is_vector(pair.label)]
    values: set[int] = set()
    nodata_values: set[int] = set()
    colors: set[Color] = set()
    bands: set[int] = set()
    findings: list[Finding] = []
    for pair in rasters:
        try:
            for samples, nodata in _samples(pair):
                bands.add(len(samples))
                nodata_values |= set() if nodata is None else {int(nodata)}
                if len(samples) >= 3:
                    colors |= _colors(samples)
                values |= {int(value) for value in np.unique(samples[0])}
        except RssegError as error:
            findings.append(_unreadable("label", error))
    if bands:
        # A nodata value that is the id of a class means that class.
        values -= nodata_values - set(code.ids())
        findings += _check_values(code, bands, values, colors)
    correct = all(finding.fits is not False for finding in findings)
    return findings + _check_decoding(opener, pairs, read=correct)


def _unreadable(what: str, error: RssegError) -> Finding:
    return Finding(what, "readable", f"{error.what} ({error.where})", False, error.fix)


def _samples(pair: Pair) -> Iterable[tuple[NDArray[np.generic], float | None]]:
    """Read windows (bands, h, w) all over a label, as stored, and the file's nodata value."""
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


def _colors(samples: NDArray[np.generic]) -> set[Color]:
    flat = samples[:3].reshape(3, -1).T
    return {(int(r), int(g), int(b)) for r, g, b in np.unique(flat, axis=0)}


def _check_values(
    code: LabelCode, bands: set[int], values: set[int], colors: set[Color]
) -> list[Finding]:
    if code.encoding == "rgb":
        return [_check_rgb(code, bands, colors)]
    if code.encoding == "onehot":
        needed = max(code.onehot_bands())
        fits = min(bands) >= needed
        fix = "" if fits else "encoding: index, or a `value` (band) per class"
        return [Finding("label bands", f"{needed} one-hot", _list(bands), fits, fix)]
    if code.encoding == "threshold":
        return [_check_threshold(code, values)]
    if code.encoding == "index" and bands != {1}:
        fix = "encoding: rgb" if min(bands) >= 3 else "one band of ids"
        return [Finding("label bands", "1", _list(bands), False, fix)]
    return [_check_index(code, values)] if code.encoding == "index" else []


def _check_index(code: LabelCode, values: set[int]) -> Finding:
    known = code.ids()
    expected = f"ids {_list(known)}"
    if values - set(known) - {255}:
        return Finding("label values", expected, _list(values), False, override(code, values))
    note = "" if len(values) > 1 else "a single value: are the labels complete?"
    ids = {cls.id for cls in code.classes}
    if min(ids) == 1 and values - {255} == {value - 1 for value in ids}:
        table = ", ".join(f"{cls.id - 1}: {cls.id}" for cls in code.classes)
        note = f"if ids start at 0 here: remap: {{{table}}}"
    return Finding("label values", expected, _list(values), None if note else True, note)


def override(code: LabelCode, values: set[int]) -> str:
    """Return the lines of a spec that would read labels with these ids, some of them unknown."""
    ids = [cls.id for cls in code.classes]
    if values <= {0, 255} and len(ids) == 2:
        return "encoding: threshold"
    for shift, ignored in ((1, 0), (-1, None)):
        shifted = {value + shift: value for value in ids}
        if values - {255} <= set(shifted) | ({ignored} if ignored is not None else set()):
            table = ", ".join(f"{label}: {value}" for label, value in sorted(shifted.items()))
            rest = f" and ignore: [{ignored}]" if ignored is not None else ""
            return f"remap: {{{table}}}{rest}"
    unknown = sorted(values - set(code.ids()))
    return f"ignore: {unknown[:SHOWN]}, or `remap` them to classes"


def _check_threshold(code: LabelCode, values: set[int]) -> Finding:
    expected = f"background up to {code.threshold:g}, object above"
    if values == {0, 1} and code.threshold >= 1:
        return Finding("label values", expected, _list(values), False, "threshold: 0.5")
    single = len({value > code.threshold for value in values}) < 2
    note = "only one of the two classes occurs" if single else ""
    return Finding("label values", expected, _list(values), None if single else True, note)


def _check_rgb(code: LabelCode, bands: set[int], colors: set[Color]) -> Finding:
    expected = counted(len(code.colors()), "colour")
    if min(bands) < 3:
        fix = "encoding: index, or palette for a colour table"
        return Finding("label colours", expected, counted(min(bands), "band"), False, fix)
    centres = np.array(list(code.colors()), np.float64)
    distances = {
        color: float(np.linalg.norm(centres - np.array(color), axis=1).min()) for color in colors
    }
    far = sorted(color for color, distance in distances.items() if distance > code.tolerance)
    if far:
        listed = ", ".join(map(str, far[:SHOWN]))
        fix = "`value` of a class, `ignore`, or a larger `tolerance`"
        return Finding("label colours", expected, f"{len(far)} unknown: {listed}", False, fix)
    inexact = [distance for distance in distances.values() if distance > 0]
    number = counted(len(colors), "colour")
    if inexact:
        number += f", {len(inexact)} of them up to {max(inexact):.0f} off: read as the nearest"
    return Finding("label colours", expected, number, None if inexact else True)


def _check_decoding(opener: Opener, pairs: Sequence[Pair], *, read: bool) -> list[Finding]:
    """Open labels as `fit` does, and if `read` also read them; each error is reported once."""
    findings: dict[str, Finding] = {}
    for pair in pairs:
        try:
            reader = opener.labels(pair)
            if reader is None:
                continue
            with reader:
                if read:
                    width, height = min(SIDE_PX, pair.info.width), min(SIDE_PX, pair.info.height)
                    reader.read(Window(0, 0, width, height))
        except RssegError as error:
            findings.setdefault(error.what, _unreadable("label and image", error))
    if opener.code.encoding == "palette":
        inexact = len(inexact_colors(opener.code))
        colors = f"{counted(inexact, 'colour')} read as the nearest" if inexact else "known colours"
        findings["palette"] = Finding("label colours", "known", colors, None if inexact else True)
    return list(findings.values())


def _list(values: Iterable[int]) -> str:
    """Format numbers with runs joined: 0..4, 9."""
    runs: list[list[int]] = []
    for value in sorted(values):
        if runs and value == runs[-1][-1] + 1:
            runs[-1].append(value)
        else:
            runs.append([value])
    texts = [f"{run[0]}..{run[-1]}" if len(run) > 2 else ", ".join(map(str, run)) for run in runs]
    return ", ".join(texts[:SHOWN]) + (", ..." if len(texts) > SHOWN else "")
