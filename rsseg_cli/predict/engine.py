"""Maps a scene: plans it, sends it through the pipeline, and lets whole maps appear."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import astuple, dataclass, field
from pathlib import Path

import rasterio
import torch

from rsseg_cli.errors import UnreadableError
from rsseg_cli.memory import peak_rss_mb
from rsseg_cli.predict.batch import even_batch, fastest_batch
from rsseg_cli.predict.outputs import Outputs, Progress, SceneResult
from rsseg_cli.predict.pipeline import Infer, Pipeline
from rsseg_cli.predict.plan import CACHE_MB, MIB, Plan, Tiling, plan_scene, return_memory
from rsseg_cli.predict.team import Team
from rsseg_cli.raster.aoi import Area
from rsseg_cli.raster.creation_options import CreationOptions
from rsseg_cli.raster.grid import Window
from rsseg_cli.raster.map_style import MapGrid
from rsseg_cli.raster.part_writer import PartWriter
from rsseg_cli.raster.polygonize import draw_polygons
from rsseg_cli.raster.resume_state import ResumeState, read_resume_state
from rsseg_cli.raster.scene import Scene
from rsseg_cli.raster.write import MapWriter
from rsseg_cli.settings import Json


def predict_scene(
    scene: Scene,
    infer: Infer,
    outputs: Outputs,
    *,
    tiling: Tiling | None = None,
    device: torch.device | None = None,
    area: Area | None = None,
    journal: Mapping[str, str] | None = None,
    resume: bool = False,
    progress: Progress | None = None,
    team: Team | None = None,
) -> SceneResult:
    """Map one scene.

    Args:
        scene: The scene; the caller closes it.
        infer: The model.
        outputs: The maps to make. None of them is there before all are whole.
        tiling: How the scene is cut.
        device: Where `infer` works; the CPU when None.
        area: What is wanted of the scene; the rest is nodata and costs nothing.
        journal: What the result depends on, for `resume`. When given, the finished parts of a
            failed run stay on disk.
        resume: Continue what a run with the same journal has left.
        progress: Hears how far this process is with its share.
        team: Processes that make this call together. Each maps a share; the leading one then puts
            the maps together, while the others return before the maps are there.

    Raises:
        OutputExistsError: An output is there and `overwrite` is not set.
        UnreadableError: The scene breaks off. Whatever else a stage raises is raised here; no
            map is left half-written.
    """
    started = time.perf_counter()
    job = _Job(
        scene, infer, outputs, tiling or Tiling(), device or torch.device("cpu"), area,
        journal, resume, team or Team(),
    )  # fmt: skip
    with ExitStack() as stack:
        stack.enter_context(rasterio.Env(GDAL_CACHEMAX=CACHE_MB * MIB))
        pipeline = job.run(stack, progress)
        done = sum(job.team.gather(pipeline.done))
        peak = max(job.team.gather(peak_rss_mb()))
        job.team.tell(job.publish)
    seconds = time.perf_counter() - started
    return SceneResult(
        input=scene.path,
        output=str(outputs.map),
        width=scene.width,
        height=scene.height,
        seconds=seconds,
        mpx_per_s=done / 1e6 / seconds,
        peak_rss_mb=max(peak, peak_rss_mb()),
        wait=pipeline.clock.shares(),
    )


@dataclass
class _Job:
    """What one call has to do."""

    scene: Scene
    infer: Infer
    outputs: Outputs
    tiling: Tiling
    device: torch.device
    area: Area | None
    journal: Mapping[str, str] | None
    resume: bool
    team: Team
    writers: list[PartWriter] = field(default_factory=list)
    maps: list[MapWriter] = field(default_factory=list)
    """The writers of the leading process, which assemble and publish the maps."""

    def run(self, stack: ExitStack, progress: Progress | None) -> Pipeline:
        """Make the parts that fall to this process; returns when all processes have."""
        team = self.team
        start = team.tell(lambda: self._begin(stack))
        plan = self._plan([Window(*numbers) for numbers in start["parts"]])
        try:
            with team.agreed():
                if not team.leads:
                    self._join_maps(stack, self._state(plan.parts, start["batch"]))
                pipeline = Pipeline(
                    self.scene,
                    self.infer,
                    [made.product for made in self.outputs.made()],
                    self.writers,
                    plan,
                    plan.share(set(start["finished"]), team.rank, team.size),
                    start["batch"],
                    self.tiling.readers,
                    self.device,
                    self.area,
                    progress,
                )
                pipeline.run()
        except UnreadableError:
            if Path(self.scene.path).exists():  # else a server may be back later
                for writer in self.maps:
                    writer.forget()
            raise
        return pipeline

    def _begin(self, stack: ExitStack) -> Json:
        """Decide all that processes must agree on, and begin the maps."""
        begun = read_resume_state(self.outputs.map) if self.resume else None
        plan = self._plan(begun.parts if begun else None)
        batch = begun.batch if begun else self._choose_batch(plan)
        overwrite = self.outputs.overwrite or begun is not None
        self._begin_maps(stack, self._state(plan.parts, batch), overwrite)
        finished = set.intersection(*(writer.finished for writer in self.writers))
        return {
            "parts": [list(astuple(part)) for part in plan.parts],
            "batch": batch,
            "finished": list[Json](sorted(finished)),
        }

    def _plan(self, begun: Sequence[Window] | None) -> Plan:
        return plan_scene(
            self.scene,
            self.tiling,
            classes=len(self.outputs.classes),
            bands=self.outputs.bands,
            box=None if self.area is None else self.area.box,
            begun=begun,
            processes=self.team.size,
        )

    def _choose_batch(self, plan: Plan) -> int:
        """Choose how many tiles the model gets at a time, if need be by trying."""
        batch, most, tile = self.tiling.batch, self.tiling.most, self.tiling.tile
        if most is None:
            return even_batch(plan.tiles, batch)
        part = plan.parts[len(plan.parts) // 2]
        middle = Window(part.x + part.width // 2, part.y + part.height // 2, tile, tile)
        samples = torch.from_numpy(self.scene.read(middle)[0]).to(self.device)
        with torch.inference_mode():
            return fastest_batch(self.infer, samples, batch, most, plan.tiles)

    def _state(self, parts: Sequence[Window], batch: int) -> ResumeState:
        return ResumeState(tuple(parts), batch, dict(self.journal or {}))

    def _begin_maps(self, stack: ExitStack, state: ResumeState, overwrite: bool) -> None:
        """Open the writers of the leading process."""
        scene = self.scene
        grid = MapGrid(
            scene.width, scene.height, scene.crs, scene.transform, scene.control, scene.acquired
        )
        for made in self.outputs.made():
            writer = MapWriter(
                made.path,
                grid,
                made.look,
                state,
                creation=CreationOptions(self.outputs.driver, self.outputs.options),
                overwrite=overwrite,
                resume=self.resume,
                keep=self.journal is not None,
            )
            self.maps.append(stack.enter_context(writer))
        self.writers += self.maps

    def _join_maps(self, stack: ExitStack, state: ResumeState) -> None:
        """Open the writers of another process, which only write parts."""
        for made in self.outputs.made():
            writer = PartWriter(made.path, len(made.look.bands), state)
            self.writers.append(stack.enter_context(writer))

    def publish(self) -> None:
        """Assemble all maps, and only then publish them, the class map last."""
        if self.team.size > 1:
            for writer in self.maps:
                writer.await_others()
        pairs = list(zip(self.outputs.made(), self.maps, strict=True))
        drafts = {}
        for made, writer in pairs:
            return_memory()
            drafts[made.kind] = writer.assemble()
        wanted = self.outputs.polygons
        if wanted is not None:
            draw_polygons(
                drafts["map"],
                wanted.path,
                self.outputs.classes,
                confidence=drafts["confidence"],
                sieve=wanted.sieve,
                simplify=wanted.simplify,
            )
        for made, writer in pairs:
            if made.shown:
                writer.publish()
