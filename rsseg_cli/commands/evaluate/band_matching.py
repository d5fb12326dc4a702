"""Matches the bands and units of a dataset with those of a model."""

from __future__ import annotations

from dataclasses import replace

from rsseg_cli.contract import Bands
from rsseg_cli.data.pair import Opener
from rsseg_cli.data.source import Source
from rsseg_cli.data.spec.dataset_spec import BandSpec
from rsseg_cli.errors import RssegError
from rsseg_cli.number_format import counted

NEAR_NM = 60.0
"""Largest distance of the centre wavelengths of two bands that count as the same."""


def match_bands(model: Bands, source: Source) -> Opener:
    """Return an opener that reads a dataset's files with the bands of a model.

    A band is matched by name, else by wavelength.

    Raises:
        RssegError: The dataset lacks one of the bands.
    """
    opener = source.opener
    available = list(zip(source.spec.bands, opener.bands, strict=True))
    file_bands = []
    for name, wavelength in zip(model.names, model.wavelengths_nm, strict=True):
        named = [file_band for band, file_band in available if band.name == name]
        near = [file_band for band, file_band in available if _is_near(band, wavelength)]
        if not named and not near:
            raise RssegError(
                f"{source.spec.name} has no band {name} "
                f"({' '.join(band.name for band, _ in available)})",
                where=f"{source.spec.name}, bands of the model: {' '.join(model.names)}",
                fix="the same names in both dataset.yaml, or wavelength_nm of the bands",
            )
        file_bands.append((named or near)[0])
    return replace(opener, bands=tuple(file_bands))


def _is_near(band: BandSpec, wavelength_nm: float | None) -> bool:
    return (
        wavelength_nm is not None
        and band.wavelength_nm is not None
        and abs(band.wavelength_nm - wavelength_nm) < NEAR_NM
    )


def require_band_count(model: Bands, opener: Opener, source: Source) -> None:
    """Raise an error unless a dataset has as many bands as the model."""
    if len(opener.bands) != len(model):
        raise RssegError(
            f"{source.spec.name} has {counted(len(opener.bands), 'band')}, the model reads "
            f"{len(model)}",
            where=source.spec.name,
            fix=f"bands of the model: {' '.join(model.names)}",
        )


def unit_scale(model: float | None, data: float | None) -> float:
    """Return the factor from stored values of a dataset to those that a model was fitted on.

    Both scales are physical units per stored unit; the factor is 1 if one of them is unknown.
    """
    return 1.0 if model is None or data is None else data / model
