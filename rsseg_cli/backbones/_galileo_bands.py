"""Assignment of image bands to the band groups of Galileo, and their normalisation."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from rsseg_cli.contract import Bands
from rsseg_cli.errors import RssegError, RssegWarning

ChannelStatistics: TypeAlias = tuple[tuple[float, ...], tuple[float, ...]]
"""Mean and standard deviation of the 13 pretraining channels."""

CHANNELS = (
    "VV", "VH", "B2", "B3", "B4", "B5", "B6", "B7", "B8", "B8A", "B11", "B12", "NDVI",
)  # fmt: skip
"""Order of the published statistics."""
PUBLISHED: ChannelStatistics = ((
    -11.7287, -18.8556, 1395.3409, 1338.4027, 1343.0988, 1543.8608, 2186.2022, 2525.0933,
    2410.3377, 2750.2855, 2234.9111, 1474.5311, 0.2892,
), (
    4.8871, 5.7303, 917.7041, 913.2988, 1092.6787, 1047.2206, 1048.0101, 1143.6903,
    1098.9792, 1204.4728, 1145.9774, 980.2430, 0.2721,
))  # fmt: skip
"""Published statistics of the pretraining data, the same for all sizes; optical ones are
reflectance x 10000 (config/normalization.json of nasaharvest/galileo)."""

GROUPS: Mapping[str, Mapping[str, float]] = {
    "S2_RGB": {"B2": 490.0, "B3": 560.0, "B4": 665.0},
    "S2_Red_Edge": {"B5": 705.0, "B6": 740.0, "B7": 783.0},
    "S2_NIR_10m": {"B8": 842.0},
    "S2_NIR_20m": {"B8A": 865.0},
    "S2_SWIR": {"B11": 1610.0, "B12": 2190.0},
}
"""Optical groups in token order: Sentinel-2 bands with their centres in nm."""
CHANNEL_ROWS = ("S1", *GROUPS, "NDVI")
"""Order of the learned channel embedding; S1, radar without wavelengths, is not supported."""
RED_NM = 665.0


def tolerance_nm(centre: float) -> float:
    """Return the largest distance at which a band replaces a Sentinel-2 band."""
    return 45.0 if centre < 1000 else 100.0


@dataclass(frozen=True)
class GroupAssignment:
    """Image bands that are the inputs of Galileo's band groups."""

    groups: dict[str, dict[str, int]]
    """Optical groups that are present: an image band for each Sentinel-2 band."""
    ndvi: tuple[int, int] | None
    """Red and near-infrared image bands, if both are present."""

    @property
    def names(self) -> list[str]:
        """Groups with tokens, in token order."""
        return [*self.groups, *(["NDVI"] if self.ndvi else [])]


def assign_groups(bands: Bands) -> GroupAssignment:
    """Assign image bands to the Sentinel-2 bands nearest in wavelength.

    Only complete groups are used; bands of an incomplete group may be assigned to another one.

    Raises:
        RssegError: A band has no wavelength or lies outside every group, or no group is complete.

    Warns:
        RssegWarning: A band is not used.
    """
    _require_wavelengths(bands)
    candidates = dict(GROUPS)
    while True:
        nearest = _nearest(bands, candidates)
        missing = {name: channels.keys() - nearest for name, channels in candidates.items()}
        incomplete = [name for name, gaps in missing.items() if 0 < len(gaps) < len(GROUPS[name])]
        if not incomplete:
            break
        for name in incomplete:
            del candidates[name]
    groups = {
        name: {channel: nearest[channel] for channel in channels}
        for name, channels in candidates.items()
        if not missing[name]
    }
    red, nir = bands.nearest(RED_NM, tolerance_nm=45.0), nearest.get("B8", nearest.get("B8A"))
    assignment = GroupAssignment(groups, None if red is None or nir is None else (red, nir))
    if not groups:
        raise RssegError(
            f"the bands {', '.join(bands.names)} complete no group of Galileo's",
            where="dataset.yaml: bands",
            fix="use blue, green and red, or near infrared, or both short-wave infrared bands",
        )
    _warn_of_unused(bands, assignment)
    return assignment


def _require_wavelengths(bands: Bands) -> None:
    for name, centre in zip(bands.names, bands.wavelengths_nm, strict=True):
        if centre is None:
            raise RssegError(
                f"band {name} has no wavelength, which Galileo needs for its band groups",
                where="dataset.yaml: bands",
                fix=f"a wavelength_nm for {name}, or leave it out of `bands`",
            )
        if not _candidates(centre, GROUPS):
            raise RssegError(
                f"band {name} at {centre:g} nm lies outside every band group of Galileo's",
                where="dataset.yaml: bands",
                fix=f"leave {name} out of `bands`",
            )


def _candidates(centre: float, groups: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Return the Sentinel-2 bands within tolerance of a centre, with their distances."""
    return {
        channel: abs(centre - nominal)
        for channels in groups.values()
        for channel, nominal in channels.items()
        if abs(centre - nominal) <= tolerance_nm(nominal)
    }


def _nearest(bands: Bands, groups: Mapping[str, Mapping[str, float]]) -> dict[str, int]:
    """Match Sentinel-2 bands to image bands one to one, nearest pairs first."""
    pairs = []
    for index, centre in enumerate(bands.wavelengths_nm):
        distances = _candidates(centre, groups) if centre is not None else {}
        if distances:
            channel = min(distances, key=distances.__getitem__)
            pairs.append((distances[channel], index, channel))
    matches: dict[str, int] = {}
    for _, index, channel in sorted(pairs):
        matches.setdefault(channel, index)
    return matches


def _warn_of_unused(bands: Bands, assignment: GroupAssignment) -> None:
    used = {index for channels in assignment.groups.values() for index in channels.values()}
    used.update(assignment.ndvi or ())
    unused = [name for index, name in enumerate(bands.names) if index not in used]
    if unused:
        warnings.warn(
            f"Galileo has no use for {', '.join(unused)}: incomplete group or a nearer band",
            RssegWarning,
            stacklevel=2,
        )


def reflectance(bands: Bands) -> tuple[Tensor, Tensor]:
    """Return gain and offset, each (C, 1, 1), from standardised values to reflectance.

    Raises:
        RssegError: The scale of the data is unknown.
    """
    if bands.scale is None:
        raise RssegError(
            "Galileo needs reflectance, but the scale of these bands is unknown",
            where="dataset.yaml: scale",
            fix="scale: 1.0e-4 for reflectance x 10000, scale: 1.0 for reflectance itself",
        )
    gain = torch.tensor(bands.std) * bands.scale
    offset = torch.tensor(bands.mean) * bands.scale
    return gain[:, None, None], offset[:, None, None]


def normalisation(
    assignment: GroupAssignment, bands: Bands, statistics: ChannelStatistics
) -> tuple[Tensor, Tensor]:
    """Return gain and offset, each (C, 1, 1), from reflectance to the input of the pretraining.

    That is (x - (mean - 2 std)) / (4 std) of x = reflectance * 10000, and 0 for unused bands.
    """
    mean, std = statistics
    gain, offset = [0.0] * len(bands), [0.0] * len(bands)
    for channels in assignment.groups.values():
        for channel, index in channels.items():
            row = CHANNELS.index(channel)
            gain[index] = 1e4 / (4 * std[row])
            offset[index] = -(mean[row] - 2 * std[row]) / (4 * std[row])
    return torch.tensor(gain)[:, None, None], torch.tensor(offset)[:, None, None]


def vegetation_index(red: Tensor, nir: Tensor) -> Tensor:
    """Compute the NDVI, (NIR - R) / (NIR + R), or 0 if the sum is 0."""
    total = nir + red
    return torch.where(total == 0, 0, (nir - red) / torch.where(total == 0, 1, total))
