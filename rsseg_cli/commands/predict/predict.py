"""`predict`: a fitted model over whole scenes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from rsseg_cli import distributed
from rsseg_cli.commands.options import parse_bands
from rsseg_cli.commands.predict import paths
from rsseg_cli.commands.predict.dry_run import Survey
from rsseg_cli.commands.predict.options import PredictOptions
from rsseg_cli.commands.predict.outputs import map_suffixes, read_creation_options
from rsseg_cli.commands.predict.paths import Target
from rsseg_cli.commands.predict.progress import Line
from rsseg_cli.commands.predict.scene_predictor import ScenePredictor
from rsseg_cli.errors import Interrupted, PartialFailure, RssegError
from rsseg_cli.predict.outputs import SceneResult
from rsseg_cli.predict.plan import PART_PIXELS
from rsseg_cli.raster.scene import Scene


def predict(
    options: PredictOptions, *, written: Callable[[str], object] | None = None
) -> list[SceneResult]:
    """Map scenes one after the other, or together with the other processes of the group.

    Large scenes are shared by all ranks, the others go to whichever rank is free. The error of a
    single scene is raised; of several scenes, each result has its own.

    Args:
        options: Options of the command.
        written: Called on rank 0 with the path of every map as soon as it is published.

    Returns:
        The result of each scene, of the own shard if there is one; on all ranks.

    Raises:
        RssegError: Before anything is computed: there is no model, no scene, or an output exists.
        Interrupted: By the keyboard.
    """
    quiet = options.quiet or options.as_json
    line = Line(quiet=quiet or not distributed.is_main())
    pairs: list[tuple[str, Target]] = []
    with distributed.raise_together():
        if distributed.is_main():
            pairs = _check(options)
    pairs = distributed.broadcast(pairs)
    if not pairs:
        line.say(f"shard    {options.shard} has no scenes")
        return []
    with distributed.raise_together():
        paths.make_folders([target for _, target in pairs])
        predictor = ScenePredictor(options, line)
    run = _Run(pairs, predictor, line, written if distributed.is_main() else None)
    shared = distributed.broadcast(_find_shared(pairs) if distributed.is_main() else [])
    for number in shared:
        run.map(number, together=True)
    dealt = [number for number in range(len(pairs)) if number not in shared]
    for index in distributed.claim_indices(len(dealt)):
        run.map(dealt[index], together=False)
    for results in distributed.gather(run.results):
        run.add(results)
    return [run.results[number] for number in range(len(pairs))]


@dataclass
class _Run:
    """The scenes of a call and their results so far, by number."""

    pairs: Sequence[tuple[str, Target]]
    predictor: ScenePredictor
    line: Line
    written: Callable[[str], object] | None
    results: dict[int, SceneResult] = field(default_factory=dict)

    def map(self, number: int, *, together: bool) -> None:
        """Map a scene, with all ranks or on this one."""
        path, target = self.pairs[number]
        try:
            result = self.predictor.predict(path, target, together=together)
        except KeyboardInterrupt as stop:
            raise Interrupted(
                f"interrupted at {path}", where=str(target.map), fix="the same call with --resume"
            ) from stop
        except RssegError as error:
            if len(self.pairs) == 1:
                raise
            self.line.say(str(error))
            result = SceneResult(input=path, output=None, status="failed", error=error.what)
        self._keep(number, result)

    def add(self, results: Mapping[int, SceneResult]) -> None:
        """Add the results of another rank."""
        for number, result in results.items():
            if number not in self.results:
                if result.error is not None:
                    self.line.say(f"error: {result.error}\n   in: {result.input}")
                self._keep(number, result)

    def _keep(self, number: int, result: SceneResult) -> None:
        self.results[number] = result
        if result.output is not None and self.written is not None:
            self.written(result.output)


def dry_run(options: PredictOptions) -> list[Survey]:
    """Estimate what mapping scenes costs, from a few batches of each; write nothing.

    Only rank 0 does so, the others return an empty list.

    Raises:
        RssegError: Any error that `predict` raises at the start, except for folders that cannot
            be made.
    """
    with distributed.raise_together():
        if not distributed.is_main():
            return []
        pairs = _check(options)
        if not pairs:
            Line(quiet=options.quiet or options.as_json).say(
                f"shard    {options.shard} has no scenes"
            )
            return []
        predictor = ScenePredictor(options, Line(quiet=True))
        return [predictor.dry_run(path, target) for path, target in pairs]


def _check(options: PredictOptions) -> list[tuple[str, Target]]:
    """Run all checks that need no model; list the scenes to map, and where the maps go.

    Names are checked for all scenes, existing files only for those of the own shard: other
    shards may be at work.
    """
    shard = paths.parse_shard(options.shard)
    listed = paths.expand(options.scenes)
    read_creation_options(options)
    parse_bands(options.bands)
    targets = paths.place_outputs(listed, options.output, options.polygons)
    paths.refuse_scenes(listed, targets, [*map_suffixes(options), paths.SOFT])
    own = set(paths.choose_shard(listed, shard))
    pairs = [pair for pair in zip(listed, targets, strict=True) if pair[0] in own]
    if not options.overwrite:
        paths.refuse_replacing(
            [target for _, target in pairs if not _may_resume(target, options)],
            map_suffixes(options),
        )
    return pairs


def _may_resume(target: Target, options: PredictOptions) -> bool:
    """Return whether existing files of a target may be of the run that this one continues."""
    begun_before = distributed.begun_before_restart(target.map)
    return begun_before or (options.resume and target.begun)


def _find_shared(pairs: Sequence[tuple[str, Target]]) -> list[int]:
    """Find the scenes that all ranks should map together, by their numbers."""
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
    """Build the error for a run of which some scenes failed, None if none did."""
    failed = [result for result in results if result.status == "failed"]
    if not failed:
        return None
    return PartialFailure(
        f"{len(failed)} of {len(results)} scenes failed",
        where=", ".join(result.input for result in failed),
        fix="see each scene's error above; the other maps are written",
    )
