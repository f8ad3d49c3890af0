"""Several processes for one run, a GPU each: what torchrun starts, and how their shares of a batch come together.

Every rank draws the same order, the same augmentation and the same replayed samples of the whole batch, and trains on its
share of it: row r, r + R, r + 2R, … of the new samples and of the replayed ones. Gradients are summed with the weight of
each share, so R ranks take the very step that one rank takes with the same batch, up to rounding, wherever the loss is a mean
over samples. Memories, statistics and means are made from the same samples on every rank and are the same; rank 0 alone writes.

BatchNorm is the exception: every rank normalises by its own share, as DistributedDataParallel does, and running
statistics are averaged over ranks at the end of every epoch. A backbone with GroupNorm, LayerNorm or none has no such gap.
"""

from __future__ import annotations

import atexit
import contextlib
import dataclasses
import gc
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch import distributed as dist

from clframe.errors import ConfigurationError, TrainingError
from clframe.strategy import Batch

__all__ = ["ALONE", "Ranks", "join_ranks"]

T = TypeVar("T")

_TOLERANCE = 1e-3
"""Relative difference of the ranks' weights that rounding can explain."""


@dataclass(frozen=True)
class Ranks:
    """This process among those of the run.

    Attributes:
        rank: Its number, from 0.
        count: How many there are.
    """

    rank: int = 0
    count: int = 1

    @property
    def first(self) -> bool:
        """Whether this is the process that writes."""
        return self.rank == 0

    @property
    def several(self) -> bool:
        """Whether there is another one."""
        return self.count > 1

    # -- shares ----------------------------------------------------------------------------------------------------

    def share(self, values: T) -> T:
        """Return this rank's share of a tensor or list: every `count`-th row, from `rank` on."""
        return values[self.rank :: self.count]  # type: ignore[index,no-any-return]

    def of_batch(self, batch: Batch) -> tuple[Batch, float]:
        """Return this rank's share of a batch, and its share of the samples; (0, 1] summing to 1 over the ranks.

        A rank for which no sample is left gets the first one, with weight 0.
        """
        rows = torch.arange(len(batch.x))
        chosen = torch.cat([self.share(rows[: batch.num_new]), self.share(rows[batch.num_new :])])
        weight = len(chosen) / len(rows)
        chosen = chosen if len(chosen) else rows[:1]
        there = chosen.to(batch.x.device)
        mine = dataclasses.replace(
            batch,
            x=batch.x[there],
            y=batch.y[there],
            ids=batch.ids[chosen] if len(batch.ids) else batch.ids,
            num_new=int((chosen < batch.num_new).sum()),
            task_ids=None if batch.task_ids is None else batch.task_ids[there],
            views=tuple(view[there] for view in batch.views),
            memory_rows=None if batch.memory_rows is None else self.share(batch.memory_rows),
        )
        return mine, weight

    def gathered(self, values: Tensor) -> Tensor:
        """Put the ranks' shares (n_r, …) of a tensor (N, …) together again, on the device that they are on."""
        if not self.several:
            return values
        parts = self.everybodys(values.cpu())
        whole = values.new_empty((sum(map(len, parts)), *values.shape[1:]))
        for rank, part in enumerate(parts):
            whole[rank :: self.count] = part.to(values.device)
        return whole

    def joined(self, columns: dict[str, dict[str, NDArray[Any]]]) -> dict[str, dict[str, NDArray[Any]]]:
        """Put the ranks' shares (n_r,) of named columns, of every head, together again."""
        if not self.several:
            return columns
        parts = self.everybodys(columns)
        whole: dict[str, dict[str, NDArray[Any]]] = {}
        for head, names in next(part for part in parts if part).items():
            for name, column in names.items():
                shares = [part[head][name] if part else column[:0] for part in parts]
                found = np.empty(sum(map(len, shares)), dtype=column.dtype)
                for rank, share in enumerate(shares):
                    found[rank :: self.count] = share
                whole.setdefault(head, {})[name] = found
        return whole

    # -- what is exchanged -----------------------------------------------------------------------------------------

    def everybodys(self, value: T) -> list[T]:
        """Return every rank's value, in the order of ranks."""
        found: list[Any] = [value] * self.count
        if self.several:
            dist.all_gather_object(found, value)
        return found

    def from_first(self, make: Callable[[], T]) -> T:
        """Return what rank 0 makes, on every rank; an error that it raises is raised everywhere."""
        if not self.several:
            return make()
        sent: list[Any] = [None, None]
        if self.first:
            try:
                sent = [make(), None]
            except Exception as error:
                sent = [None, error]
        dist.broadcast_object_list(sent, src=0)
        if sent[1] is not None:
            raise sent[1]
        return sent[0]  # type: ignore[no-any-return]

    def wait(self) -> None:
        """Wait for the other ranks."""
        if self.several:
            dist.barrier()

    @contextlib.contextmanager
    def first_then_others(self) -> Iterator[None]:
        """Let rank 0 go through a block before the others, for what it leaves on disk for them."""
        if not self.first:
            self.wait()
        yield
        if self.first:
            self.wait()

    def reduce_gradients(self, parameters: Sequence[nn.Parameter], total: Tensor) -> Tensor:
        """Sum the weighted gradients of all ranks in place; returns the sum of the weighted totals.

        A parameter that got a gradient on some rank has one on every rank afterwards.
        """
        if not self.several:
            return total
        marks = torch.tensor([float(p.grad is not None) for p in parameters])
        flat = [(torch.zeros_like(p) if p.grad is None else p.grad).flatten().float() for p in parameters]
        packed = torch.cat([*flat, total.detach().reshape(1).float(), marks.to(total.device)])
        dist.all_reduce(packed)
        values = torch.split(packed[: -len(parameters) - 1], [p.numel() for p in parameters])
        got = packed[-len(parameters) :].tolist()
        for parameter, value, mark in zip(parameters, values, got, strict=True):
            if mark:
                parameter.grad = value.view_as(parameter).to(parameter.dtype)
        return packed[-len(parameters) - 1]

    def average_buffers(self, modules: Iterable[nn.Module]) -> None:
        """Give every rank the mean of all ranks' floating-point buffers: BatchNorm's running statistics."""
        buffers = [b for m in modules for b in m.buffers() if b.is_floating_point()]
        if self.several and buffers:
            packed = torch.cat([b.flatten().float() for b in buffers])
            dist.all_reduce(packed)
            for buffer, value in zip(buffers, torch.split(packed, [b.numel() for b in buffers]), strict=True):
                buffer.copy_((value / self.count).view_as(buffer))

    def summed_losses(self, steps: Sequence[Mapping[str, Tensor]]) -> list[dict[str, Tensor]]:
        """Sum every step's weighted loss terms over the ranks; `total` has been summed already."""
        if not self.several or not steps:
            return [dict(step) for step in steps]
        names = {name: [float(step.get(name, 0.0)) for step in steps] for step in steps for name in step}
        sums: dict[str, list[float]] = {}
        for found in self.everybodys(names):
            for name, values in found.items():
                before = sums.get(name)
                if name == "total":
                    sums[name] = values
                else:
                    sums[name] = values if before is None else [a + b for a, b in zip(before, values, strict=True)]
        return [{name: torch.tensor(values[i]) for name, values in sums.items()} for i in range(len(steps))]

    def refuse_difference(self, parameters: Sequence[nn.Parameter], memories: Sequence[Tensor], where: str) -> None:
        """Stop when ranks have come apart, before a result is made of them.

        Raises:
            TrainingError: Weights differ by more than rounding, or memories hold other samples.
        """
        if not self.several:
            return
        norms = torch.stack(torch._foreach_norm(list(parameters))).cpu() if parameters else torch.zeros(0)
        found = self.everybodys((norms, [ids.cpu() for ids in memories]))
        alike = all(
            torch.allclose(norms, other, rtol=_TOLERANCE, equal_nan=True)
            and all(torch.equal(a, b) for a, b in zip(memories, ids, strict=True))
            for other, ids in found
        )
        if not alike:
            raise TrainingError(
                f"The {self.count} processes of this run hold different weights or exemplars after {where}: the strategy "
                "decides something by its own share of a batch; run it on one device, or use `self.run.gathered`."
            )


ALONE = Ranks()
"""A run of one process."""


def join_ranks(device: str = "auto") -> Ranks:
    """Return this process's place among those that torchrun started, connected; `ALONE` without torchrun.

    Args:
        device: The run's device: NCCL connects GPUs, gloo the rest.

    Raises:
        ConfigurationError: torchrun's environment is incomplete, or a GPU is asked for by number.
    """
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count == 1:
        return ALONE
    missing = [n for n in ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT") if n not in os.environ]
    if missing:
        raise ConfigurationError(
            f"WORLD_SIZE is {count}, but {', '.join(missing)} is not set: start the run with torchrun, or unset WORLD_SIZE."
        )
    if device not in ("auto", "cpu", "cuda"):
        raise ConfigurationError(
            f"device: expected auto, cpu or cuda for a run of {count} processes, received {device!r}: each takes the GPU of "
            "its number."
        )
    on_gpu = device != "cpu" and torch.cuda.is_available()
    if on_gpu:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    if not dist.is_initialized():
        dist.init_process_group("cpu:gloo,cuda:nccl" if on_gpu else "gloo")
        atexit.register(_leave)
    return Ranks(dist.get_rank(), count)


def _leave() -> None:
    """Close the connections while the interpreter is alive: gloo's threads hold tensors, and abort when it goes first."""
    if dist.is_initialized():
        dist.destroy_process_group()
    gc.collect()
