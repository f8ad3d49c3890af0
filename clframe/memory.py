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

__all__ = ["OBSERVING", "Budget", "ExemplarMemory", "Policy", "herding_order"]

Budget = Literal["total", "per_class"]
Policy = Literal["herding", "random", "reservoir", "ring", "class_balanced", "greedy_balanced"]
OBSERVING: tuple[Policy, ...] = ("reservoir", "ring", "class_balanced", "greedy_balanced")
"""Policies filled while the stream goes by."""

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
    cost = normalised.square().sum(dim=1)  # ‖kμ − S − v‖² is this less 2⟨kμ − S, v⟩, up to a constant
    for k in range(1, min(count, len(normalised)) + 1):
        best = int((cost - 2 * (normalised @ (k * mean - total))).argmin())
        chosen.append(best)
        cost[best] = torch.inf
        total = total + normalised[best]
    return torch.tensor(chosen, dtype=torch.int64)


class ExemplarMemory:
    """A bounded set of past samples.

    `herding` and `random` are filled after an experience (`add_classes`); `reservoir`, `ring`, `class_balanced` and
    `greedy_balanced` while the stream goes by (`observe`).

    The two balanced ones differ. `class_balanced` (CBRS) is always full once it can be, and its samples of a class stay a
    uniform draw of that class's stream. `greedy_balanced` (GDumb) never gives a class more than its share of the
    size, even while there is room, and a class that has its share takes no further sample.

    Args:
        size: Samples in all (`total`) or of every class (`per_class`).
        budget: `total` keeps ⌊size / classes seen⌋ of every class, fewer as classes arrive; `per_class` a fixed
            number. `reservoir`, `class_balanced` and `greedy_balanced` keep up to `size` samples in all.
        policy: How samples are chosen.
        sample_bytes: Bytes of one stored image.

    Raises:
        ConfigurationError: The policy can't keep that kind of budget.
    """

    def __init__(
        self, size: int, *, budget: Budget = "total", policy: Policy = "herding", sample_bytes: int = 0
    ) -> None:
        """Start empty."""
        if budget == "per_class" and policy in ("reservoir", "class_balanced", "greedy_balanced"):
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
        if self.size > 0 and self.policy not in ("reservoir", "class_balanced") and self.quota(num_classes) == 0:
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
        extras: Mapping[str, Tensor] | None = None,
    ) -> None:
        """Take exemplars of the classes of an experience, after shrinking those kept before to the new quota.

        A class that comes again shares its quota between the exemplars it has and its new samples, in proportion to
        how many samples either were chosen from; so a small memory still holds all of a class's history. A class with
        fewer samples than its quota gives what it has, with a warning. A sample is never stored twice.

        Args:
            ids: (N,) ids of the experience's samples.
            targets: (N,) their labels.
            num_seen_classes: Classes seen so far, these included.
            generator: Draws for `random`.
            features: Maps ids to features (N, D) under the test transform; needed for `herding`.
            extras: Tensors (N, …) stored with the samples, such as logits.
        """
        self._check_extras(extras or {})
        quota, num_old = self.quota(num_seen_classes), len(self)
        new = ~torch.isin(ids, self.ids)
        ids, targets = ids[new], targets[new]
        values = features(ids) if features is not None and self.policy == "herding" and len(ids) else None
        self._append(ids, targets, {name: value.detach().cpu()[new] for name, value in (extras or {}).items()})
        kept, short = [no_rows()], 0
        for label, positions in _by_label(self.targets):
            own = positions[positions < num_old]
            fresh = positions[positions >= num_old]
            if len(fresh):
                ranks = self._rank(None if values is None else values[fresh - num_old], len(fresh), quota, generator)
                before = self.class_counts.get(label, 0)
                short += len(positions) < quota
                positions = _interleaved(own, fresh[ranks], before, len(fresh))
                self.class_counts[label] = before + len(fresh)
            kept.append(positions[:quota])
        if short:
            warnings.warn(
                f"{short} classes have fewer samples than their quota of {quota} exemplars and keep all they have.",
                stacklevel=2,
            )
        self._keep(torch.cat(kept))
        self.num_observed += len(ids)

    def _rank(self, features: Tensor | None, count: int, quota: int, generator: torch.Generator) -> Tensor:
        if self.policy == "random":
            return torch.randperm(count, generator=generator)
        if self.policy != "herding" or features is None:
            raise ContractError(
                f"add_classes ranks samples by random draws or by herding with features; the memory policy is {self.policy!r}"
                f"{'' if self.policy == 'herding' else ', which is filled by observe'}: give what it needs."
            )
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
        self._check_extras(given)
        if self.policy == "ring":
            self._ring(ids, targets, given)
        elif self.policy == "greedy_balanced":
            self._greedy(ids, targets, given, torch.rand(len(ids), generator=generator, dtype=torch.float64))
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
        """Class-balancing reservoir sampling (Chrysakis & Moens 2020, Alg. 1), one sample after the other.

        Which classes were among the largest counts from when the memory is filled; ties go to the lowest label.
        """
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

    def _greedy(self, ids: Tensor, targets: Tensor, extras: dict[str, Tensor], draws: Tensor) -> None:
        """Greedy balancing sampler (Prabhu et al. 2020, Alg. 1), one sample after the other.

        A sample enters while its class has less than size / classes seen; in a full memory it takes the place of a random
        sample of the largest class, of the lowest label among equals. What enters is written once at the end.
        """
        labels = self.targets.tolist()
        counts = dict.fromkeys(self.class_counts, 0)
        for label in labels:
            counts[label] += 1
        num_old, taken = len(labels), dict[int, int]()  # which sample ends up in a slot
        for k, label in enumerate(targets.tolist()):
            self.class_counts[label] = self.class_counts.get(label, 0) + 1
            count = counts.setdefault(label, 0)
            if count * len(counts) >= self.size:
                continue
            if len(labels) < self.size:
                slot = len(labels)
                labels.append(label)
            else:
                largest = max(sorted(counts), key=counts.__getitem__)
                places = [slot for slot, stored in enumerate(labels) if stored == largest]
                slot = places[int(float(draws[k]) * len(places))]
                counts[largest] -= 1
                labels[slot] = label
            counts[label] += 1
            taken[slot] = k
        for slot in range(num_old):
            if slot in taken:
                self._write(slot, taken[slot], ids, targets, extras)
        rows = torch.tensor([taken[slot] for slot in range(num_old, len(labels))], dtype=torch.int64)
        self._append(ids[rows], targets[rows], {name: value[rows] for name, value in extras.items()})

    def renew(self, ids: Tensor, extras: Mapping[str, Tensor]) -> None:
        """Replace what is stored beside some samples; those that aren't in the memory are passed over.

        Args:
            ids: (B,) ids.
            extras: Tensors (B, …) by name, as `observe` was given them.
        """
        found = (self.ids == ids.cpu()[:, None]).nonzero()
        if not len(found):
            return
        self._check_extras(extras)
        rows, slots = found.unbind(1)
        for name, value in extras.items():
            new = value.detach()[rows].cpu()
            self.extras[name] = _widen(self.extras[name], new)
            self.extras[name][slots] = _widen(new, self.extras[name])

    def _ring(self, ids: Tensor, targets: Tensor, extras: dict[str, Tensor]) -> None:
        """Keep the newest samples of every class; a sample that is there already is renewed, not doubled."""
        latest = torch.tensor(sorted({sample: k for k, sample in enumerate(ids.tolist())}.values()), dtype=torch.int64)
        ids, targets, extras = ids[latest], targets[latest], {name: value[latest] for name, value in extras.items()}
        known = torch.isin(self.ids, ids)
        if bool(known.any()):
            self._keep((~known).nonzero().flatten())
        self._append(ids, targets, extras)
        classes = _by_label(self.targets)
        quota = self.quota(len(classes))
        kept = [positions[-quota:] if quota else no_rows() for _, positions in classes]
        self._keep(torch.cat([no_rows(), *kept]).sort().values)

    def sample(self, count: int, *, generator: torch.Generator) -> Tensor:
        """Draw positions of stored samples: without replacement while there are enough, else all of them.

        Returns:
            (min(count, len(self)),) int64 positions into `ids`, `targets` and `extras`.
        """
        if count >= len(self):
            return torch.arange(len(self))
        if count * count < len(self):  # a few out of many seldom collide, and cost less than a full permutation
            drawn = torch.randint(len(self), (count,), generator=generator)
            if len(torch.unique(drawn)) == count:
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
            "ids": self.ids.clone(),  # samples are replaced in place
            "targets": self.targets.clone(),
            "extras": {name: value.clone() for name, value in self.extras.items()},
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

    def _check_extras(self, extras: Mapping[str, Tensor]) -> None:
        if len(self) and set(extras) != set(self.extras):
            raise ContractError(
                f"Every sample of a memory needs the same extras: expected {sorted(self.extras)}, received {sorted(extras)}."
            )

    def _keep(self, positions: Tensor) -> None:
        self.ids, self.targets = self.ids[positions], self.targets[positions]
        self.extras = {name: value[positions] for name, value in self.extras.items()}

    def _append(self, ids: Tensor, targets: Tensor, extras: Mapping[str, Tensor]) -> None:
        for name, value in extras.items():
            old = self.extras.get(name, value[:0])
            self.extras[name] = torch.cat([_widen(old, value), _widen(value, old)])
        self.ids, self.targets = torch.cat([self.ids, ids]), torch.cat([self.targets, targets])

    def _write(self, slot: int, k: int, ids: Tensor, targets: Tensor, extras: Mapping[str, Tensor]) -> None:
        self.ids[slot], self.targets[slot] = ids[k], targets[k]
        for name, value in extras.items():
            self.extras[name] = _widen(self.extras[name], value)
            self.extras[name][slot] = _widen(value, self.extras[name])[k]


def no_rows() -> Tensor:
    """Return an empty set of positions."""
    return torch.empty(0, dtype=torch.int64)


def _by_label(targets: Tensor) -> list[tuple[int, Tensor]]:
    """Return every label with its positions in their order; one sort for all labels."""
    labels, counts = torch.unique(targets, return_counts=True)
    order = torch.argsort(targets, stable=True)
    return list(zip(labels.tolist(), torch.split(order, counts.tolist()), strict=True))


def _interleaved(old: Tensor, new: Tensor, num_old: int, num_new: int) -> Tensor:
    """Merge two rankings so that every prefix holds of both in the proportion of the samples behind them."""
    keys = [(torch.arange(len(part)) + 0.5) / max(1, count) for part, count in ((old, num_old), (new, num_new))]
    return torch.cat([old, new])[torch.argsort(torch.cat(keys), stable=True)]


def _widen(tensor: Tensor, other: Tensor) -> Tensor:
    """Pad the last dimension with NaN to the width of `other`: stored logits grow with the head."""
    missing = other.shape[-1] - tensor.shape[-1] if tensor.dim() > 1 else 0
    return torch.nn.functional.pad(tensor, (0, missing), value=float("nan")) if missing > 0 else tensor
