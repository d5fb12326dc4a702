"""Description of the channels of an image."""

from __future__ import annotations

import math

from rsseg_cli.settings import Strict


class Bands(Strict):
    """Names, wavelengths and statistics of the C bands; stored in every model file.

    All sequences have length C. `mean` and `std` are in the units of the file's values.
    """

    names: tuple[str, ...]
    wavelengths_nm: tuple[float | None, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    dtype: str
    scale: float | None = None
    """Reflectance = stored value * scale, e.g. 1.0e-4; None if the values are not reflectance."""
    gsd_m: float | None = None
    """Ground sampling distance in metres, if known."""
    bandwidths_nm: tuple[float | None, ...] = ()
    """Width of each band; empty if the dataset lists none."""

    def __len__(self) -> int:
        """Return the number of bands C."""
        return len(self.names)

    def nearest(self, wavelength_nm: float, *, tolerance_nm: float) -> int | None:
        """Return the index of the band nearest to a wavelength; None if none is within reach."""
        distances = [
            (abs(centre - wavelength_nm), index)
            for index, centre in enumerate(self.wavelengths_nm)
            if centre is not None
        ]
        distance, index = min(distances, default=(math.inf, 0))
        return index if distance <= tolerance_nm else None

    def rgb(self) -> tuple[int, int, int] | None:
        """Return the indices of the red, green and blue bands; None if one is absent."""
        red, green, blue = (self.nearest(nm, tolerance_nm=45.0) for nm in (660.0, 560.0, 485.0))
        if red is None or green is None or blue is None or len({red, green, blue}) < 3:
            return None
        return red, green, blue
