"""Several processes that map scenes together, or just this one: the same calls.

Nothing large goes from one to the other: what is mapped goes into parts on a file system that all
share. They tell each other only what to do, and how it went, through the key-value store that
`torchrun` brings. Each process keeps a count there that rises as long as it lives, so that the
others never wait for one that is dead.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import timedelta
from threading import Event, Thread
from typing import TYPE_CHECKING, Any

from rsseg_cli import errors
from rsseg_cli.errors import RssegError
from rsseg_cli.settings import Json

if TYPE_CHECKING:
    from torch._C._distributed_c10d import Store

PULSE_S = 1.0
"""How often a process says that it lives."""
DEADLINE_S = 60.0
"""After how much silence it counts as dead."""
LOOK_S = 0.02
"""How often a process that waits looks whether it still must."""
PARTING_S = 10.0
"""How long the first process, which may keep the store, waits for the others to leave."""


class GoneError(RssegError):
    """Another process is no longer there."""


class Team:
    """Just this process. `open_team` gives the team that the environment asks for.

    Attributes:
        rank: Number of this process; number 0 leads.
        size: Number of processes.
        local_rank: Number of this process among those of its machine.
    """

    rank, size, local_rank = 0, 1, 0

    @property
    def leads(self) -> bool:
        """Whether this process speaks to the user, and lets files appear."""
        return self.rank == 0

    def gather(self, said: Json) -> list[Any]:
        """Say something, and hear what each process says, in the order of their numbers."""
        return [said]

    def tell(self, make: Callable[[], Json]) -> Any:
        """Give what `make` gives in the leading process, or raise its `RssegError`, in all."""
        return make()

    @contextmanager
    def agreed(self) -> Iterator[None]:
        """Wait until all processes have left the block; the `RssegError` of any is raised in all.

        Of several, that of the lowest process is.
        """
        yield

    def claims(self, count: int) -> Iterator[int]:
        """Deal the numbers 0..count-1 out to whichever process is free."""
        yield from range(count)


class _Crew(Team):
    """Processes that share a store."""

    def __init__(self, store: Store, rank: int, size: int, local_rank: int) -> None:
        self.rank, self.size, self.local_rank = rank, size, local_rank
        self._store, self._turn, self._stop = store, 0, Event()
        self._pulse = Thread(target=self._live, name="rsseg-pulse", daemon=True)
        self._pulse.start()

    def _live(self) -> None:
        # A store that fails is noticed by whoever needs an answer from it.
        with suppress(RuntimeError):
            while not self._stop.is_set():
                self._store.add(_pulse_of(self.rank), 1)
                self._stop.wait(PULSE_S)

    def _hear(self, key: str, speaker: int) -> Any:
        """Wait for a word of a process, as long as it lives."""
        pulse, since = -1, time.monotonic()
        looked = since
        with _reaching_others():
            while not self._store.check([key]):
                time.sleep(LOOK_S)
                if time.monotonic() - looked < PULSE_S:
                    continue
                looked, before = time.monotonic(), pulse
                pulse = self._store.add(_pulse_of(speaker), 0)
                if pulse != before:
                    since = looked
                elif looked - since > DEADLINE_S:
                    raise GoneError(
                        f"process {speaker} has not been heard of for {DEADLINE_S:.0f} s",
                        where=f"process {self.rank} of {self.size}",
                        fix="the same call with --resume: what is finished is kept",
                    )
            return json.loads(self._store.get(key))

    def _say(self, said: Json) -> None:
        with _reaching_others():
            self._store.set(f"rsseg/{self._turn}/{self.rank}", json.dumps(said))

    def gather(self, said: Json) -> list[Any]:
        self._turn += 1
        self._say(said)
        return [self._hear(f"rsseg/{self._turn}/{other}", other) for other in range(self.size)]

    def tell(self, make: Callable[[], Json]) -> Any:
        self._turn += 1
        if self.leads:
            try:
                self._say({"said": make()})
            except RssegError as error:
                self._say({"error": _packed(error)})
                raise
        heard = self._hear(f"rsseg/{self._turn}/0", 0)
        _raise_packed(heard.get("error"))
        return heard["said"]

    @contextmanager
    def agreed(self) -> Iterator[None]:
        mine: RssegError | None = None
        try:
            yield
        except GoneError:
            raise
        except RssegError as error:
            mine = error
        for other, packed in enumerate(self.gather(None if mine is None else _packed(mine))):
            if mine is not None and other == self.rank:
                raise mine
            _raise_packed(packed)

    def claims(self, count: int) -> Iterator[int]:
        self._turn += 1
        while True:
            with _reaching_others():
                number = self._store.add(f"rsseg/{self._turn}/next", 1) - 1
            if number >= count:
                return
            yield number

    def part(self, patience: float) -> None:
        """Leave; who may keep the store waits until the others have left, so long at most."""
        self._stop.set()
        with suppress(RuntimeError):
            self._store.set(f"rsseg/left/{self.rank}", "")
            others = [f"rsseg/left/{other}" for other in range(self.size)]
            until = time.monotonic() + patience
            while self.leads and time.monotonic() < until and not self._store.check(others):
                time.sleep(LOOK_S)
        self._pulse.join(PARTING_S)


@contextmanager
def open_team(environment: Mapping[str, str] = os.environ) -> Iterator[Team]:
    """Join the processes that `torchrun` has started, or work alone.

    Errors of the user are raised in the leading process only, as all have the same.

    Args:
        environment: RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT as `torchrun` sets them.

    Raises:
        GoneError: The others cannot be reached.
    """
    size = int(environment.get("WORLD_SIZE", "1"))
    if size == 1:
        yield Team()
        return
    from torch.distributed.rendezvous import rendezvous  # absent from some builds of PyTorch

    with _reaching_others():
        store, rank, size = next(rendezvous("env://", timeout=timedelta(seconds=DEADLINE_S)))
    crew = _Crew(store, rank, size, int(environment.get("LOCAL_RANK", rank)))
    patience = PARTING_S
    try:
        yield crew
    except GoneError:
        patience = 0.0
        raise
    except RssegError:
        if crew.leads:
            raise
    finally:
        crew.part(patience)


def _pulse_of(rank: int) -> str:
    return f"rsseg/lives/{rank}"


@contextmanager
def _reaching_others() -> Iterator[None]:
    try:
        yield
    except (RuntimeError, ValueError) as error:
        raise GoneError(
            f"the other processes cannot be reached ({str(error).splitlines()[0]})",
            where=f"MASTER_ADDR {os.environ.get('MASTER_ADDR')}, "
            f"MASTER_PORT {os.environ.get('MASTER_PORT')}",
            fix="torchrun --nproc-per-node N -m rsseg_cli predict ..., and --resume",
        ) from error


def _packed(error: RssegError) -> Json:
    return {
        "kind": type(error).__name__, "what": error.what, "where": error.where, "fix": error.fix
    }  # fmt: skip


def _raise_packed(packed: dict[str, str] | None) -> None:
    if packed is not None:
        kind = getattr(errors, packed["kind"], RssegError)
        raise kind(packed["what"], where=packed["where"], fix=packed["fix"])
