"""Collective calls among the processes of `torchrun`, and state that survives its restarts.

With a single process every call returns its argument.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from functools import cache
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from uuid import uuid4

import torch
from torch import Tensor, distributed
from torch.nn import Parameter

from rsseg_cli.errors import RssegError

if TYPE_CHECKING:
    from torch._C._distributed_c10d import Store

T = TypeVar("T")

TIMEOUT = timedelta(hours=4)
"""Time limit of a collective call; the other ranks wait while rank 0 evaluates and writes."""
BUCKET = 2**24
"""Largest number of elements in one all-reduce of gradients, unless a single tensor has more."""

_store: Store | None = None
"""Counter of `claim_indices` in the key-value store of the process group."""
_attempt = uuid4().hex
"""Id of this attempt of the command, the same on all ranks and different after a restart."""
_single = False
"""Whether calls ignore the group, see `single_process`."""


def active() -> bool:
    """Return whether a process group is in use."""
    return not _single and distributed.is_available() and distributed.is_initialized()


def rank() -> int:
    """Return the rank of this process."""
    return distributed.get_rank() if active() else 0


def world_size() -> int:
    """Return the number of processes."""
    return distributed.get_world_size() if active() else 1


def is_main() -> bool:
    """Return whether this is rank 0, which writes and prints."""
    return rank() == 0


def local_rank() -> int:
    """Return the rank of this process on its machine."""
    return int(os.environ.get("LOCAL_RANK", rank())) if active() else 0


@contextmanager
def group(device: str, environment: Mapping[str, str] = os.environ) -> Iterator[None]:
    """Join the processes that `torchrun` started; do nothing for a single one or inside a group.

    Each process uses a GPU of its own, and gloo exchanges tensors on the CPU. If all ranks raise an
    error, rank 0 passes it on and the others exit.

    Args:
        device: auto, cpu, cuda or cuda:N.
        environment: RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT.

    Raises:
        RssegError: There are fewer GPUs than processes, or another process cannot be reached or
            has ended.
    """
    if active() or int(environment.get("WORLD_SIZE", "1")) == 1:
        save_for_restart("started", str(time.time()))
        yield
        return
    gpu = device.startswith("cuda") or (device == "auto" and torch.cuda.is_available())
    if gpu:
        _take_gpu(device, environment)
    if not distributed.is_available():
        raise RssegError("this PyTorch cannot work with several processes", fix="another build")
    with _connection_errors("the other processes cannot be reached"):
        _init_process_group("cpu:gloo,cuda:nccl" if gpu else "gloo")
    save_for_restart("started", str(time.time()))
    try:
        with _connection_errors("another process has ended"):
            yield
            barrier()
    except RssegError as error:
        if is_main() or not error.on_all_ranks:
            raise
        raise SystemExit(error.exit_code) from error
    finally:
        distributed.destroy_process_group()


def _init_process_group(backend: str) -> None:
    """Connect all processes under a prefix of the store that no earlier attempt has used."""
    from torch._C._distributed_c10d import PrefixStore  # absent from some builds of PyTorch
    from torch.distributed.rendezvous import rendezvous

    global _attempt, _store
    store, index, size = next(rendezvous("env://", timeout=TIMEOUT))
    _attempt = _agree_on_attempt(PrefixStore("rsseg", store), index, size)
    store = PrefixStore(f"rsseg/{_attempt}", store)
    distributed.init_process_group(
        backend, store=store, rank=index, world_size=size, timeout=TIMEOUT
    )
    _store = PrefixStore("claims", store)


def _agree_on_attempt(store: Store, index: int, size: int) -> str:
    """Return the id of this attempt: that of rank 0.

    The store of torchrun's agent outlives a restart and still has the keys of earlier attempts.
    Each process therefore draws a new id. Rank 0 publishes its id and waits until all ranks have
    answered with theirs, which it then confirms. An id that never confirms this process belongs to
    an earlier attempt. The restart count is not used, as machines count separately.
    """
    process_id = uuid4().hex
    if index == 0:
        store.set("attempt", process_id)
        answers = [f"{process_id}/{other}" for other in range(1, size)]
        store.wait(answers, TIMEOUT)
        store.set(process_id, " ".join(store.get(key).decode() for key in answers))
        return process_id
    while True:
        attempt = store.get("attempt").decode()
        store.set(f"{attempt}/{index}", process_id)
        if store.check([attempt]) and process_id in store.get(attempt).decode():
            return attempt
        time.sleep(0.02)


def _take_gpu(device: str, environment: Mapping[str, str]) -> None:
    """Select the GPU of this process as the current device."""
    gpus, index = torch.cuda.device_count(), int(environment.get("LOCAL_RANK", "0"))
    if ":" in device:
        raise RssegError(
            f"{device} cannot be the device of all processes",
            where="--device",
            fix="--device cuda, and CUDA_VISIBLE_DEVICES to choose GPUs",
        )
    if index >= gpus:
        processes = environment.get("LOCAL_WORLD_SIZE", str(index + 1))
        raise RssegError(
            f"{processes} processes need a GPU each, there are {gpus}",
            where="--device",
            fix=f"torchrun --nproc-per-node {gpus}, or --device cpu" if gpus else "--device cpu",
        )
    torch.cuda.set_device(index)


@contextmanager
def _connection_errors(what: str) -> Iterator[None]:
    """Raise an `RssegError` for a backend's error about lost processes."""
    try:
        yield
    except (RuntimeError, ValueError) as error:
        reason = str(error).strip().partition("\n")[0]
        if active() and not isinstance(error, distributed.DistError) and "gloo" not in str(error):
            raise
        raise RssegError(
            f"{what} ({reason})",
            where=f"process {os.environ.get('RANK')} of {os.environ.get('WORLD_SIZE')}",
            fix="see the first error above; --resume continues from the last saved state",
        ) from error


@contextmanager
def single_process() -> Iterator[None]:
    """Ignore the group inside this block: all calls behave as with a single process."""
    global _single
    before, _single = _single, True
    try:
        yield
    finally:
        _single = before


def claim_indices(stop: int) -> Iterator[int]:
    """Yield indices below `stop`, each on one rank, in order of demand; once per group."""
    if not active() or _store is None:
        yield from range(stop)
        return
    while (index := _store.add("next", 1) - 1) < stop:
        yield index


def round_robin() -> Iterator[int]:
    """Yield every `world_size`-th index, without end, beginning with the rank."""
    return count(rank(), world_size())


def reduce_sum(tensor: Tensor) -> Tensor:
    """Sum a tensor over all ranks, in place."""
    if active():
        distributed.all_reduce(tensor)
    return tensor


def reduce_mean(tensor: Tensor) -> Tensor:
    """Average a tensor over all ranks, in place."""
    return reduce_sum(tensor).div_(world_size()) if active() else tensor


def reduce_min(tensor: Tensor) -> Tensor:
    """Compute the element-wise minimum over all ranks, in place."""
    if active():
        distributed.all_reduce(tensor, distributed.ReduceOp.MIN)
    return tensor


def any_rank(flag: bool) -> bool:
    """Return whether the flag is set on any rank (all-reduce on the CPU, no GPU sync)."""
    return not bool(reduce_min(torch.tensor(int(not flag)))) if active() else flag


def barrier() -> None:
    """Wait until all ranks get here (all-reduce on the CPU, no GPU sync)."""
    any_rank(False)


def gather(value: T) -> list[T]:
    """Gather a picklable value from every rank, on all ranks, in rank order."""
    if not active():
        return [value]
    values: list[Any] = [None] * world_size()
    distributed.all_gather_object(values, value)
    return values


def broadcast(value: T) -> T:
    """Return rank 0's picklable value on all ranks."""
    if not active():
        return value
    values = [value]
    distributed.broadcast_object_list(values)
    return values[0]


@contextmanager
def raise_together() -> Iterator[None]:
    """Wait until all ranks have left the block; raise the lowest rank's `RssegError` on all."""
    local: RssegError | None = None
    try:
        yield
    except RssegError as error:
        local = error
    for index, first in enumerate(gather(local)):
        if first is not None:
            failure = local if local and index == rank() else first  # the local one has a cause
            failure.on_all_ranks = active()
            raise failure


def all_gather_cat(tensor: Tensor) -> Tensor:
    """Concatenate tensors of one shape from all ranks along the first axis."""
    if not active():
        return tensor
    parts = [torch.empty_like(tensor) for _ in range(world_size())]
    distributed.all_gather(parts, tensor.contiguous())
    return torch.cat(parts)


def average_gradients(parameters: Iterable[Parameter]) -> None:
    """Average gradients over all ranks in a few flat messages.

    A parameter must have a gradient on all ranks or on none.
    """
    if not active():
        return
    for gradients in _buckets(p.grad for p in parameters if p.grad is not None):
        flat = reduce_mean(torch.cat([gradient.flatten() for gradient in gradients]))
        sizes = [gradient.numel() for gradient in gradients]
        for gradient, part in zip(gradients, torch.split(flat, sizes), strict=True):
            gradient.copy_(part.view_as(gradient))


def _buckets(tensors: Iterable[Tensor]) -> Iterator[list[Tensor]]:
    """Yield lists of consecutive tensors with at most `BUCKET` elements."""
    bucket: list[Tensor] = []
    size = 0
    for tensor in tensors:
        if bucket and size + tensor.numel() > BUCKET:
            yield bucket
            bucket, size = [], 0
        bucket.append(tensor)
        size += tensor.numel()
    if bucket:
        yield bucket


# --- restarts: `torchrun --max-restarts N` starts the same command again when a process dies ---
def mark_begun(output: Path) -> None:
    """Record that this command has begun an output."""
    save_for_restart(f"begun {output.resolve()}", "yes")


def begun_before_restart(output: Path) -> bool:
    """Return whether an earlier attempt of this command has begun an output."""
    return value_before_restart(f"begun {output.resolve()}") is not None


def seconds_before_restart() -> float:
    """Return the time since the first attempt of this command began; 0 in the first attempt."""
    started = value_before_restart("started")
    return 0.0 if started is None else max(0.0, time.time() - float(started))


def save_for_restart(key: str, value: str) -> None:
    """Save a value for attempts after a restart by `torchrun`; the first value of a key stays."""
    store = _launch_store()
    if store is not None:
        store.compare_set(key, "", f"{_attempt} {value}")


def value_before_restart(key: str) -> str | None:
    """Return the value that an earlier attempt saved; None if there is none."""
    store = _launch_store()
    if store is None or not store.check([key]):
        return None
    attempt, _, value = store.get(key).decode().partition(" ")
    return None if attempt == _attempt else value


@cache
def _launch_store() -> Store | None:
    """Connect to the store of torchrun's agent, which lives as long as the whole command."""
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return None
    from torch._C._distributed_c10d import PrefixStore, TCPStore

    with _connection_errors("the agent of torchrun cannot be reached"):
        address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        store = TCPStore(address, port, is_master=False)
    return PrefixStore("rsseg/launch", store)
