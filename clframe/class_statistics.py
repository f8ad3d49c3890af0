"""Running statistics of every class's features: count, mean and covariance, of known size, to compare with or to sample from.

Sums are merged as in Chan, Golub & LeVeque 1983, so that the order in which samples come changes nothing but rounding,
and a class that comes again adds to what is known of it. Values are kept in single and computed in double precision, on
the CPU.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional

from clframe.errors import ContractError

__all__ = ["ClassStatistics", "Covariance"]

Covariance = Literal["none", "full", "shared", "diagonal", "low_rank"]
"""What is kept beside the means: nothing; D² values per class; D² in all (the mean within classes); D per class; the
`rank` leading directions of every class, (rank + 1) · D values, and the mean variance across the other directions."""

_COUNT_BYTES = 8


class ClassStatistics:
    """Count, mean and covariance of the features of every class.

    Args:
        covariance: What is kept of the covariance.
        rank: Directions kept by `low_rank`.
    """

    def __init__(self, covariance: Covariance = "full", rank: int = 10) -> None:
        """Start without classes."""
        self.kind: Covariance = covariance
        self.rank = rank
        self.counts: dict[int, int] = {}
        self.means: dict[int, Tensor] = {}
        self.scatters: dict[int, Tensor] = {}  # by class; (D, D), (D,), or (R, D) whose FᵀF is the leading part
        self.rests: dict[int, float] = {}  # low_rank: the scatter's trace outside of its leading directions
        self.pooled: Tensor | None = None  # shared: (D, D), summed over classes

    @property
    def labels(self) -> list[int]:
        """The classes known, ascending."""
        return sorted(self.counts)

    @property
    def bytes(self) -> int:
        """Bytes of all that is kept."""
        pooled = [] if self.pooled is None else [self.pooled]
        kept = [*self.means.values(), *self.scatters.values(), *pooled]
        return sum(t.numel() * t.element_size() for t in kept) + _COUNT_BYTES * (len(self.counts) + len(self.rests))

    # -- learning ------------------------------------------------------------------------------------------------------

    def update(self, features: Tensor, targets: Tensor) -> None:
        """Add samples.

        Args:
            features: (N, D).
            targets: (N,) labels.
        """
        features, targets = features.detach().cpu().double(), targets.cpu()
        for label in torch.unique(targets).tolist():
            self._add(label, features[targets == label])

    def _add(self, label: int, features: Tensor) -> None:
        before, count = self.counts.get(label, 0), len(features)
        mean = features.mean(dim=0)
        old = self.means[label].double() if before else mean
        # the scatter about the common mean is that of both parts and of one more row, the shift between their means
        shift = math.sqrt(before * count / (before + count)) * (mean - old)
        rows = torch.cat([features - mean, shift[None]])
        self.counts[label] = before + count
        self.means[label] = (old + (mean - old) * (count / (before + count))).float()
        if self.kind == "shared":
            added = rows.T @ rows
            self.pooled = (added if self.pooled is None else self.pooled.double() + added).float()
        elif self.kind == "low_rank":
            self._add_low_rank(label, rows)
        elif self.kind != "none":
            added = rows.T @ rows if self.kind == "full" else rows.square().sum(dim=0)
            self.scatters[label] = (added + self.scatters.get(label, torch.zeros(()))).float()

    def _add_low_rank(self, label: int, rows: Tensor) -> None:
        known = self.scatters.get(label)
        rows = rows if known is None else torch.cat([known.double(), rows])
        _, values, directions = torch.linalg.svd(rows, full_matrices=False)
        self.scatters[label] = (values[: self.rank, None] * directions[: self.rank]).float()
        self.rests[label] = self.rests.get(label, 0.0) + float(values[self.rank :].square().sum())

    # -- reading -------------------------------------------------------------------------------------------------------

    def mean(self, labels: Sequence[int]) -> Tensor:
        """Return the means (K, D) of some classes, float32."""
        return torch.stack([self.means[c] for c in labels])

    def covariance(self, label: int, ridge: float = 0.0) -> Tensor:
        """Return the unbiased covariance (D, D) of a class, float64; of a single sample, zero.

        Args:
            label: The class; for `shared` all have the same.
            ridge: Added to the diagonal.

        Raises:
            ContractError: Only means are kept.
        """
        if self.kind == "none":
            raise ContractError("These class statistics keep means alone: make them with another covariance.")
        degrees = self._degrees(label)
        if self.kind == "shared":
            found = torch.zeros(()) if self.pooled is None else self.pooled.double() / degrees
        elif self.kind == "full":
            found = self.scatters[label].double() / degrees
        elif self.kind == "diagonal":
            found = torch.diag(self.scatters[label].double() / degrees)
        else:
            factors, directions, variance = self._low_rank(label)
            found = factors.T @ factors + variance * (torch.eye(factors.shape[1]) - directions.T @ directions)
        return found + ridge * torch.eye(len(self.means[label]), dtype=torch.float64)

    def _degrees(self, label: int) -> int:
        """Degrees of freedom: one less than the samples of a class, of every class for `shared`."""
        counts = list(self.counts.values()) if self.kind == "shared" else [self.counts[label]]
        return max(1, sum(counts) - len(counts))

    def _low_rank(self, label: int) -> tuple[Tensor, Tensor, float]:
        """Return scaled leading directions (R, D), the same of unit length, and the variance across each of the others."""
        factors = self.scatters[label].double() / math.sqrt(self._degrees(label))
        rank, dim = factors.shape
        variance = self.rests[label] / self._degrees(label) / max(1, dim - rank)
        return factors, functional.normalize(factors, dim=1), variance

    def sample(
        self,
        labels: Sequence[int],
        count: int,
        *,
        generator: torch.Generator,
        mean_scales: Sequence[float] | None = None,
        ridge: float = 0.0,
    ) -> tuple[Tensor, Tensor]:
        """Draw from the Gaussians of some classes; a covariance that is not of full rank is sampled where it has one.

        Args:
            labels: The classes.
            count: Samples of each.
            generator: Draws them, on the CPU.
            mean_scales: Factor of every class's mean; None means 1.
            ridge: Added to the diagonal of every covariance.

        Returns:
            (N, D) float32 features and (N,) labels, class by class.
        """
        scales = [1.0] * len(labels) if mean_scales is None else mean_scales
        shared = _root(self.covariance(labels[0], ridge)) if self.kind == "shared" and labels else None
        drawn = []
        for label, scale in zip(labels, scales, strict=True):
            noise = torch.randn(count, len(self.means[label]), generator=generator, dtype=torch.float64)
            spread = noise @ shared.T if shared is not None else self._spread(label, noise, ridge)
            drawn.append((scale * self.means[label].double() + spread).float())
        none = [torch.empty(0, 0)] if not drawn else []
        return torch.cat([*none, *drawn]), torch.tensor(list(labels), dtype=torch.int64).repeat_interleave(count)

    def _spread(self, label: int, noise: Tensor, ridge: float) -> Tensor:
        """Give standard normal noise (N, D) the covariance of a class."""
        if self.kind == "none":
            return noise * math.sqrt(ridge)
        if self.kind == "diagonal":
            return noise * (self.scatters[label].double() / self._degrees(label) + ridge).sqrt()
        if self.kind != "low_rank":
            return noise @ _root(self.covariance(label, ridge)).T
        factors, directions, variance = self._low_rank(label)
        along = noise @ directions.T
        lengths = (factors.square().sum(dim=1) + ridge).sqrt()
        return (along * lengths) @ directions + math.sqrt(variance + ridge) * (noise - along @ directions)

    # -- checkpoints ---------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Return everything that a resumed run needs."""
        tables = {name: dict(getattr(self, name)) for name in ("counts", "means", "scatters", "rests")}
        return {"covariance": self.kind, "rank": self.rank, "pooled": self.pooled, **tables}

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> ClassStatistics:
        """Rebuild statistics from `state_dict`."""
        made = cls(state["covariance"], state["rank"])
        made.pooled = state["pooled"]
        for name in ("counts", "means", "scatters", "rests"):
            getattr(made, name).update(state[name])
        return made


def _root(covariance: Tensor) -> Tensor:
    """Return a matrix R with RRᵀ = covariance: Cholesky's, or of eigenvectors where the rank is not full."""
    root: Tensor
    root, wrong = torch.linalg.cholesky_ex(covariance)
    if int(wrong):
        values, vectors = torch.linalg.eigh(covariance)
        root = vectors * values.clamp(min=0).sqrt()
    return root
