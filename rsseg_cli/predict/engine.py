"""Maps a scene: plans it, runs the pipeline, assembles the maps and publishes them."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import ExitStack, nullcontext
from pathlib import Path

import rasterio
import torch

from rsseg_cli import distributed
from rsseg_cli.errors import UnreadableError
from rsseg_cli.memory import peak_rss_mb
from rsseg_cli.predict.batch import even_batch, fastest_batch
from rsseg_cli.predict.outputs import Progress, SceneResult
from rsseg_cli.predict.pipeline import Pipeline, SceneTask
from rsseg_cli.predict.plan import CACHE_MB, MIB, Plan, plan_scene, return_memory
from rsseg_cli.raster.creation_options import CreationOptions
from rsseg_cli.raster.grid import Window
from rsseg_cli.raster.map_style import MapGrid
from rsseg_cli.raster.part_writer import PartWriter
from rsseg_cli.raster.polygonize import write_polygons
from rsseg_cli.raster.resume_state import ResumeState, read_resume_state
from rsseg_cli.raster.write import MapWriter


def predict_scene(
    task: SceneTask, *, together: bool = False, progress: Progress | None = None
) -> SceneResult:
    """Map one scene: all of its maps are published, or none.

    Args:
        task: The scene, the model and the maps.
        together: Whether all ranks make this call. Each maps some parts of the scene, then rank 0
            assembles and publishes the maps. Otherwise this process works alone.
        progress: Called with the number of pixels that this process has finished.

    Raises:
        OutputExistsError: An output exists and `overwrite` is not set.
        UnreadableError: The scene is truncated.
        RssegError: Any other error of a stage, on any rank. No map is half-written.
    """
    with nullcontext() if together else distributed.alone():
        started = time.perf_counter()
        with rasterio.Env(GDAL_CACHEMAX=CACHE_MB * MIB), ExitStack() as stack:
            pipeline, maps = _map_parts(task, stack, progress)
            done = sum(distributed.gather(pipeline.done))
            peak = max(distributed.gather(peak_rss_mb()))
            with distributed.raise_together():
                if distributed.is_main():
                    _publish(task, maps)
    seconds = time.perf_counter() - started
    return SceneResult(
        input=task.scene.path,
        output=str(task.outputs.map),
        width=task.scene.width,
        height=task.scene.height,
        seconds=seconds,
        mpx_per_s=done / 1e6 / seconds,
        peak_rss_mb=max(peak, peak_rss_mb()),
        wait=pipeline.clock.shares(),
    )


def _map_parts(
    task: SceneTask, stack: ExitStack, progress: Progress | None
) -> tuple[Pipeline, list[MapWriter]]:
    """Map this rank's parts; return when all ranks have finished theirs.

    Returns:
        The pipeline, and on rank 0 the writers that assemble the maps.
    """
    begun, finished = ResumeState((), 0), set[int]()
    maps: list[MapWriter] = []
    writers: Sequence[PartWriter] = ()
    try:
        with distributed.raise_together():
            if distributed.is_main():
                begun = _begin(task)
                writers = maps = _open_maps(task, begun, stack)
                finished = set.intersection(*(writer.finished for writer in writers))
                distributed.mark_begun(task.outputs.map)
        begun, finished = distributed.broadcast((begun, finished))
        with distributed.raise_together():
            if not distributed.is_main():
                writers = _join_maps(task, begun, stack)
            plan = _plan(task, begun)
            parts = plan.share(finished, distributed.rank(), distributed.world_size())
            pipeline = Pipeline(task, plan, parts, writers, begun.batch, progress)
            pipeline.run()
    except UnreadableError:
        if Path(task.scene.path).exists():  # a server may become available again
            for writer in maps:
                writer.discard_parts()
        raise
    return pipeline, maps


def _begin(task: SceneTask) -> ResumeState:
    """Choose parts and batch, those of an earlier run if it is continued."""
    outputs = task.outputs
    begun = read_resume_state(outputs.map) if outputs.resume else None
    if begun is not None:
        return ResumeState(_plan(task, begun).parts, begun.batch, begun.dependencies)
    plan = _plan(task, None)
    return ResumeState(plan.parts, _choose_batch(task, plan), dict(outputs.journal or {}))


def _plan(task: SceneTask, begun: ResumeState | None) -> Plan:
    return plan_scene(
        task.scene,
        task.tiling,
        classes=len(task.outputs.classes),
        bands=task.outputs.bands,
        box=None if task.area is None else task.area.box,
        begun=None if begun is None else begun.parts,
        processes=distributed.world_size(),
    )


def _choose_batch(task: SceneTask, plan: Plan) -> int:
    """Choose the number of tiles per call of the model, by trials where that pays."""
    batch, most, tile = task.tiling.batch, task.tiling.most, task.tiling.tile
    if most is None:
        return even_batch(plan.tiles, batch)
    part = plan.parts[len(plan.parts) // 2]
    middle = Window(part.x + part.width // 2, part.y + part.height // 2, tile, tile)
    samples = torch.from_numpy(task.scene.read(middle)[0]).to(task.device)
    with torch.inference_mode():
        return fastest_batch(task.infer, samples, batch, most, plan.tiles)


def _open_maps(task: SceneTask, state: ResumeState, stack: ExitStack) -> list[MapWriter]:
    """Open the writers of rank 0, which begin or continue the maps."""
    scene, outputs = task.scene, task.outputs
    continued = outputs.resume and read_resume_state(outputs.map) is not None
    grid = MapGrid(
        scene.width, scene.height, scene.crs, scene.transform, scene.gcps, scene.acquired
    )
    return [
        stack.enter_context(
            MapWriter(
                layer.path,
                grid,
                layer.look,
                state,
                creation=CreationOptions(outputs.driver, outputs.options),
                overwrite=outputs.overwrite or continued,
                resume=outputs.resume,
                keep=outputs.journal is not None,
            )
        )
        for layer in outputs.layers()
    ]


def _join_maps(task: SceneTask, state: ResumeState, stack: ExitStack) -> list[PartWriter]:
    """Open the writers of another rank, which only write parts."""
    return [
        stack.enter_context(PartWriter(layer.path, len(layer.look.bands), state))
        for layer in task.outputs.layers()
    ]


def _publish(task: SceneTask, writers: Sequence[MapWriter]) -> None:
    """Assemble all maps, and only then publish them, the class map last."""
    if distributed.world_size() > 1:
        for writer in writers:
            writer.wait_for_parts()
    layers = list(zip(task.outputs.layers(), writers, strict=True))
    drafts = {}
    for layer, writer in layers:
        return_memory()
        drafts[layer.kind] = writer.assemble()
    polygons = task.outputs.polygons
    if polygons is not None:
        write_polygons(
            drafts["map"],
            polygons.path,
            task.outputs.classes,
            confidence=drafts["confidence"],
            sieve=polygons.sieve,
            simplify=polygons.simplify,
        )
    for layer, writer in layers:
        if layer.published:
            writer.publish()
