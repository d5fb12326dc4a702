"""Several processes under `torchrun`, or a single one: the same calls."""

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
"""Time limit of a collective call: rank 0 writes and evaluates while the others wait."""
BUCKET = 2**24
"""Elements of one all-reduce of gradients, unless a single tensor has more."""

_store: Store | None = None
"""Key-value store of the process group."""
_attempt = uuid4().hex
"""Id of this attempt of the command, the same on all ranks; a restart has another one."""
_alone = False
"""Whether this process works on its own inside the group for now."""


def active() -> bool:
    """Return whether a process group is in use."""
    return not _alone and distributed.is_available() and distributed.is_initialized()


def rank() -> int:
    """Return the number of this process, from 0."""
    return distributed.get_rank() if active() else 0


def world_size() -> int:
    """Return the number of processes."""
    return distributed.get_world_size() if active() else 1


def is_main() -> bool:
    """Return whether this is rank 0, the one that writes and prints."""
    return rank() == 0


def local_rank() -> int:
    """Return the number of this process on its machine, from 0."""
    return int(os.environ.get("LOCAL_RANK", rank())) if active() else 0


@contextmanager
def group(device: str, environment: Mapping[str, str] = os.environ) -> Iterator[None]:
    """Join the processes that `torchrun` has started, or work as a single one.

    Each process gets its own GPU; tensors on the CPU are exchanged by gloo. Inside a group this
    does nothing. An error raised on all ranks is passed on by rank 0 only; the others exit.

    Args:
        device: auto, cpu, cuda or cuda:N.
        environment: RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT.

    Raises:
        RssegError: There are fewer GPUs than processes, or the others cannot be reached or
            have ended.
    """
    if active() or int(environment.get("WORLD_SIZE", "1")) == 1:
        remember("started", str(time.time()))
        yield
        return
    gpu = device.startswith("cuda") or (device == "auto" and torch.cuda.is_available())
    if gpu:
        _take_gpu(device, environment)
    if not distributed.is_available():
        raise RssegError("this PyTorch cannot work with several processes", fix="another build")
    with _reaching_others("the other processes cannot be reached"):
        _init_process_group("cpu:gloo,cuda:nccl" if gpu else "gloo")
    remember("started", str(time.time()))
    try:
        with _reaching_others("another process has ended"):
            yield
            barrier()
    except RssegError as error:
        if is_main() or not error.on_all_ranks:
            raise
        raise SystemExit(error.exit_code) from error
    finally:
        distributed.destroy_process_group()


def _init_process_group(backend: str) -> None:
    """Connect all processes; the group's store is kept for `claim`."""
    from torch._C._distributed_c10d import PrefixStore  # absent from some builds of PyTorch
    from torch.distributed.rendezvous import rendezvous

    global _attempt, _store
    store, number, size = next(rendezvous("env://", timeout=TIMEOUT))
    _attempt = _agree(PrefixStore("rsseg", store), number, size)
    store = PrefixStore(f"rsseg/{_attempt}", store)
    distributed.init_process_group(
        backend, store=store, rank=number, world_size=size, timeout=TIMEOUT
    )
    _store = PrefixStore("claims", store)


def _agree(store: Store, number: int, size: int) -> str:
    """Agree on the id of this attempt.

    The store of torchrun's agent outlives a restart, and with it the keys of earlier attempts.
    Each process has a new id: rank 0 offers its own, waits for the ids of all who accept the
    offer, and confirms them. An offer that does not confirm this process is an old one. The
    restart count is not used, as each machine has its own.
    """
    own = uuid4().hex
    if number == 0:
        store.set("attempt", own)
        accepted = [f"{own}/{other}" for other in range(1, size)]
        store.wait(accepted, TIMEOUT)
        store.set(own, " ".join(store.get(key).decode() for key in accepted))
        return own
    while True:
        offer = store.get("attempt").decode()
        store.set(f"{offer}/{number}", own)
        if store.check([offer]) and own in store.get(offer).decode():
            return offer
        time.sleep(0.02)


def _take_gpu(device: str, environment: Mapping[str, str]) -> None:
    """Make the GPU of this process the current one."""
    gpus, number = torch.cuda.device_count(), int(environment.get("LOCAL_RANK", "0"))
    if ":" in device:
        raise RssegError(
            f"{device} cannot be the device of all processes",
            where="--device",
            fix="--device cuda, and CUDA_VISIBLE_DEVICES to choose GPUs",
        )
    if number >= gpus:
        processes = environment.get("LOCAL_WORLD_SIZE", str(number + 1))
        raise RssegError(
            f"{processes} processes need a GPU each, there are {gpus}",
            where="--device",
            fix=f"torchrun --nproc-per-node {gpus}, or --device cpu" if gpus else "--device cpu",
        )
    torch.cuda.set_device(number)


@contextmanager
def _reaching_others(what: str) -> Iterator[None]:
    """Turn a backend's error about lost processes into an `RssegError`."""
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
def alone() -> Iterator[None]:
    """Work as a single process inside this block: all calls act as without a group."""
    global _alone
    before, _alone = _alone, True
    try:
        yield
    finally:
        _alone = before


def claim(items: int) -> Iterator[int]:
    """Yield numbers from 0 to `items` - 1, each to whichever rank is the first to ask for it.

    All ranks iterate; one call per group.
    """
    if not active() or _store is None:
        yield from range(items)
        return
    while (number := _store.add("next", 1) - 1) < items:
        yield number


def numbers() -> Iterator[int]:
    """Yield the numbers of this rank when items are dealt to all ranks in turn."""
    return count(rank(), world_size())


def average(tensor: Tensor) -> Tensor:
    """Average a tensor over all ranks, in place."""
    if active():
        distributed.all_reduce(tensor)
        tensor /= world_size()
    return tensor


def total(tensor: Tensor) -> Tensor:
    """Sum a tensor over all ranks, in place."""
    if active():
        distributed.all_reduce(tensor)
    return tensor


def reduce_min(tensor: Tensor) -> Tensor:
    """Reduce a tensor to its element-wise minimum over all ranks, in place."""
    if active():
        distributed.all_reduce(tensor, distributed.ReduceOp.MIN)
    return tensor


def any_rank(flag: bool) -> bool:
    """Return whether the flag is set on any rank (all-reduce on the CPU, no GPU sync)."""
    if not active():
        return flag
    return not bool(reduce_min(torch.tensor(int(not flag))))


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
    own: RssegError | None = None
    try:
        yield
    except RssegError as error:
        own = error
    for number, first in enumerate(gather(own)):
        if first is not None:
            raised = own if own is not None and number == rank() else first  # own has a cause
            raised.on_all_ranks = active()
            raise raised


def all_gather_cat(tensor: Tensor) -> Tensor:
    """Concatenate tensors of one shape from all ranks along the first axis."""
    if not active():
        return tensor
    parts = [torch.empty_like(tensor) for _ in range(world_size())]
    distributed.all_gather(parts, tensor.contiguous())
    return torch.cat(parts)


def average_gradients(parameters: Iterable[Parameter]) -> None:
    """Average the gradients of trainable tensors over all ranks, in a few flat messages.

    A tensor has a gradient on all ranks or on none.
    """
    if not active():
        return
    for gradients in _buckets(p.grad for p in parameters if p.grad is not None):
        flat = average(torch.cat([gradient.flatten() for gradient in gradients]))
        sizes = [gradient.numel() for gradient in gradients]
        for gradient, part in zip(gradients, torch.split(flat, sizes), strict=True):
            gradient.copy_(part.view_as(gradient))


def _buckets(tensors: Iterable[Tensor]) -> Iterator[list[Tensor]]:
    """Group tensors in order, as many as one message holds."""
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
    """Remember that this command has begun an output, for its attempts after a restart."""
    remember(f"begun {output.resolve()}", "yes")


def begun_before_restart(output: Path) -> bool:
    """Return whether an earlier attempt of this same command has begun an output."""
    return recall(f"begun {output.resolve()}") is not None


def seconds_before_restart() -> float:
    """Return the time since the first attempt of this command began; 0 in the first attempt."""
    started = recall("started")
    return 0.0 if started is None else max(0.0, time.time() - float(started))


def remember(key: str, value: str) -> None:
    """Keep a value for attempts after a restart, unless there is one; only `torchrun` restarts."""
    store = _launch_store()
    if store is not None:
        store.compare_set(key, "", f"{_attempt} {value}")


def recall(key: str) -> str | None:
    """Return the value that an earlier attempt has kept; None if none has."""
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

    with _reaching_others("the agent of torchrun cannot be reached"):
        address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        store = TCPStore(address, port, is_master=False)
    return PrefixStore("rsseg/launch", store)
