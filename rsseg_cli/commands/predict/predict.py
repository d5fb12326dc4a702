"""`rsseg predict`: maps scenes with a fitted model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from rsseg_cli import distributed
from rsseg_cli.commands.options import parse_bands
from rsseg_cli.commands.predict import paths
from rsseg_cli.commands.predict.dry_run import DryRun
from rsseg_cli.commands.predict.options import PredictOptions
from rsseg_cli.commands.predict.output_checks import refuse_inputs, refuse_replacing
from rsseg_cli.commands.predict.parse_options import parse_creation_options
from rsseg_cli.commands.predict.paths import OutputPaths
from rsseg_cli.commands.predict.progress import ProgressLine
from rsseg_cli.commands.predict.scene_predictor import ScenePredictor
from rsseg_cli.errors import Interrupted, PartialFailure, RssegError
from rsseg_cli.predict.outputs import SceneResult
from rsseg_cli.predict.plan import PART_PIXELS
from rsseg_cli.raster.creation_options import check_creation_options
from rsseg_cli.raster.scene import Scene


def predict(
    options: PredictOptions, *, written: Callable[[str], object] | None = None
) -> list[SceneResult]:
    """Map scenes one after the other, or in parallel with the other ranks.

    All ranks together map one large scene; of the other scenes, each free rank takes the next one.
    With several scenes an error does not stop the run, but is part of the scene's result.
    `written` is called on rank 0 with the path of each class map when it is published.

    Returns:
        The result of each scene (of the shard), on all ranks.

    Raises:
        RssegError: There is no model or no scene, an output exists, or the only scene fails.
        Interrupted: By the keyboard.
    """
    quiet = options.quiet or options.as_json
    progress = ProgressLine(quiet=quiet or not distributed.is_main())
    pairs: list[tuple[str, OutputPaths]] = []
    with distributed.raise_together():
        if distributed.is_main():
            pairs = _check(options)
    pairs = distributed.broadcast(pairs)
    if not pairs:
        progress.print(f"shard    {options.shard} has no scenes")
        return []
    with distributed.raise_together():
        paths.create_folders([outputs for _, outputs in pairs])
        predictor = ScenePredictor(options, progress)
    run = _Run(pairs, predictor, progress, written if distributed.is_main() else None)
    shared = distributed.broadcast(_find_shared(pairs) if distributed.is_main() else [])
    for number in shared:
        run.map(number, together=True)
    unshared = [number for number in range(len(pairs)) if number not in shared]
    for index in distributed.claim_indices(len(unshared)):
        run.map(unshared[index], together=False)
    for results in distributed.gather(run.results):
        run.add(results)
    return [run.results[number] for number in range(len(pairs))]


@dataclass
class _Run:
    """Scenes with their output paths, and the results so far by scene number."""

    pairs: Sequence[tuple[str, OutputPaths]]
    predictor: ScenePredictor
    progress: ProgressLine
    written: Callable[[str], object] | None
    results: dict[int, SceneResult] = field(default_factory=dict)

    def map(self, number: int, *, together: bool) -> None:
        """Map a scene, with all ranks or on this one."""
        path, outputs = self.pairs[number]
        try:
            result = self.predictor.predict(path, outputs, together=together)
        except KeyboardInterrupt as stop:
            raise Interrupted(
                f"interrupted at {path}", where=str(outputs.map), fix="the same call with --resume"
            ) from stop
        except RssegError as error:
            if len(self.pairs) == 1:
                raise
            self.progress.print(str(error))
            result = SceneResult(input=path, output=None, status="failed", error=error.what)
        self._keep(number, result)

    def add(self, results: Mapping[int, SceneResult]) -> None:
        """Add the results of another rank."""
        for number, result in results.items():
            if number not in self.results:
                if result.error is not None:
                    self.progress.print(f"error: {result.error}\n   in: {result.input}")
                self._keep(number, result)

    def _keep(self, number: int, result: SceneResult) -> None:
        self.results[number] = result
        if result.output is not None and self.written is not None:
            self.written(result.output)


def dry_run(options: PredictOptions) -> list[DryRun]:
    """Estimate the costs of mapping scenes, from two batches of each; write nothing.

    Only rank 0 does so, the others return an empty list.

    Raises:
        RssegError: Any error that `predict` raises at the start, except for folders that cannot
            be created.
    """
    with distributed.raise_together():
        if not distributed.is_main():
            return []
        pairs = _check(options)
        if not pairs:
            progress = ProgressLine(quiet=options.quiet or options.as_json)
            progress.print(f"shard    {options.shard} has no scenes")
            return []
        predictor = ScenePredictor(options, ProgressLine(quiet=True))
        return [predictor.dry_run(path, outputs) for path, outputs in pairs]


def _check(options: PredictOptions) -> list[tuple[str, OutputPaths]]:
    """Run all checks that need no model; return the scenes to map with their output paths.

    Names are checked for all scenes, but existing files only for those of the shard: other jobs
    may be writing theirs.
    """
    shard = paths.parse_shard(options.shard)
    scenes = paths.expand(options.scenes)
    # Once per call: it writes a small map.
    check_creation_options(options.format, parse_creation_options(options))
    parse_bands(options.bands)
    outputs = paths.choose_outputs(scenes, options.output, options.polygons)
    chosen = set(paths.choose_shard(scenes, shard))
    pairs = [pair for pair in zip(scenes, outputs, strict=True) if pair[0] in chosen]
    outputs = [paths for _, paths in pairs]
    refuse_inputs(scenes, outputs, options)
    if not options.overwrite:
        refuse_replacing(outputs, options)
    return pairs


def _find_shared(pairs: Sequence[tuple[str, OutputPaths]]) -> list[int]:
    """Return the numbers of the scenes that all ranks should map together."""
    ranks = distributed.world_size()
    if ranks == 1 or len(pairs) < ranks:
        return list(range(len(pairs))) if ranks > 1 else []
    return [n for n, (path, _) in enumerate(pairs) if _pixels(path) > ranks * PART_PIXELS]


def _pixels(path: str) -> int:
    """Return the number of pixels of a scene, 0 if it cannot be opened."""
    try:
        with Scene.open(path, warn=False) as scene:
            return scene.width * scene.height
    except RssegError:
        return 0  # the error is reported when the scene is mapped


def failure(results: Sequence[SceneResult]) -> PartialFailure | None:
    """Build the error of a run with failed scenes; None without any."""
    failed = [result for result in results if result.status == "failed"]
    if not failed:
        return None
    return PartialFailure(
        f"{len(failed)} of {len(results)} scenes failed",
        where=", ".join(result.input for result in failed),
        fix="see each scene's error above; the other maps are written",
    )
