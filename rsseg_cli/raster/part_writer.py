"""Writer of rows of pixels into the parts of a map.

A part is a small tiled GeoTIFF in a hidden folder beside the output that is renamed once it is
complete. A killed run thus leaves complete parts only, after which `--resume` continues.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path
from typing import Self

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio.errors import RasterioError
from rasterio.windows import Window as FileWindow

from rsseg_cli.atomic_write import write_errors
from rsseg_cli.raster.creation_options import BLOCK, compression
from rsseg_cli.raster.parts import require_all_blocks
from rsseg_cli.raster.resume_state import (
    STATE_FILE,
    ResumeState,
    parts_folder,
    read_resume_state,
    wait_for,
)


class PartWriter:
    """Writer of uint8 rows, nodata 255, into the parts of a map that another process has begun.

    It is a context manager, for use in one thread.

    Args:
        path: The map.
        bands: Number of bands.
        state: State with which the map was begun. Its parts cover the map, and have the width of
            the rows passed to `write`.

    Raises:
        RssegError: The folder cannot be written, or the parts belong to another run.
    """

    def __init__(self, path: Path, bands: int, state: ResumeState) -> None:
        self.path, self.parts = path, state.parts
        self.finished: set[int] = set()
        """Indices of the complete parts."""
        self._folder = parts_folder(path)
        self._index = {(part.x, part.y): index for index, part in enumerate(self.parts)}
        self._file: rasterio.io.DatasetWriter | None = None
        self._part = 0
        self._buffer = np.empty((bands, BLOCK, 0), np.uint8)
        self._filled = 0
        with self._write_errors():
            self._begin_map(state)
        self.find_finished()

    def _begin_map(self, state: ResumeState) -> None:
        """Check that the map was begun with `state`."""
        wait_for([self._folder / STATE_FILE])
        begun = read_resume_state(self.path)
        assert begun is not None
        begun.require_same(state, self.path)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def find_finished(self) -> None:
        """Update `finished` with the complete parts of all processes."""
        self.finished = {n for n in range(len(self.parts)) if self._part_path(n).is_file()}

    def write(self, x: int, y: int, rows: NDArray[np.uint8]) -> None:
        """Write the next rows (bands, h, w) of the part that begins or continues at (x, y)."""
        with self._write_errors():
            while rows.shape[1]:
                if self._file is None:
                    self._open_part(self._index[x, y])
                part = self.parts[self._part]
                count = min(rows.shape[1], BLOCK - self._filled, part.bottom - y)
                self._buffer[:, self._filled : self._filled + count] = rows[:, :count]
                self._filled, y, rows = self._filled + count, y + count, rows[:, count:]
                if self._filled == BLOCK or y == part.bottom:
                    self._flush(y - self._filled - part.y)
                if y == part.bottom:
                    self._close_part()

    def _open_part(self, index: int) -> None:
        part, bands = self.parts[index], len(self._buffer)
        self._part, self._filled = index, 0
        if self._buffer.shape[2] != part.width:
            self._buffer = np.empty((bands, BLOCK, part.width), np.uint8)
        # This transform only avoids a warning; that of the map is in the VRT.
        self._file = rasterio.open(
            self._part_path(index).with_suffix(".tmp"),
            "w",
            driver="GTiff",
            transform=rasterio.Affine(2, 0, part.x, 0, -2, part.y),
            width=part.width,
            height=part.height,
            count=bands,
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
        window = FileWindow(0, y, self._buffer.shape[2], self._filled)
        self._file.write(self._buffer[:, : self._filled], window=window)
        self._filled = 0

    def _close_part(self) -> None:
        assert self._file is not None
        self._file.close()
        self._file = None
        final = self._part_path(self._part)
        draft = final.with_suffix(".tmp")
        require_all_blocks(draft)
        draft.replace(final)
        self.finished.add(self._part)

    def _part_path(self, index: int) -> Path:
        return self._folder / f"{index:06d}.tif"

    def _write_errors(self) -> AbstractContextManager[None]:
        return write_errors("the map", self.path, kinds=(OSError, RasterioError))
