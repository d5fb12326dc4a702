"""Resamples scenes to another pixel size through small VRT files."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import rasterio
import rasterio.shutil
from rasterio.enums import Resampling
from rasterio.vrt import WarpedVRT

from rsseg_cli.data.infer.infer_spec import ground_size_m
from rsseg_cli.data.pair import Opener, Pair
from rsseg_cli.errors import RssegError


def resampled(opener: Opener, pair: Pair, gsd_m: float, folder: Path) -> Pair:
    """Return a pair whose image is a VRT with pixels of `gsd_m` metres.

    Coarser pixels are averages, finer ones are interpolated bilinearly.

    Args:
        opener: Opens the image.
        pair: The scene, whole.
        gsd_m: Side of a pixel in metres.
        folder: Folder of the VRT; it must outlive the pair.

    Raises:
        RssegError: The pixel size is unknown, or only part of the scene is used.
    """
    with opener.scene(pair.image) as scene:
        own = ground_size_m(scene)
    if own is None:
        raise RssegError(
            "the pixel size in metres is unknown",
            where=str(pair.image),
            fix="a projected CRS (gdalwarp -t_srs), or no --gsd",
        )
    if pair.regions is not None or opener.reader.box or opener.reader.raw:
        raise RssegError(
            "scenes that are used in part cannot be resampled",
            where=str(pair.image),
            fix="whole scenes, or resample them before (gdalwarp -tr)",
        )
    path = folder / f"{len(list(folder.iterdir()))}-{pair.image.stem}.vrt"
    nodata = opener.reader.nodata if isinstance(opener.reader.nodata, float) else None
    with rasterio.open(pair.image.resolve()) as file:
        size = [max(1, round(n * own / gsd_m)) for n in (file.width, file.height)]
        scale = rasterio.Affine.scale(file.width / size[0], file.height / size[1])
        with WarpedVRT(
            file,
            crs=file.crs,
            transform=file.transform @ scale,
            width=size[0],
            height=size[1],
            resampling=Resampling.average if gsd_m > own else Resampling.bilinear,
            src_nodata=file.nodata if nodata is None else nodata,
            nodata=file.nodata if nodata is None else nodata,
        ) as warped:
            rasterio.shutil.copy(warped, path, driver="VRT")
    return replace(pair, image=path, info=opener.info(path))
