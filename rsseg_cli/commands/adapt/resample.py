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

    Downsampling averages pixels, upsampling interpolates bilinearly.

    Args:
        opener: Opens the image.
        pair: A whole scene.
        gsd_m: Side of a pixel in metres.
        folder: Folder of the VRT; it must outlive the pair.

    Raises:
        RssegError: The pixel size is unknown, or only part of the scene is used.
    """
    with opener.scene(pair.image) as scene:
        scene_gsd_m = ground_size_m(scene)
    if scene_gsd_m is None:
        raise RssegError(
            "the pixel size in metres is unknown",
            where=str(pair.image),
            fix="a projected or geographic CRS, or no --gsd",
        )
    if pair.regions is not None or opener.reader.box or opener.reader.raw:
        raise RssegError(
            "only whole scenes can be resampled",
            where=str(pair.image),
            fix="whole scenes, or resample them beforehand (gdalwarp -tr)",
        )
    path = folder / f"{len(list(folder.iterdir()))}-{pair.image.stem}.vrt"
    with rasterio.open(pair.image.resolve()) as file:
        nodata = opener.reader.nodata if isinstance(opener.reader.nodata, float) else file.nodata
        size = [max(1, round(n * scene_gsd_m / gsd_m)) for n in (file.width, file.height)]
        scale = rasterio.Affine.scale(file.width / size[0], file.height / size[1])
        with WarpedVRT(
            file,
            crs=file.crs,
            transform=file.transform @ scale,
            width=size[0],
            height=size[1],
            resampling=Resampling.average if gsd_m > scene_gsd_m else Resampling.bilinear,
            src_nodata=nodata,
            nodata=nodata,
        ) as warped:
            rasterio.shutil.copy(warped, path, driver="VRT")
    return replace(pair, image=path, info=opener.info(path))
