"""`predict`: a fitted model over whole scenes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from rsseg_cli.commands.options import parse_bands
from rsseg_cli.commands.predict import dry_run as survey
from rsseg_cli.commands.predict import paths as names
from rsseg_cli.commands.predict.options import PredictOptions
from rsseg_cli.commands.predict.outputs import map_suffixes, read_creation_options
from rsseg_cli.commands.predict.progress import Line
from rsseg_cli.commands.predict.scene_mapper import Mapper
from rsseg_cli.errors import Interrupted, PartialFailure, RssegError
from rsseg_cli.predict.outputs import SceneResult
from rsseg_cli.predict.team import GoneError, Team
from rsseg_cli.settings import Json


def predict(
    options: PredictOptions,
    *,
    written: Callable[[str], object] | None = None,
    team: Team | None = None,
) -> list[SceneResult]:
    """Map scenes one after the other, or together with other processes.

    A single scene's mistake is raised; of several, each result says what became of it.

    Args:
        options: The options, as of the command line.
        written: Called with the path of every map as soon as it is written.
        team: Processes that make this call together; large scenes are shared, others dealt out.

    Raises:
        RssegError: Before anything is computed: no model, no scene, an output that is there.
        Interrupted: By the keyboard.
    """
    team = team or Team()
    paths: list[str] = team.tell(lambda: list[Json](_checked(options)))
    targets = names.place_outputs(paths, options.output, options.polygons)
    line = Line(quiet=options.quiet or options.as_json or not team.leads)
    with team.agreed():
        names.make_folders(targets)
        mapper = Mapper(options, line, team)
    run = _Run(paths, targets, mapper, line, written if team.leads else None)
    shared: list[int] = team.tell(lambda: list[Json](mapper.shared(paths, team.size)))
    for number in shared:
        run.map(number, team)
    dealt = [number for number in range(len(paths)) if number not in shared]
    for index in team.claims(len(dealt)):
        run.map(dealt[index], Team())
    for found in team.gather([[number, asdict(run.results[number])] for number in run.results]):
        run.hear(found)
    return [run.results[number] for number in range(len(paths))]


@dataclass
class _Run:
    """The scenes of a call, and what became of them."""

    paths: Sequence[str]
    targets: Sequence[names.Target]
    mapper: Mapper
    line: Line
    written: Callable[[str], object] | None
    results: dict[int, SceneResult] = field(default_factory=dict)

    def map(self, number: int, team: Team) -> None:
        """Map a scene."""
        path, target = self.paths[number], self.targets[number]
        try:
            result = self.mapper.map(path, target, team)
        except KeyboardInterrupt as stop:
            raise Interrupted(
                f"interrupted at {path}", where=str(target.map), fix="the same call with --resume"
            ) from stop
        except GoneError:
            raise
        except RssegError as error:
            if len(self.paths) == 1:
                raise
            self.line.say(str(error))
            result = SceneResult(input=path, output=None, status="failed", error=error.what)
        self._keep(number, result)

    def hear(self, found: Sequence[tuple[int, dict[str, Any]]]) -> None:
        """Take note of what became of the scenes of another process."""
        for number, document in found:
            if number not in self.results:
                result = SceneResult.read(document)
                if result.error is not None:
                    self.line.say(f"error: {result.error}\n   in: {result.input}")
                self._keep(number, result)

    def _keep(self, number: int, result: SceneResult) -> None:
        self.results[number] = result
        if result.output is not None and self.written is not None:
            self.written(result.output)


def dry_run(options: PredictOptions) -> list[survey.Survey]:
    """Say what mapping scenes would take, from a few batches of each; writes nothing.

    Raises:
        RssegError: What `predict` would refuse at the start, but for folders that cannot be made.
    """
    paths = _checked(options)
    targets = names.place_outputs(paths, options.output, options.polygons)
    mapper = Mapper(options, Line(quiet=True), Team())
    return [mapper.plan(path, target) for path, target in zip(paths, targets, strict=True)]


def _checked(options: PredictOptions) -> list[str]:
    """Do all checks that need no model, and list the scenes."""
    paths = names.expand(options.scenes)
    read_creation_options(options)
    parse_bands(options.bands)
    targets = names.place_outputs(paths, options.output, options.polygons)
    names.refuse_scenes(paths, targets, [*map_suffixes(options), names.SOFT])
    if not options.overwrite:
        new = [target for target in targets if not (options.resume and target.begun)]
        names.refuse_replacing(new, map_suffixes(options))
    return paths


def failure(results: Iterable[SceneResult]) -> PartialFailure | None:
    """Make the error for a run of which some scenes failed, None when all are there."""
    found = list(results)
    failed = [result for result in found if result.status == "failed"]
    if not failed:
        return None
    return PartialFailure(
        f"{len(failed)} of {len(found)} scenes failed",
        where=", ".join(result.input for result in failed),
        fix="see each scene's error above; the other maps are written",
    )
