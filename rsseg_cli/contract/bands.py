"""What the channels of an image are."""

from __future__ import annotations

from rsseg_cli.settings import Strict


class Bands(Strict):
    """What the channels of an image are; stored in every model file and checked at `predict`.

    All sequences have length C. `mean` and `std` are in stored units (what the file holds).
    """

    names: tuple[str, ...]
    wavelengths_nm: tuple[float | None, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    dtype: str
    scale: float | None = None
    """Reflectance = stored value * scale, e.g. 1.0e-4; None when values are no reflectance."""
    gsd_m: float | None = None
    """Size of a pixel on the ground in metres, where known."""
    bandwidths_nm: tuple[float | None, ...] = ()
    """Width of each band, where the dataset says it; empty where it says none."""

    def __len__(self) -> int:
        """Number of bands C."""
        return len(self.names)

    def nearest(self, wavelength_nm: float, *, tolerance_nm: float) -> int | None:
        """Return the band whose centre is nearest to a wavelength, None if it is too far."""
        distances = [
            (abs(centre - wavelength_nm), index)
            for index, centre in enumerate(self.wavelengths_nm)
            if centre is not None
        ]
        if not distances or min(distances)[0] > tolerance_nm:
            return None
        return min(distances)[1]

    def rgb(self) -> tuple[int, int, int] | None:
        """Return the bands that show red, green and blue, None if one is absent."""
        found = [self.nearest(centre, tolerance_nm=45.0) for centre in (660.0, 560.0, 485.0)]
        red, green, blue = found
        if red is None or green is None or blue is None or len({red, green, blue}) < 3:
            return None
        return red, green, blue
