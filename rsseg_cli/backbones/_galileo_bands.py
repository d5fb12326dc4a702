"""Which bands of an image make which of Galileo's groups, and in which units it wants them."""

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
"""Optical groups in token order, each Sentinel-2 band with its centre in nm."""
CHANNEL_ROWS = ("S1", *GROUPS, "NDVI")
"""Order of the learned channel embedding; S1 is radar, which has no wavelength and no part here."""
RED_NM = 665.0


def tolerance_nm(centre: float) -> float:
    """Return the largest distance at which a band replaces a Sentinel-2 band."""
    return 45.0 if centre < 1000 else 100.0


@dataclass(frozen=True)
class Recipe:
    """How an image's bands become the inputs of Galileo's groups."""

    groups: dict[str, dict[str, int]]
    """Optical groups that are present: for each of their channels an image band."""
    ndvi: tuple[int, int] | None
    """Red and near-infrared image bands, if both are there."""

    @property
    def present(self) -> list[str]:
        """List the groups that get tokens, in token order."""
        return [*self.groups, *(["NDVI"] if self.ndvi else [])]


def plan(bands: Bands) -> Recipe:
    """Assign each image band to the Sentinel-2 band nearest in wavelength.

    A group counts only when it is complete; bands of incomplete groups may move to another group.

    Raises:
        RssegError: A band has no wavelength or lies outside every group, or no group is complete.

    Warns:
        RssegWarning: A band is left without use, because its group lacks others or it has a double.
    """
    _require_wavelengths(bands)
    left = dict(GROUPS)
    while True:
        taken = _nearest(bands, left)
        partial = [
            name
            for name, slots in left.items()
            if any(slot in taken for slot in slots) and not all(slot in taken for slot in slots)
        ]
        if not partial:
            break
        for name in partial:
            del left[name]
    groups = {
        name: {slot: taken[slot] for slot in slots}
        for name, slots in left.items()
        if all(slot in taken for slot in slots)
    }
    red, nir = bands.nearest(RED_NM, tolerance_nm=45.0), taken.get("B8", taken.get("B8A"))
    ndvi = None if red is None or nir is None else (red, nir)
    recipe = Recipe(groups, ndvi)
    if not groups:
        raise RssegError(
            f"the bands {', '.join(bands.names)} complete no group of Galileo's",
            where="dataset.yaml: bands",
            fix="give blue, green and red, or near infrared, or both short-wave infrared bands",
        )
    _warn_of_unused(bands, recipe)
    return recipe


def _require_wavelengths(bands: Bands) -> None:
    for name, centre in zip(bands.names, bands.wavelengths_nm, strict=True):
        if centre is None:
            raise RssegError(
                f"band {name} has no wavelength, by which Galileo finds its band groups",
                where="dataset.yaml: bands",
                fix=f"give {name} a wavelength_nm, or leave it out of `bands`",
            )
        if not _candidates(centre, GROUPS):
            raise RssegError(
                f"band {name} at {centre:g} nm lies outside every band group of Galileo's",
                where="dataset.yaml: bands",
                fix=f"leave {name} out of `bands`",
            )


def _candidates(centre: float, groups: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """List the Sentinel-2 bands that a centre could stand for, with their distance."""
    return {
        slot: abs(centre - nominal)
        for slots in groups.values()
        for slot, nominal in slots.items()
        if abs(centre - nominal) <= tolerance_nm(nominal)
    }


def _nearest(bands: Bands, groups: Mapping[str, Mapping[str, float]]) -> dict[str, int]:
    """Match image bands and Sentinel-2 bands one to one, nearest pairs first."""
    wishes = []
    for index, centre in enumerate(bands.wavelengths_nm):
        candidates = _candidates(centre, groups) if centre is not None else {}
        if candidates:
            slot = min(candidates, key=candidates.__getitem__)
            wishes.append((candidates[slot], index, slot))
    taken: dict[str, int] = {}
    for _, index, slot in sorted(wishes):
        taken.setdefault(slot, index)
    return taken


def _warn_of_unused(bands: Bands, recipe: Recipe) -> None:
    used = {index for slots in recipe.groups.values() for index in slots.values()}
    used.update(recipe.ndvi or ())
    unused = [name for index, name in enumerate(bands.names) if index not in used]
    if unused:
        warnings.warn(
            f"Galileo has no use for {', '.join(unused)}: no complete group, or taken already",
            RssegWarning,
            stacklevel=2,
        )


def reflectance(bands: Bands) -> tuple[Tensor, Tensor]:
    """Return gain and offset, each (C, 1, 1), from standardised values to reflectance.

    Raises:
        RssegError: The data have no known scale.
    """
    if bands.scale is None:
        raise RssegError(
            "Galileo wants reflectance, and these bands do not say what their values mean",
            where="dataset.yaml: scale",
            fix="scale: 1.0e-4 for reflectance x 10000, scale: 1.0 for reflectance itself",
        )
    gain = torch.tensor(bands.std) * bands.scale
    offset = torch.tensor(bands.mean) * bands.scale
    return gain[:, None, None], offset[:, None, None]


def normalisation(
    recipe: Recipe, bands: Bands, statistics: ChannelStatistics
) -> tuple[Tensor, Tensor]:
    """Return gain and offset, each (C, 1, 1), from reflectance to what the authors fed.

    That is (x - (mean - 2 std)) / (4 std) of x = reflectance * 10000; bands without use get 0.
    """
    mean, std = statistics
    gain, offset = [0.0] * len(bands), [0.0] * len(bands)
    for slots in recipe.groups.values():
        for slot, index in slots.items():
            row = CHANNELS.index(slot)
            gain[index] = 1e4 / (4 * std[row])
            offset[index] = -(mean[row] - 2 * std[row]) / (4 * std[row])
    return torch.tensor(gain)[:, None, None], torch.tensor(offset)[:, None, None]


def vegetation_index(red: Tensor, nir: Tensor) -> Tensor:
    """Compute (NIR - R) / (NIR + R), 0 where both are 0."""
    total = nir + red
    return torch.where(total == 0, 0, (nir - red) / torch.where(total == 0, 1, total))
