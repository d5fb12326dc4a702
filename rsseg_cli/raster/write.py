"""Writes a map row by row and lets it appear under its name only once it is whole.

Finished rows go into *parts*: small tiled GeoTIFFs in a hidden folder beside the output, each
renamed when it is complete. They are the journal too: what a killed run leaves is whole parts. At
the end one virtual raster over the parts is copied into the output (a COG built directly would be
held in RAM), which is then renamed.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import rasterio
import rasterio.shutil
from numpy.typing import NDArray
from rasterio.errors import RasterioError
from rasterio.windows import Window as FileWindow

from rsseg_cli.errors import OutputExistsError, RssegError
from rsseg_cli.raster import sidecars
from rsseg_cli.raster.grid import Window
from rsseg_cli.raster.parts import (
    BLOCK,
    Look,
    MapGrid,
    compression,
    require_whole,
    virtual_map,
)
from rsseg_cli.raster.resume_state import JOURNAL, Begun, parts_folder, read_begun, wait_for

DRAFT = "map.tif"
"""Name of the whole map in the folder of its parts, before it appears."""
THREADED_PX = 2**24
"""Pixels up to which GDAL's threads put a map together. For larger ones, memory would be scattered
over the pools of all threads, more with each overview, while the model takes most of the time."""


class MapWriter:
    """Writes uint8 rows, nodata 255, as a map on the grid of a scene.

    Use it in one thread, as a context manager: leaving it by an error removes all traces, unless
    `keep` is set. Nothing has the final name before `finish`.

    Args:
        path: The map.
        grid: Its grid.
        look: What it shows.
        parts: Windows that together cover the grid, each as wide as what `write` gets there.
        driver: `COG` or `GTiff` (tiled, without overviews).
        options: Further creation options of the driver.
        overwrite: Replace an existing map.
        journal: What the map depends on; a run continues another only if this is equal.
        resume: Continue from the parts that an earlier run left.
        keep: Leave finished parts for `resume` when the run fails.
        join: Write parts of a map that another process has begun, assembles and lets appear.
        batch: Tiles per call of the model, which a run that goes on should keep; only remembered.

    Raises:
        OutputExistsError: The map is there and `overwrite` is not set.
        RssegError: The folder cannot be written, or the parts are of another run.
    """

    def __init__(
        self,
        path: Path,
        grid: MapGrid,
        look: Look,
        parts: Sequence[Window],
        *,
        driver: str = "COG",
        options: Mapping[str, str] | None = None,
        overwrite: bool = False,
        journal: Mapping[str, str] | None = None,
        resume: bool = False,
        keep: bool = False,
        join: bool = False,
        batch: int = 1,
    ) -> None:
        refuse_existing(path, overwrite or join)
        self.path, self.grid, self.look, self.parts = path, grid, look, tuple(parts)
        self.finished: set[int] = set()
        """Numbers of the parts that are complete."""
        self._driver, self._options = driver, dict(options or {})
        self._keep, self._join = keep, join
        self._folder = parts_folder(path)
        self._numbers = {(part.x, part.y): number for number, part in enumerate(parts)}
        self._file: rasterio.io.DatasetWriter | None = None
        self._part = 0
        self._buffer = np.empty((len(look.bands), BLOCK, 0), np.uint8)
        self._filled = 0
        self._beside: dict[str, str] = {}
        with _writable(path):
            if join:
                wait_for([self._folder / JOURNAL])
            before = read_begun(path) if resume or join else None
            if before is None:
                self._begin_anew(Begun(self.parts, batch, dict(journal or {})))
            else:
                before.refuse_changes(dict(journal or {}), self.parts, path)
        self.look_again()

    def _begin_anew(self, begun: Begun) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)
        self._folder.mkdir(parents=True)
        begun.write(self._folder)

    def __enter__(self) -> MapWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None
        if self._join:
            return
        self.look_again()
        if not (self._keep and kind is not None and self.finished):
            shutil.rmtree(self._folder, ignore_errors=True)

    def look_again(self) -> None:
        """Find the parts that are complete, whoever wrote them."""
        self.finished = {n for n in range(len(self.parts)) if self._part_path(n).is_file()}

    def await_others(self) -> None:
        """Wait until the parts that other processes have finished are seen here, too."""
        with _writable(self.path):
            wait_for([self._part_path(number) for number in range(len(self.parts))])
        self.look_again()

    def _part_path(self, number: int) -> Path:
        return self._folder / f"{number:06d}.tif"

    def write(self, x: int, y: int, rows: NDArray[np.uint8]) -> None:
        """Add the next rows (bands, h, w) of the part that begins or goes on at (x, y)."""
        with _writable(self.path):
            while rows.shape[1]:
                if self._file is None:
                    self._begin(self._numbers[x, y])
                part = self.parts[self._part]
                count = min(rows.shape[1], BLOCK - self._filled, part.bottom - y)
                self._buffer[:, self._filled : self._filled + count] = rows[:, :count]
                self._filled, y, rows = self._filled + count, y + count, rows[:, count:]
                if self._filled == BLOCK or y == part.bottom:
                    self._flush(y - self._filled - part.y)
                if y == part.bottom:
                    self._end()

    def _begin(self, number: int) -> None:
        part = self.parts[number]
        self._part, self._filled = number, 0
        if self._buffer.shape[2] != part.width:
            self._buffer = np.empty((len(self.look.bands), BLOCK, part.width), np.uint8)
        # A place, whichever, spares a warning about having none; what counts is in the virtual map.
        self._file = rasterio.open(
            self._part_path(number).with_suffix(".tmp"),
            "w",
            driver="GTiff",
            transform=rasterio.Affine(2, 0, part.x, 0, -2, part.y),
            width=part.width,
            height=part.height,
            count=len(self.look.bands),
            dtype="uint8",
            tiled=True,
            blockxsize=BLOCK,
            blockysize=BLOCK,
            interleave="band",
            bigtiff="IF_SAFER",
            **compression("GTiff"),
        )

    def _flush(self, y: int) -> None:
        assert self._file is not None
        place = FileWindow(0, y, self._buffer.shape[2], self._filled)
        self._file.write(self._buffer[:, : self._filled], window=place)
        self._filled = 0

    def _end(self) -> None:
        assert self._file is not None
        self._file.close()
        self._file = None
        final = self._part_path(self._part)
        draft = final.with_suffix(".tmp")
        require_whole(draft)
        draft.replace(final)
        self.finished.add(self._part)

    def forget(self) -> None:
        """Leave nothing to resume from, whatever happens."""
        self._keep = False

    def finish(self) -> list[Path]:
        """Put the parts together and let the map appear, with what describes it.

        Returns:
            The map first, then the files beside it.
        """
        self.assemble()
        return self.appear()

    def assemble(self) -> Path:
        """Put the parts together; nothing appears yet.

        Returns:
            Where the whole map waits.
        """
        missing = len(self.parts) - len(self.finished)
        if missing or self._file is not None:
            raise ValueError(f"{missing} parts of {self.path} were never written")
        with _writable(self.path):
            source, draft = self._folder / "map.vrt", self._folder / DRAFT
            pieces = [(self._part_path(n).name, part) for n, part in enumerate(self.parts)]
            source.write_text(virtual_map(self.grid, self.look, pieces))
            small = self.grid.width * self.grid.height <= THREADED_PX
            with rasterio.Env(GDAL_NUM_THREADS="ALL_CPUS" if small else "1"):
                rasterio.shutil.copy(source, draft, driver=self._driver, **self._creation())
                require_whole(draft)
            self._beside = self._describe(draft)
            for name, text in self._beside.items():
                (self._folder / name).write_text(text)
        return draft

    def appear(self) -> list[Path]:
        """Give an assembled map and the files beside it their names.

        Returns:
            The map first, then the files beside it.
        """
        with _writable(self.path):
            for name in self._beside:
                (self._folder / name).replace(self.path.parent / name)
            (self._folder / DRAFT).replace(self.path)
        shutil.rmtree(self._folder, ignore_errors=True)
        return [self.path, *(self.path.parent / name for name in self._beside)]

    def _creation(self) -> dict[str, str]:
        options = {"BIGTIFF": "IF_SAFER", **compression(self._driver)}
        if self._driver == "COG":
            # A mean of class numbers is no class.
            resampling = "NEAREST" if self.look.classes else "AVERAGE"
            options |= {"BLOCKSIZE": str(BLOCK), "OVERVIEW_RESAMPLING": resampling}
        else:
            options |= {"TILED": "YES", "BLOCKXSIZE": str(BLOCK), "BLOCKYSIZE": str(BLOCK)}
        return options | {key.upper(): value for key, value in self._options.items()}

    def _describe(self, draft: Path) -> dict[str, str]:
        """Write the texts of the files beside a class map, by their names."""
        pam = draft.with_name(f"{draft.name}.aux.xml")
        existing = pam.read_text() if pam.is_file() else None
        name, classes = self.path.name, self.look.classes
        if not classes:
            return {f"{name}.aux.xml": existing} if existing else {}
        item = sidecars.stac_item(
            name,
            width=self.grid.width,
            height=self.grid.height,
            crs=self.grid.crs,
            transform=self.grid.transform,
            classes=classes,
            tags=self.look.tags,
        )
        return {
            f"{name}.aux.xml": sidecars.pam_sidecar(classes, existing),
            f"{self.path.stem}.qml": sidecars.qgis_style(classes),
            f"{self.path.stem}.json": json.dumps(item, indent=2),
        }


def refuse_existing(path: Path, overwrite: bool) -> None:
    """Refuse to replace a map that nobody said could go.

    Raises:
        OutputExistsError: It is there.
    """
    if path.is_dir():
        raise RssegError("the output is a folder", where=str(path), fix="name a file in it")
    if path.exists() and not overwrite:
        raise OutputExistsError(
            "the output is there already", where=str(path), fix="--overwrite, or another -o"
        )


@contextmanager
def _writable(path: Path) -> Iterator[None]:
    """Turn what goes wrong with the disk into an error that names the map."""
    try:
        yield
    except (OSError, RasterioError) as error:
        reason = str(error.__cause__ or error).splitlines()[0]
        raise RssegError(
            f"the map cannot be written ({reason})",
            where=str(path),
            fix="free space, or write permission, in that folder",
        ) from error
