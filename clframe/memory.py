"""Exemplar memory: which past samples are kept, within a budget whose bytes are known.

A memory holds sample ids of the stream's training table, so keeping an exemplar copies nothing; its `bytes` are those
that the images themselves would take (uint8 pixels and an 8-byte label, plus whatever a strategy stores with them).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from clframe.errors import ConfigurationError, ContractError

__all__ = ["Budget", "ExemplarMemory", "Policy", "herding_order"]

Budget = Literal["total", "per_class"]
Policy = Literal["herding", "random", "reservoir", "ring", "class_balanced"]
_LABEL_BYTES = 8


def herding_order(features: Tensor, count: int) -> Tensor:
    """Rank samples so that the mean of the first k follows the class mean (iCaRL, Rebuffi et al. 2017, Alg. 4).

    Args:
        features: (N, D) features of one class; they are L2-normalised here.
        count: How many to rank (samples); fewer when the class has fewer.

    Returns:
        (min(count, N),) int64 positions, best first, without repetition.
    """
    normalised = torch.nn.functional.normalize(features.double(), dim=1)
    mean = normalised.mean(dim=0)
    chosen: list[int] = []
    total = torch.zeros_like(mean)
    free = torch.ones(len(normalised), dtype=torch.bool)
    for k in range(1, min(count, len(normalised)) + 1):
        distance = (mean - (total + normalised) / k).square().sum(dim=1)
        distance[~free] = torch.inf
        best = int(distance.argmin())
        chosen.append(best)
        free[best] = False
        total = total + normalised[best]
    return torch.tensor(chosen, dtype=torch.int64)


class ExemplarMemory:
    """A bounded set of past samples.

    `herding` and `random` are filled after an experience (`add_classes`); `reservoir`, `ring` and `class_balanced`
    while the stream goes by (`observe`).

    Args:
        size: Samples in all (`total`) or of every class (`per_class`).
        budget: `total` keeps ⌊size / classes seen⌋ of every class, fewer as classes arrive; `per_class` a fixed
            number. `reservoir` and `class_balanced` keep `size` samples in all.
        policy: How samples are chosen.
        sample_bytes: Bytes of one stored image.

    Raises:
        ConfigurationError: The policy can't keep that kind of budget.
    """

    def __init__(
        self, size: int, *, budget: Budget = "total", policy: Policy = "herding", sample_bytes: int = 0
    ) -> None:
        if budget == "per_class" and policy in ("reservoir", "class_balanced"):
            raise ConfigurationError(
                f"Expected a total budget for the memory policy {policy!r}, received 'per_class': choose ring, herding or random."
            )
        self.size = size
        self.budget: Budget = budget
        self.policy: Policy = policy
        self.sample_bytes = sample_bytes
        self.ids = torch.empty(0, dtype=torch.int64)
        self.targets = torch.empty(0, dtype=torch.int64)
        self.extras: dict[str, Tensor] = {}
        self.num_observed = 0
        self.class_counts: dict[int, int] = {}  # samples of every class offered so far
        self.full_classes: set[int] = set()  # classes that were at some time among the largest

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def bytes(self) -> int:
        """Bytes of images, labels and stored extras."""
        extras = sum(t.numel() * t.element_size() for t in self.extras.values())
        return len(self) * (self.sample_bytes + _LABEL_BYTES) + extras

    def quota(self, num_classes: int) -> int:
        """Return the samples that every class may keep once `num_classes` are seen."""
        return self.size if self.budget == "per_class" else self.size // max(1, num_classes)

    def check(self, num_classes: int) -> None:
        """Refuse a budget that leaves no exemplar to some class.

        Raises:
            ConfigurationError: Before anything is computed.
        """
        if self.size > 0 and self.policy in ("herding", "random", "ring") and self.quota(num_classes) == 0:
            raise ConfigurationError(
                f"Expected a memory of at least one exemplar for each of {num_classes} classes, received memory_size="
                f"{self.size}: raise it to {num_classes} or more, or set memory_size 0."
            )

    def add_classes(
        self,
        ids: Tensor,
        targets: Tensor,
        num_seen_classes: int,
        *,
        generator: torch.Generator,
        features: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        """Take exemplars of the classes of an experience, after shrinking those kept before to the new quota.

        A class that comes again keeps its exemplars and competes with its new samples. A class with fewer samples
        than its quota gives what it has, with a warning.

        Args:
            ids: (N,) ids of the experience's samples.
            targets: (N,) their labels.
            num_seen_classes: Classes seen so far, these included.
            generator: Draws for `random`.
            features: Maps ids to features (N, D) under the test transform; needed for `herding`.
        """
        quota = self.quota(num_seen_classes)
        candidates, labels = torch.cat([self.ids, ids]), torch.cat([self.targets, targets])
        arriving = set(targets.unique().tolist())
        to_rank = torch.isin(labels, torch.tensor(sorted(arriving), dtype=torch.int64))
        ranked_features = features(candidates[to_rank]) if features is not None and self.policy == "herding" else None
        kept: list[Tensor] = []
        short: list[int] = []
        for label in labels.unique().tolist():
            positions = (labels == label).nonzero().flatten()
            if label in arriving:
                own = (labels[to_rank] == label).nonzero().flatten()
                order = self._rank(
                    None if ranked_features is None else ranked_features[own], len(own), quota, generator
                )
                positions = positions[order]
                if len(positions) < quota:
                    short.append(label)
            kept.append(positions[:quota])
        if short:
            warnings.warn(
                f"{len(short)} classes have fewer samples than their quota of {quota} exemplars and keep all they have.",
                stacklevel=2,
            )
        order = torch.cat(kept) if kept else torch.empty(0, dtype=torch.int64)
        self._take(candidates[order], labels[order])
        self.num_observed += len(ids)

    def _rank(self, features: Tensor | None, count: int, quota: int, generator: torch.Generator) -> Tensor:
        if self.policy == "random":
            return torch.randperm(count, generator=generator)
        if self.policy != "herding" or features is None:
            raise ContractError(f"The memory policy {self.policy!r} can't rank samples here: herding needs features.")
        return herding_order(features, quota)

    def observe(
        self, ids: Tensor, targets: Tensor, *, generator: torch.Generator, extras: Mapping[str, Tensor] | None = None
    ) -> None:
        """Offer the samples of a training step to a memory that is kept while the stream goes by.

        Args:
            ids: (B,) ids.
            targets: (B,) labels.
            generator: Draws the replacements.
            extras: Tensors (B, …) stored with the samples, such as logits.
        """
        ids, targets = ids.cpu(), targets.cpu()
        given = {name: value.detach().cpu() for name, value in (extras or {}).items()}
        if self.policy == "ring":
            self._ring(ids, targets, given)
        elif self.policy in ("reservoir", "class_balanced"):
            self._replace(ids, targets, given, generator)
        else:
            raise ContractError(f"The memory policy {self.policy!r} is filled after an experience, not while training.")
        self.num_observed += len(ids)

    def _replace(self, ids: Tensor, targets: Tensor, extras: dict[str, Tensor], generator: torch.Generator) -> None:
        """Fill up, then replace: the slot of every accepted sample is known before anything moves."""
        room = max(0, min(self.size - len(self), len(ids)))
        if room:
            self._append(ids[:room], targets[:room], {k: v[:room] for k, v in extras.items()})
            for label in targets[:room].tolist():
                self.class_counts[label] = self.class_counts.get(label, 0) + 1
        rest = len(ids) - room
        if rest == 0 or self.size == 0:
            return
        draws = torch.rand(rest, 2, generator=generator, dtype=torch.float64)
        if self.policy == "reservoir":
            counts = torch.arange(self.num_observed + room + 1, self.num_observed + len(ids) + 1, dtype=torch.float64)
            slots = (draws[:, 0] * counts).long()
            accepted = {int(slots[k]): k + room for k in (slots < self.size).nonzero().flatten().tolist()}
            for slot, k in accepted.items():  # a later sample wins a slot that was drawn twice
                self._write(slot, k, ids, targets, extras)
        else:
            self._balanced(room, draws, ids, targets, extras)

    def _balanced(self, first: int, draws: Tensor, ids: Tensor, targets: Tensor, extras: dict[str, Tensor]) -> None:
        """Class-balancing reservoir sampling (Chrysakis & Moens 2020, Alg. 1), one sample after the other."""
        for k in range(first, len(ids)):
            label = int(targets[k])
            counts = torch.bincount(self.targets, minlength=label + 1)
            self.full_classes.update((counts == counts.max()).nonzero().flatten().tolist())
            self.class_counts[label] = seen = self.class_counts.get(label, 0) + 1
            u, v = draws[k - first].tolist()
            if label not in self.full_classes:  # never was among the largest: replace one of the largest class
                largest = (self.targets == int(counts.argmax())).nonzero().flatten()
                self._write(int(largest[int(u * len(largest))]), k, ids, targets, extras)
            elif u <= int(counts[label]) / seen:
                own = (self.targets == label).nonzero().flatten()
                self._write(int(own[int(v * len(own))]), k, ids, targets, extras)

    def _ring(self, ids: Tensor, targets: Tensor, extras: dict[str, Tensor]) -> None:
        """Keep the newest samples of every class; a sample that is there already is renewed, not doubled."""
        known = torch.isin(self.ids, ids)
        if bool(known.any()):
            self._keep((~known).nonzero().flatten())
        self._append(ids, targets, extras)
        quota = self.quota(len(self.targets.unique()))
        kept = [(self.targets == c).nonzero().flatten()[-quota:] if quota else no_rows() for c in self.targets.unique()]
        self._keep(torch.cat(kept).sort().values if kept else no_rows())

    def sample(self, count: int, *, generator: torch.Generator) -> Tensor:
        """Draw positions of stored samples: without replacement while there are enough, else all of them.

        Returns:
            (min(count, len(self)),) int64 positions into `ids`, `targets` and `extras`.
        """
        if count >= len(self):
            return torch.arange(len(self))
        if count * 4 < len(self):  # a full permutation for a small draw would cost more than the draw
            drawn = torch.randint(len(self), (count,), generator=generator)
            if len(drawn.unique()) == count:
                return drawn
        return torch.randperm(len(self), generator=generator)[:count]

    def remove(self, ids: Tensor) -> int:
        """Forget some samples, for instance when they must be unlearnt; returns how many were stored."""
        gone = torch.isin(self.ids, ids)
        self._keep((~gone).nonzero().flatten())
        return int(gone.sum())

    def state_dict(self) -> dict[str, Any]:
        """Return everything that a resumed run needs."""
        return {
            "size": self.size,
            "budget": self.budget,
            "policy": self.policy,
            "sample_bytes": self.sample_bytes,
            "ids": self.ids,
            "targets": self.targets,
            "extras": dict(self.extras),
            "num_observed": self.num_observed,
            "class_counts": dict(self.class_counts),
            "full_classes": sorted(self.full_classes),
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> ExemplarMemory:
        """Rebuild a memory from `state_dict`."""
        memory = cls(state["size"], budget=state["budget"], policy=state["policy"], sample_bytes=state["sample_bytes"])
        memory.ids, memory.targets = state["ids"].clone(), state["targets"].clone()
        memory.extras = {name: value.clone() for name, value in state["extras"].items()}
        memory.num_observed = state["num_observed"]
        memory.class_counts.update(state["class_counts"])
        memory.full_classes.update(state["full_classes"])
        return memory

    def _take(self, ids: Tensor, targets: Tensor) -> None:
        self.ids, self.targets = ids.clone(), targets.clone()

    def _keep(self, positions: Tensor) -> None:
        self.ids, self.targets = self.ids[positions], self.targets[positions]
        self.extras = {name: value[positions] for name, value in self.extras.items()}

    def _append(self, ids: Tensor, targets: Tensor, extras: Mapping[str, Tensor]) -> None:
        self.ids, self.targets = torch.cat([self.ids, ids]), torch.cat([self.targets, targets])
        for name, value in extras.items():
            old = self.extras.get(name)
            self.extras[name] = value.clone() if old is None else torch.cat([_widen(old, value), _widen(value, old)])

    def _write(self, slot: int, k: int, ids: Tensor, targets: Tensor, extras: Mapping[str, Tensor]) -> None:
        self.ids[slot], self.targets[slot] = ids[k], targets[k]
        for name, value in extras.items():
            self.extras[name] = _widen(self.extras[name], value)
            self.extras[name][slot] = _widen(value, self.extras[name])[k]


def no_rows() -> Tensor:
    """Return an empty set of positions."""
    return torch.empty(0, dtype=torch.int64)


def _widen(tensor: Tensor, other: Tensor) -> Tensor:
    """Pad the last dimension with NaN to the width of `other`: stored logits grow with the head."""
    missing = other.shape[-1] - tensor.shape[-1] if tensor.dim() > 1 else 0
    return torch.nn.functional.pad(tensor, (0, missing), value=float("nan")) if missing > 0 else tensor
