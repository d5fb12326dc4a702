"""`predict`: a fitted model over whole scenes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rsseg_cli.commands.predict import dry_run as survey
from rsseg_cli.commands.predict import paths as names
from rsseg_cli.commands.predict.options import Request
from rsseg_cli.commands.predict.progress import Line
from rsseg_cli.commands.predict.scene_mapper import Mapper
from rsseg_cli.errors import Interrupted, PartialFailure, RssegError
from rsseg_cli.predict.outputs import SceneResult
from rsseg_cli.predict.team import GoneError, Team
from rsseg_cli.settings import Json


def predict(
    scenes: Sequence[str],
    request: Request | None = None,
    *,
    model: Path | None = None,
    weights: Path | None = None,
    device: str = "auto",
    quiet: bool = False,
    written: Callable[[str], object] | None = None,
    team: Team | None = None,
) -> list[SceneResult]:
    """Map scenes one after the other, or together with other processes.

    A single scene's mistake is raised; of several, each result says what became of it.

    Args:
        scenes: Files, folders, patterns, GDAL names, or `-` for a list on stdin.
        request: What is asked; a class map when None.
        model: Run folder or model file; the newest finished run when None.
        weights: Weights file of the backbone, if it has moved.
        device: auto, cpu, cuda or cuda:N.
        quiet: No progress.
        written: Told the path of every map, as soon as it is there.
        team: Processes that make this call together; large scenes are shared, others dealt out.

    Raises:
        RssegError: Before anything is computed: no model, no scene, an output that is there.
        Interrupted: By the keyboard.
    """
    request, team = request or Request(), team or Team()
    paths: list[str] = team.tell(lambda: list[Json](_checked(scenes, request)))
    targets = names.place_outputs(paths, request.output, request.polygons)
    line = Line(quiet=quiet or not team.leads)
    with team.agreed():
        names.make_folders(targets)
        mapper = Mapper(request, model, weights, device, line, team)
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


def dry_run(
    scenes: Sequence[str],
    request: Request,
    *,
    model: Path | None = None,
    weights: Path | None = None,
    device: str = "auto",
) -> list[survey.Survey]:
    """Say what mapping scenes would take, from a few batches of each; writes nothing.

    Raises:
        RssegError: What `predict` would refuse at the start, but for folders that cannot be made.
    """
    paths = _checked(scenes, request)
    targets = names.place_outputs(paths, request.output, request.polygons)
    mapper = Mapper(request, model, weights, device, Line(quiet=True), Team())
    return [mapper.plan(path, target) for path, target in zip(paths, targets, strict=True)]


def _checked(scenes: Sequence[str], request: Request) -> list[str]:
    """Do all checks that need no model, and list the scenes."""
    paths = names.expand(scenes)
    request.creation()
    request.file_bands()
    targets = names.place_outputs(paths, request.output, request.polygons)
    names.refuse_scenes(paths, targets, [*request.suffixes(), names.SOFT])
    if not request.overwrite:
        new = [target for target in targets if not (request.resume and target.begun)]
        names.refuse_replacing(new, request.suffixes())
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
