"""Writer of a map that appears under its name only once it is complete.

Rows are written into parts (see `part_writer`). At the end a virtual raster of the parts is copied
to the output, which is then renamed. (A COG that is written directly is held in memory.)
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import rasterio
import rasterio.shutil

from rsseg_cli.errors import OutputExistsError, RssegError
from rsseg_cli.raster import sidecars
from rsseg_cli.raster.creation_options import CreationOptions
from rsseg_cli.raster.map_style import MapGrid, MapStyle
from rsseg_cli.raster.part_writer import PartWriter
from rsseg_cli.raster.parts import build_vrt, require_all_blocks
from rsseg_cli.raster.resume_state import ResumeState, read_resume_state, wait_for

DRAFT = "map.tif"
"""File name of the assembled map in the folder of its parts."""
THREADED_PX = 2**24
"""Largest map in pixels that is assembled with threads of GDAL. For larger maps the memory pools of
these threads would grow with each overview, while the model takes most of the time."""


class MapWriter(PartWriter):
    """Writer that begins a map, writes its parts, and assembles and publishes it.

    On exit the folder of the parts is removed.

    Args:
        path: The map.
        grid: Grid of the map.
        style: Meaning of its values.
        state: Parts of the map, and the values that it depends on.
        creation: Format of the file; by default a COG.
        overwrite: Replace an existing map and its sidecars.
        resume: Continue after the parts of an earlier run with the same state.
        keep: Keep the finished parts on exit after an exception, for `resume`.

    Raises:
        OutputExistsError: The map or a sidecar exists and `overwrite` is off.
        RssegError: The folder cannot be written, or the parts belong to another run.
    """

    def __init__(
        self,
        path: Path,
        grid: MapGrid,
        style: MapStyle,
        state: ResumeState,
        *,
        creation: CreationOptions | None = None,
        overwrite: bool = False,
        resume: bool = False,
        keep: bool = False,
    ) -> None:
        self._outputs = [path, *sidecar_paths(path, classes=bool(style.classes))]
        self._overwrite = overwrite
        self.check_outputs()
        self.grid, self.style = grid, style
        self._creation = creation or CreationOptions()
        self._resume, self._keep = resume, keep
        self._sidecars: dict[str, str] = {}
        super().__init__(path, len(style.bands), state)

    def _begin_map(self, state: ResumeState) -> None:
        begun = read_resume_state(self.path) if self._resume else None
        if begun is not None:
            begun.require_same(state, self.path)
            return
        shutil.rmtree(self._folder, ignore_errors=True)
        self._folder.mkdir(parents=True)
        state.write(self._folder)

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        super().__exit__(kind, *rest)
        self.find_finished()
        if not (self._keep and kind is not None and self.finished):
            shutil.rmtree(self._folder, ignore_errors=True)

    def check_outputs(self) -> None:
        """Check that neither the map nor a sidecar would be replaced, unless `overwrite` is set.

        Raises:
            OutputExistsError: One of them exists.
        """
        for path in self._outputs:
            check_output_path(path, self._overwrite)

    def discard_parts(self) -> None:
        """Remove the finished parts on exit, even with `keep`."""
        self._keep = False

    def wait_for_parts(self) -> None:
        """Wait until the parts of all processes are visible to this one."""
        with self._write_errors():
            wait_for([self._part_path(index) for index in range(len(self.parts))])
        self.find_finished()

    def assemble(self) -> Path:
        """Build the complete map in the folder of its parts, and return its path."""
        missing = len(self.parts) - len(self.finished)
        if missing or self._file is not None:
            raise ValueError(f"{missing} parts of {self.path} are not written")
        with self._write_errors():
            source, draft = self._folder / "map.vrt", self._folder / DRAFT
            parts = [(self._part_path(n).name, part) for n, part in enumerate(self.parts)]
            source.write_text(build_vrt(self.grid, self.style, parts), encoding="utf-8")
            small = self.grid.width * self.grid.height <= THREADED_PX
            options = self._creation.to_gdal(classes=bool(self.style.classes))
            with rasterio.Env(GDAL_NUM_THREADS="ALL_CPUS" if small else "1"):
                rasterio.shutil.copy(source, draft, driver=self._creation.driver, **options)
                require_all_blocks(draft)
            self._sidecars = self._describe(draft)
            for name, text in self._sidecars.items():
                (self._folder / name).write_text(text, encoding="utf-8")
        return draft

    def publish(self) -> list[Path]:
        """Rename the assembled map and its sidecars to their final paths, and return these."""
        with self._write_errors():
            for name in self._sidecars:
                (self._folder / name).replace(self.path.parent / name)
            (self._folder / DRAFT).replace(self.path)
        shutil.rmtree(self._folder, ignore_errors=True)
        return [self.path, *(self.path.parent / name for name in self._sidecars)]

    def _describe(self, draft: Path) -> dict[str, str]:
        """Return the texts of the sidecars by file name."""
        pam = draft.with_name(f"{draft.name}.aux.xml")
        existing = pam.read_text(encoding="utf-8") if pam.is_file() else None
        names, classes = [path.name for path in self._outputs[1:]], self.style.classes
        if not classes:
            return {names[0]: existing} if existing else {}
        item = sidecars.stac_item(self.path.name, self.grid, self.style)
        texts = (
            sidecars.pam_sidecar(classes, existing),
            sidecars.qgis_style(classes),
            json.dumps(item, indent=2),
        )
        return dict(zip(names, texts, strict=True))


def sidecar_paths(path: Path, *, classes: bool) -> list[Path]:
    """List the sidecars of a map: its metadata and, with classes, its style and STAC item."""
    names = [f"{path.name}.aux.xml"]
    if classes:
        names += [f"{path.stem}.qml", f"{path.stem}.json"]
    return [path.with_name(name) for name in names]


def check_output_path(path: Path, overwrite: bool) -> None:
    """Check that a file does not exist, or may be replaced.

    Raises:
        OutputExistsError: The file exists and `overwrite` is off.
        RssegError: The path is a folder.
    """
    if path.is_dir():
        raise RssegError("the output is a folder", where=str(path), fix="the path of a file in it")
    if path.exists() and not overwrite:
        raise OutputExistsError(
            "the output already exists", where=str(path), fix="--overwrite, or another -o"
        )
