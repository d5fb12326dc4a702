"""Maps a scene: runs the pipeline over its parts, assembles the maps and publishes them."""

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
from rsseg_cli.predict.outputs import ProgressCallback, SceneResult
from rsseg_cli.predict.pipeline import Pipeline, SceneTask
from rsseg_cli.predict.plan import CACHE_MB, MIB, Plan, return_memory
from rsseg_cli.raster.creation_options import CreationOptions
from rsseg_cli.raster.map_style import MapGrid
from rsseg_cli.raster.part_writer import PartWriter
from rsseg_cli.raster.polygonize import write_polygons
from rsseg_cli.raster.resume_state import ResumeState, read_resume_state
from rsseg_cli.raster.write import MapWriter


def predict_scene(
    task: SceneTask, *, together: bool = False, progress: ProgressCallback | None = None
) -> SceneResult:
    """Map one scene; either all of its maps are published, or none.

    With `together`, all ranks make this call: each maps some parts of the scene, then rank 0
    assembles and publishes the maps. `progress` is called for the pixels of this rank.

    Raises:
        OutputExistsError: An output exists and `overwrite` is not set.
        UnreadableError: The scene is truncated.
        RssegError: Any other error, on any rank.
    """
    with nullcontext() if together else distributed.single_process():
        started = time.perf_counter()
        with rasterio.Env(GDAL_CACHEMAX=CACHE_MB * MIB), ExitStack() as stack:
            pipeline, writers = _map_parts(task, stack, progress)
            done = sum(distributed.gather(pipeline.done))
            peak = max(distributed.gather(peak_rss_mb()))
            with distributed.raise_together():
                if distributed.is_main():
                    _publish(task, writers)
    seconds = time.perf_counter() - started
    return SceneResult(
        input=task.scene.path,
        output=str(task.outputs.map),
        width=task.scene.width,
        height=task.scene.height,
        seconds=seconds,
        mpx_per_s=done / 1e6 / seconds,
        peak_rss_mb=max(peak, peak_rss_mb()),
        wait=pipeline.waits.fractions(),
    )


def _map_parts(
    task: SceneTask, stack: ExitStack, progress: ProgressCallback | None
) -> tuple[Pipeline, list[MapWriter]]:
    """Map this rank's parts; return when all ranks have finished theirs.

    Returns:
        The pipeline, and on rank 0 the writers that assemble the maps.
    """
    state, finished = ResumeState((), 0), set[int]()
    maps: list[MapWriter] = []
    writers: Sequence[PartWriter] = ()
    try:
        with distributed.raise_together():
            if distributed.is_main():
                state = _begin(task)
                writers = maps = _open_maps(task, state, stack)
                finished = set.intersection(*(writer.finished for writer in writers))
                distributed.mark_begun(task.outputs.map)
        state, finished = distributed.broadcast((state, finished))
        with distributed.raise_together():
            if not distributed.is_main():
                writers = [
                    stack.enter_context(PartWriter(layer.path, len(layer.style.bands), state))
                    for layer in task.outputs.layers()
                ]
            plan = task.plan(state.parts)
            parts = plan.parts_of_rank(finished, distributed.rank(), distributed.world_size())
            pipeline = Pipeline(task, plan, parts, writers, state.batch, progress)
            pipeline.run()
    except UnreadableError:
        if Path(task.scene.path).exists():  # a server may become available again
            for writer in maps:
                writer.discard_parts()
        raise
    return pipeline, maps


def _begin(task: SceneTask) -> ResumeState:
    """Choose parts and batch; `resume` keeps those of the unfinished map."""
    outputs = task.outputs
    dependencies = dict(outputs.dependencies or {})
    before = read_resume_state(outputs.map) if outputs.resume else None
    if before is not None:
        return ResumeState(task.plan(before.parts).parts, before.batch, dependencies)
    plan = task.plan()
    return ResumeState(plan.parts, _choose_batch(task, plan), dependencies)


def _choose_batch(task: SceneTask, plan: Plan) -> int:
    """Choose the number of tiles per call of the model, for large scenes by trials."""
    batch, largest = task.tiling.batch, task.tiling.largest_batch
    if largest is None:
        return even_batch(plan.tiles, batch)
    tile = torch.from_numpy(task.scene.read(plan.middle_tile)[0]).to(task.device)
    with torch.inference_mode():
        return fastest_batch(task.infer, tile, batch, largest, plan.tiles)


def _open_maps(task: SceneTask, state: ResumeState, stack: ExitStack) -> list[MapWriter]:
    """Open the writers of rank 0, which create or continue the maps."""
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
                layer.style,
                state,
                creation=CreationOptions(outputs.driver, outputs.options),
                overwrite=outputs.overwrite or continued,
                resume=outputs.resume,
                keep=outputs.dependencies is not None,
            )
        )
        for layer in outputs.layers()
    ]


def _publish(task: SceneTask, writers: Sequence[MapWriter]) -> None:
    """Assemble all maps, then publish them, the class map last."""
    if distributed.world_size() > 1:
        for writer in writers:
            writer.wait_for_parts()
    layers = list(zip(task.outputs.layers(), writers, strict=True))
    drafts = {}
    for layer, writer in layers:
        return_memory()
        drafts[layer.kind] = writer.assemble()
    for writer in writers:
        writer.check_outputs()  # another process may have written them meanwhile
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
