"""The passes of an update: the tiles of a step, piece by piece, into one gradient."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager

import torch
from torch import Tensor

from rsseg_cli import distributed
from rsseg_cli.data.tiles.tile_stream import Batch
from rsseg_cli.errors import RssegError
from rsseg_cli.segmenter import Segmenter
from rsseg_cli.share import Share, taking
from rsseg_cli.training.objectives import Objective
from rsseg_cli.training.room import out_of_memory


class StepBatches:
    """The batches of one step: read when they are first asked for, kept until the step is done.

    Args:
        stream: Where they come from.
        count: Batches per step.
    """

    def __init__(self, stream: Iterator[Batch], count: int) -> None:
        self.stream, self.count = stream, count
        self.kept: list[Batch] = []

    def __iter__(self) -> Iterator[Batch]:
        """Yield the batches, from the first one on."""
        for number in range(self.count):
            if number == len(self.kept):
                self.kept.append(self._read())
            yield self.kept[number]

    def _read(self) -> Batch:
        try:
            return next(self.stream)
        except (RuntimeError, MemoryError) as error:  # no smaller pass would help
            if not out_of_memory(error):
                raise
            raise RssegError(
                "no memory is left to read tiles with",
                fix="--set training.threads=1, or a smaller --batch",
            ) from error


def backward(
    model: Segmenter,
    objective: Objective,
    batches: Iterable[Sequence[Batch]],
    *,
    count: int,
    seed: int,
    autocast: Callable[[], AbstractContextManager[None]],
    scale: Callable[[Tensor], Tensor] = lambda loss: loss,
    together: bool = False,
) -> dict[str, Tensor]:
    """Add the gradients of the loss over some batches of one size to `.grad`.

    Args:
        model: On its device.
        objective: Names the loss terms.
        batches: `count` batches on the device, each in pieces of one size.
        count: Number of batches.
        seed: Of the random numbers; every piece takes its own of those drawn for all images.
        autocast: Opens the number format of the forward pass.
        scale: Multiplies the loss before backward.
        together: Every process passes such batches, the parts of a larger one.

    Returns:
        The mean of each term, on the device.
    """
    means: dict[str, Tensor] = {}
    processes = distributed.world_size() if together else 1
    together = processes > 1
    for number, pieces in enumerate(batches):
        place = number * processes + (distributed.rank() if together else 0)
        for order, piece in enumerate(pieces):
            weight = 1 / (count * len(pieces))
            share = Share(
                torch.tensor(place * len(pieces) + order),
                count * processes * len(pieces),
                together=together,
            )
            torch.manual_seed(seed)
            with taking(share):
                with autocast():
                    terms = objective(model, piece)
                loss = torch.stack(list(terms.values())).sum() * weight
                torch.autograd.backward(scale(loss))
            for name, term in terms.items():
                value = term.detach().float() * weight
                means[name] = means[name] + value if name in means else value
    return means
