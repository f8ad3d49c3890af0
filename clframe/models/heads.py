"""Classifier heads that grow: linear, cosine, several proxies per class, and one linear layer per task.

Growing replaces parameters by longer ones whose old part is bit-identical, on the same device and of the same dtype;
an optimiser that holds the shorter ones must be made anew. New values are drawn on the CPU from torch's global
generator, so that every device sees the same draws.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clframe.errors import ConfigurationError, ContractError
from clframe.spec import Configurable, field

__all__ = ["CosineHead", "Head", "HeadConfig", "LinearHead", "LocalSimilarityHead", "MultiHead", "NewInputs"]

Init = Literal["torch", "kaiming_normal", "kaiming_uniform", "zeros"]
NewInputs = Literal["fresh", "zero"]


class HeadConfig(Configurable):
    """What kind of classifier stands on the features."""

    name: Literal["linear", "cosine", "local_similarity", "multi"] = field(
        default="linear",
        help="linear; cosine: similarity of unit vectors times a learned scale; local_similarity: the same with several "
        "proxies per class (PODNet); multi: a layer per task.",
    )
    bias: bool = field(default=True, help="Whether linear layers have a bias.")
    init: Init = field(
        default="torch",
        help="How new weights are drawn: torch is uniform in ±1/sqrt(D), bias too; kaiming_normal is N(0, 1/D), bias 0; "
        "kaiming_uniform is uniform in ±sqrt(3/D), bias 0 (PyCIL).",
    )
    scale: float = field(
        default=1.0, gt=0, help="Initial value of the learned scale of cosine and local_similarity heads."
    )
    proxies: int = field(default=10, ge=1, help="Proxies of every class of a local_similarity head (10 in PODNet).")

    def build(self, in_features: int) -> Head:
        """Make a head without classes, for features (B, in_features).

        Raises:
            ConfigurationError: A head of directions is asked to start from zeros, which have none.
        """
        if self.name in ("cosine", "local_similarity"):
            if self.init == "zeros":
                raise ConfigurationError(
                    f"A {self.name} head can't start from zeros; set head.init to torch or kaiming_normal."
                )
            if self.name == "local_similarity":
                return LocalSimilarityHead(in_features, self.init, self.scale, self.proxies)
            return CosineHead(in_features, self.init, self.scale)
        if self.name == "multi":
            return MultiHead(in_features, self.bias, self.init)
        return LinearHead(in_features, self.bias, self.init)


class Head(nn.Module):
    """A classifier that grows in classes and in inputs. Row k of `weight` belongs to class k.

    Args:
        in_features: Length D of a feature vector.
        init: How new weights are drawn.
    """

    num_classes: int
    weight: Tensor
    """Full weight matrix (K, D), in the order of the classes."""
    bias: Tensor | None
    """Full bias (K,), or None."""

    def __init__(self, in_features: int, init: Init = "torch") -> None:
        super().__init__()
        self.in_features, self.init = in_features, init

    def forward(self, features: Tensor, task_ids: Tensor | None = None) -> Tensor:
        """Compute logits: (B, D) to (B, K).

        Args:
            features: (B, D).
            task_ids: (B,) int64, where the scenario gives them; only a multi-head uses them.
        """
        raise NotImplementedError

    def grow(self, num_classes: int, classes: Sequence[int] | None = None) -> None:
        """Add units so that there are `num_classes`; old rows stay bit-identical.

        A new row is drawn as a fresh layer of the head's full input would draw it: with `init` torch, weight and bias
        are uniform in ±1/sqrt(D), which is what `nn.Linear(D, ·)` does.

        Args:
            num_classes: Classes after growing; at least those before.
            classes: The classes of the task, for a multi-head; other heads ignore them.

        Raises:
            ContractError: The head would shrink.
        """
        raise NotImplementedError

    def grow_inputs(self, in_features: int, new: NewInputs = "fresh") -> None:
        """Take longer feature vectors; the columns of the old features and the bias stay bit-identical.

        Args:
            in_features: Length of a feature vector after growing, old features first.
            new: `fresh` draws the new columns as a fresh layer of `in_features` inputs would; `zero` sets them to 0.

        Raises:
            ContractError: The head would shrink.
        """
        raise NotImplementedError

    def keep_inputs(self, positions: Tensor) -> None:
        """Take shorter feature vectors: the columns of the features that stay, bit-identical; the bias stays.

        Args:
            positions: (D',) int64 positions of those features among the D of now.
        """
        raise NotImplementedError

    def write(self, weight: Tensor, bias: Tensor | None = None) -> None:
        """Overwrite the full matrix (K, D), and the full bias (K,) where one is given, in place.

        Weight alignment multiplies `weight` and writes it back.
        """
        raise NotImplementedError

    def reset_parameters(self) -> None:
        """Draw all values anew, in place: optimisers keep their references."""
        raise NotImplementedError

    def layout(self) -> dict[str, Any]:
        """Describe the size in JSON values, for `restore`."""
        return {"in_features": self.in_features, "num_classes": self.num_classes}

    def restore(self, layout: dict[str, Any]) -> None:
        """Grow a new head to a size that `layout` described; the values come from a state dict afterwards."""
        self.grow_inputs(int(layout["in_features"]))
        self.grow(int(layout["num_classes"]))

    def _check(self, what: str, before: int, after: int) -> None:
        if after < before:
            raise ContractError(f"A head can't shrink from {before} to {after} {what}; make a new one instead.")


class _MatrixHead(Head):
    """What linear and cosine heads share: one weight matrix, whose rows are as long as `proxies` feature vectors."""

    weight: nn.Parameter
    bias: nn.Parameter | None

    def __init__(self, in_features: int, bias: bool, init: Init, proxies: int = 1) -> None:
        super().__init__(in_features, init)
        self.num_classes, self.proxies = 0, proxies
        self.weight = nn.Parameter(torch.empty(0, proxies * in_features))
        self.register_parameter("bias", nn.Parameter(torch.empty(0)) if bias else None)

    def grow(self, num_classes: int, classes: Sequence[int] | None = None) -> None:
        self._check("classes", self.num_classes, num_classes)
        added = num_classes - self.num_classes
        if not added:
            return
        self.weight = _extend(self.weight, self._draw(added), 0)
        if self.bias is not None:
            self.bias = _extend(self.bias, _draw_bias(added, self.in_features, self.init), 0)
        self.num_classes = num_classes

    def grow_inputs(self, in_features: int, new: NewInputs = "fresh") -> None:
        self._check("inputs", self.in_features, in_features)
        added = in_features - self.in_features
        if not added:
            return
        init = "zeros" if new == "zero" else self.init
        self.weight = _extend(self.weight, _draw_weight((self.num_classes, added), in_features, init), 1)
        self.in_features = in_features

    def keep_inputs(self, positions: Tensor) -> None:
        kept = self.weight.detach().index_select(1, positions.to(self.weight.device))
        self.weight = nn.Parameter(kept, requires_grad=self.weight.requires_grad)
        self.in_features = len(positions)

    def write(self, weight: Tensor, bias: Tensor | None = None) -> None:
        with torch.no_grad():
            self.weight.copy_(weight)
            if bias is not None and self.bias is not None:
                self.bias.copy_(bias)

    def reset_parameters(self) -> None:
        fresh = self._draw(self.num_classes)
        self.write(fresh, None if self.bias is None else _draw_bias(self.num_classes, self.in_features, self.init))

    def _draw(self, classes: int) -> Tensor:
        return _draw_weight((classes, self.proxies * self.in_features), self.in_features, self.init)


class LinearHead(_MatrixHead):
    """Logits are `features @ weight.T + bias`.

    Args:
        in_features: Length D of a feature vector.
        bias: Whether there is a bias.
        init: How new weights are drawn.
    """

    def __init__(self, in_features: int, bias: bool = True, init: Init = "torch") -> None:
        super().__init__(in_features, bias, init)

    def forward(self, features: Tensor, task_ids: Tensor | None = None) -> Tensor:
        """Compute logits: (B, D) to (B, K)."""
        return F.linear(features, self.weight, self.bias)


class CosineHead(_MatrixHead):
    """Logits are `scale · cos(features, row)`, with one learned scale.

    Source: Hou et al., "Learning a Unified Classifier Incrementally via Rebalancing", CVPR 2019, eq. 5.

    Args:
        in_features: Length D of a feature vector.
        init: How new weights are drawn.
        scale: Initial scale; the paper's code starts from 1.
    """

    def __init__(self, in_features: int, init: Init = "torch", scale: float = 1.0, proxies: int = 1) -> None:
        super().__init__(in_features, bias=False, init=init, proxies=proxies)
        self.initial_scale = scale
        self.scale = nn.Parameter(torch.tensor(scale))

    def forward(self, features: Tensor, task_ids: Tensor | None = None) -> Tensor:
        """Compute logits: (B, D) to (B, K)."""
        return self.scale * F.linear(F.normalize(features, dim=1), F.normalize(self.weight, dim=1))

    def reset_parameters(self) -> None:
        """Draw all rows anew and set the scale back, in place."""
        super().reset_parameters()
        with torch.no_grad():
            self.scale.fill_(self.initial_scale)


class LocalSimilarityHead(CosineHead):
    """Several proxies ŵ_{c,k} per class, weighted by how similar each is, with one learned scale η.

    The logit of class c is `η Σ_k softmax_k(s_c) s_{c,k}`, where `s_{c,k} = −‖f̂ − ŵ_{c,k}‖²` of unit vectors. Row c
    of `weight` holds the proxies of class c one after the other: (K, P·D).

    Source: Douillard et al., "PODNet: Pooled Outputs Distillation for Small-Tasks Incremental Learning", ECCV 2020,
    section 3.2.

    Args:
        in_features: Length D of a feature vector.
        init: How new proxies are drawn.
        scale: Initial η.
        proxies: Proxies P of every class.
    """

    def __init__(self, in_features: int, init: Init = "torch", scale: float = 1.0, proxies: int = 10) -> None:
        super().__init__(in_features, init, scale, proxies)

    def forward(self, features: Tensor, task_ids: Tensor | None = None) -> Tensor:
        """Compute logits: (B, D) to (B, K)."""
        proxies = F.normalize(self.weight.view(self.num_classes * self.proxies, self.in_features), dim=1)
        cosines = F.linear(F.normalize(features, dim=1), proxies)
        similarities = 2 * cosines.view(len(features), self.num_classes, self.proxies) - 2
        return self.scale * (similarities.softmax(2) * similarities).sum(2)

    def grow_inputs(self, in_features: int, new: NewInputs = "fresh") -> None:
        """Take longer feature vectors: every proxy grows."""
        self._check("inputs", self.in_features, in_features)
        added, rows = in_features - self.in_features, self.num_classes * self.proxies
        if not added:
            return
        block = _draw_weight((rows, added), in_features, "zeros" if new == "zero" else self.init)
        longer = _extend(nn.Parameter(self.weight.detach().view(rows, self.in_features)), block, 1)
        self.weight = nn.Parameter(
            longer.detach().view(self.num_classes, self.proxies * in_features), self.weight.requires_grad
        )
        self.in_features = in_features


class MultiHead(Head):
    """One linear layer per task; its outputs stand in the columns of its classes.

    With task ids, every column that isn't of the sample's own task is -inf. A task id that the head hasn't got (-1, or
    a task still to come) masks nothing. Without task ids nothing is masked either, and the logits are those of a
    linear head with the same rows; a class that several tasks have is scored by the latest of them.

    The t-th call of `grow` that adds a task makes the layer of task t; where tasks repeat classes, give them.

    Args:
        in_features: Length D of a feature vector.
        bias: Whether the layers have a bias.
        init: How new weights are drawn.
    """

    rows: Tensor

    def __init__(self, in_features: int, bias: bool = True, init: Init = "torch") -> None:
        super().__init__(in_features, init)
        self.num_classes = 0
        self.has_bias = bias
        self.tasks = nn.ModuleList()
        self.task_classes: list[list[int]] = []
        self._in_order = True
        self.register_buffer("rows", torch.empty(1, 0, dtype=torch.int64), persistent=False)

    def grow(self, num_classes: int, classes: Sequence[int] | None = None) -> None:
        """Add a task's layer.

        Args:
            num_classes: Classes after growing.
            classes: The task's classes, in any order and without repeats, every new class among them; by default the
                new classes, and with none of these no layer is added.

        Raises:
            ContractError: The head would shrink, or `classes` don't fit.
        """
        self._check("classes", self.num_classes, num_classes)
        new = range(self.num_classes, num_classes)
        own = sorted(new if classes is None else classes)
        if len(set(own)) < len(own) or not set(new) <= set(own) or any(not 0 <= c < num_classes for c in own):
            raise ContractError(
                f"A task's classes must be distinct, below {num_classes} and include the new ones "
                f"{list(new)}, received {own}."
            )
        if own:
            layer = LinearHead(self.in_features, self.has_bias, self.init)
            layer.grow(len(own))
            reference = next(self.tasks.parameters(), None)
            device = self.rows.device if reference is None else reference.device
            self.tasks.append(layer.to(device, None if reference is None else reference.dtype))
            self.task_classes.append(own)
        self.num_classes = num_classes
        self._index()

    def _index(self) -> None:
        """Note in which row of the stacked layers each task scores each class; the last line is for any task."""
        table = torch.full((len(self.tasks) + 1, self.num_classes), -1, device="cpu")
        start = 0
        for task, classes in enumerate(self.task_classes):
            units = torch.arange(start, start + len(classes), device="cpu")
            table[task, classes] = units
            table[-1, classes] = units
            start += len(classes)
        self._in_order = table[-1].tolist() == list(range(start))
        self.rows = table.to(self.rows.device)

    def forward(self, features: Tensor, task_ids: Tensor | None = None) -> Tensor:
        """Compute logits: (B, D) to (B, K).

        Args:
            features: (B, D).
            task_ids: (B,) int64; without them no column is masked.
        """
        logits = F.linear(features, self._stacked("weight"), self._stacked("bias") if self.has_bias else None)
        if task_ids is None:
            return logits if self._in_order else logits.index_select(1, self.rows[-1])
        last = len(self.tasks)
        known = torch.where((task_ids >= 0) & (task_ids < last), task_ids, last)
        rows = self.rows[known]
        return logits.gather(1, rows.clamp_min(0)).masked_fill(rows < 0, -math.inf)

    def _stacked(self, name: str) -> Tensor:
        parts = [cast(Tensor, getattr(task, name)) for task in self.tasks]
        if not parts:
            shape = (0, self.in_features) if name == "weight" else (0,)
            return torch.empty(shape, device=self.rows.device)
        return torch.cat(parts)

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        """Full weight matrix (K, D) in the order of the classes: a copy; `write` puts one back."""
        return self._stacked("weight").index_select(0, self.rows[-1])

    @property
    def bias(self) -> Tensor | None:  # type: ignore[override]
        """Full bias (K,) in the order of the classes, a copy, or None."""
        return self._stacked("bias").index_select(0, self.rows[-1]) if self.has_bias else None

    def write(self, weight: Tensor, bias: Tensor | None = None) -> None:
        """Overwrite every layer with its classes' rows, in place."""
        for task, classes in zip(self._layers(), self.task_classes, strict=True):
            task.write(weight[classes], None if bias is None else bias[classes])

    def grow_inputs(self, in_features: int, new: NewInputs = "fresh") -> None:
        """Take longer feature vectors, in every task's layer."""
        self._check("inputs", self.in_features, in_features)
        for task in self._layers():
            task.grow_inputs(in_features, new)
        self.in_features = in_features

    def keep_inputs(self, positions: Tensor) -> None:
        """Take shorter feature vectors, in every task's layer."""
        for task in self._layers():
            task.keep_inputs(positions)
        self.in_features = len(positions)

    def reset_parameters(self) -> None:
        """Draw every layer's values anew, in place."""
        for task in self._layers():
            task.reset_parameters()

    def layout(self) -> dict[str, Any]:
        """Describe the size and each task's classes in JSON values, for `restore`."""
        return {**super().layout(), "tasks": [list(classes) for classes in self.task_classes]}

    def restore(self, layout: dict[str, Any]) -> None:
        """Grow a new head, task by task, to what `layout` described."""
        self.grow_inputs(int(layout["in_features"]))
        for classes in layout["tasks"]:
            self.grow(max(self.num_classes, max(classes) + 1), classes)

    def _layers(self) -> Iterable[LinearHead]:
        return cast("Iterable[LinearHead]", self.tasks)


def _draw_weight(shape: tuple[int, int], fan_in: int, init: Init) -> Tensor:
    """Draw a block of a weight matrix whose whole rows have `fan_in` columns."""
    block = torch.empty(shape, device="cpu")
    if init == "zeros":
        return block.zero_()
    if init == "kaiming_normal":
        return block.normal_(0.0, 1 / math.sqrt(fan_in))
    bound = math.sqrt((3 if init == "kaiming_uniform" else 1) / fan_in)
    return block.uniform_(-bound, bound)


def _draw_bias(size: int, fan_in: int, init: Init) -> Tensor:
    if init != "torch":
        return torch.zeros(size, device="cpu")
    bound = 1 / math.sqrt(fan_in)
    return torch.empty(size, device="cpu").uniform_(-bound, bound)


def _extend(old: nn.Parameter, new: Tensor, dim: int) -> nn.Parameter:
    """Append along a dimension; device, dtype and the wish for gradients are the old one's."""
    new = new.to(old.device, old.dtype)
    return nn.Parameter(torch.cat((old.detach(), new), dim), requires_grad=old.requires_grad)
