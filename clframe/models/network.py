"""The network that a strategy trains: one or more backbones side by side, and named heads on their features."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, Self, cast

import torch
from torch import Tensor, nn

from clframe import spec
from clframe.errors import ContractError, did_you_mean
from clframe.models.backbone import Backbone
from clframe.models.gates import attach_gates, gates_of
from clframe.models.heads import Head, HeadConfig, NewInputs
from clframe.models.prune import is_channels_last, prune, widen

__all__ = ["CLASSIFIER", "HeadInputs", "Network", "Output", "freeze"]

HeadInputs = Literal["all", "last"] | int
CLASSIFIER = "classifier"
"""Name of the head that every network has; its logits are `Output.logits`."""


@dataclasses.dataclass(slots=True)
class Output:
    """What one forward pass gives.

    Attributes:
        features: (B, D), the branches' features side by side.
        branch_features: One (B, D_b) per branch; their concatenation is `features`.
        logits: (B, K) of the head `classifier`.
        stages: The last branch's stage maps where they were asked for, else empty.
    """

    features: Tensor
    branch_features: tuple[Tensor, ...]
    logits: Tensor
    stages: tuple[Tensor, ...] = ()


def freeze(modules: nn.Module | Iterable[nn.Module]) -> None:
    """Take gradients from every parameter of the modules and put them into eval mode.

    A later `train()` of a module around them puts them back into train mode; for a branch that stays frozen for good
    see `Network.freeze_branch`.
    """
    for module in [modules] if isinstance(modules, nn.Module) else modules:
        module.requires_grad_(False)
        module.eval()


class Network(nn.Module):
    """Branches side by side, and heads that grow.

    The super-feature is the concatenation of the branches' features, in the order in which the branches were added.
    The head `classifier` reads the super-feature; further heads read it, the last branch, or one given branch.

    Args:
        factory: Makes one freshly initialised backbone each time it is called.
        head: What kind of head the classifier is; it starts without classes.
    """

    branches: nn.ModuleList
    heads: nn.ModuleDict

    def __init__(self, factory: Callable[[], Backbone], head: HeadConfig | None = None) -> None:
        super().__init__()
        self._factory = factory
        self._head_config = spec.build(HeadConfig, {}, "head") if head is None else head
        self._inputs: dict[str, HeadInputs] = {CLASSIFIER: "all"}
        self._configs: dict[str, HeadConfig] = {CLASSIFIER: self._head_config}
        self._frozen_branches: list[int] = []
        self._frozen = False
        self.branches = nn.ModuleList([factory()])
        self.heads = nn.ModuleDict({CLASSIFIER: self._head_config.build(self.feature_dim)})

    # ---- sizes

    @property
    def num_classes(self) -> int:
        """Number of classes K of the classifier."""
        return self.classifier.num_classes

    @property
    def classifier(self) -> Head:
        """The head whose logits are `Output.logits`."""
        return cast(Head, self.heads[CLASSIFIER])

    @property
    def feature_dim(self) -> int:
        """Length D of the super-feature."""
        return sum(self.branch_dims)

    @property
    def branch_dims(self) -> tuple[int, ...]:
        """Length of each branch's features."""
        return tuple(cast(Backbone, branch).feature_dim for branch in self.branches)

    @property
    def frozen_branches(self) -> tuple[int, ...]:
        """Indices of the branches that stay frozen for good."""
        return tuple(self._frozen_branches)

    @property
    def backbone_frozen(self) -> bool:
        """Whether every branch stays frozen for good, so that a sample's features are always the same."""
        return self._frozen or len(self._frozen_branches) == len(self.branches)

    def parameter_bytes(self) -> int:
        """Bytes of all parameters, without buffers such as BatchNorm's statistics."""
        return sum(p.numel() * p.element_size() for p in self.parameters())

    def set_factory(self, factory: Callable[[], Backbone]) -> None:
        """Make further branches by another function, such as the run's own after a checkpoint was read."""
        self._factory = factory

    # ---- computing

    def forward(self, x: Tensor, task_ids: Tensor | None = None, stages: bool = False) -> Output:
        """Compute features and the classifier's logits.

        Args:
            x: (B, C, H, W) or (B, F).
            task_ids: (B,) int64, where the scenario gives them; only a multi-head uses them.
            stages: Whether to keep the last branch's stage maps.
        """
        modules = self._modules  # read once: attribute access of a module is the dear part of a short forward
        branches = modules["branches"]._modules.values()  # type: ignore[union-attr]
        taps: tuple[Tensor, ...] = ()
        if stages:
            *first, last = branches
            last_features, taps = cast(Backbone, last).forward_stages(x)
            parts = (*(cast("Callable[[Tensor], Tensor]", branch)(x) for branch in first), last_features)
        else:
            parts = tuple([branch(x) for branch in branches])  # type: ignore[misc]
        features = parts[0] if len(parts) == 1 else torch.cat(parts, 1)
        head = modules["heads"]._modules[CLASSIFIER]  # type: ignore[union-attr]
        return Output(features, parts, head(features, task_ids), taps)  # type: ignore[misc]

    def features(self, x: Tensor) -> Tensor:
        """Compute the super-feature: (B, C, H, W) or (B, F) to (B, D)."""
        parts = [branch(x) for branch in self.branches]
        return cast(Tensor, parts[0] if len(parts) == 1 else torch.cat(parts, 1))

    def from_features(self, features: Tensor, task_ids: Tensor | None = None) -> Output:
        """Compute what `forward` gives after the branches: the logits of super-features (B, D).

        Args:
            features: (B, D), what `features` gave.
            task_ids: (B,) int64, where the scenario gives them.
        """
        parts = torch.split(features, list(self.branch_dims), dim=1)
        return Output(features, parts, self.classifier(features, task_ids))

    def head_logits(self, name: str, output: Output, task_ids: Tensor | None = None) -> Tensor:
        """Compute the logits (B, K_name) of a named head from what `forward` gave.

        Raises:
            ContractError: There is no such head.
        """
        head = self._head(name)
        if name == CLASSIFIER:
            return output.logits
        inputs = self._inputs[name]
        features = output.features if inputs == "all" else output.branch_features[-1 if inputs == "last" else inputs]
        return cast(Tensor, head(features, task_ids))

    # ---- growing

    def grow(self, num_classes: int, *, head: str = CLASSIFIER, classes: Sequence[int] | None = None) -> None:
        """Give a head units for `num_classes` classes; what it said of the old ones stays bit-identical.

        Args:
            num_classes: Classes after growing; asking for what is there already does nothing.
            head: Name of the head.
            classes: The classes of the task, for a multi-head whose tasks share classes.

        Raises:
            ContractError: The head doesn't exist or would shrink.
        """
        self._head(head).grow(num_classes, classes)

    def add_branch(self, copy_from: int | None = None, *, new_inputs: NewInputs = "fresh") -> Backbone:
        """Add a backbone beside the others; heads that read all branches get columns for it.

        The new branch trains as a whole and lies on the device, in the dtype and memory format of the first one.

        A copy of a pruned branch has the whole width again: kept channels take the values of the pruned branch, as
        `clframe.models.prune.widen` says, the others are fresh.

        Args:
            copy_from: Index of the branch whose values it starts from, buffers too; None starts afresh.
            new_inputs: Whether the heads' new columns are `fresh` or `zero`.

        Raises:
            ContractError: There is no branch of that index.
        """
        source = None if copy_from is None else self._branch(copy_from)
        if source is None or source.kept_channels is not None:
            branch = self._factory()
            _follow(branch, self.branches[0])
            if source is not None:
                widen(branch, source)
        else:
            branch = copy.deepcopy(source)
            branch.requires_grad_(True)
        self.branches.append(branch.train(self.training))
        for name, inputs in self._inputs.items():
            if inputs == "all":
                self._head(name).grow_inputs(self.feature_dim, new_inputs)
            elif inputs == "last" and self._head(name).in_features != branch.feature_dim:
                raise ContractError(
                    f"The head {name!r} reads {self._head(name).in_features} features of the last branch, the new "
                    f"branch gives {branch.feature_dim}; remove the head before adding the branch."
                )
        return branch

    def add_head(
        self, name: str, num_classes: int, inputs: HeadInputs = "all", config: HeadConfig | None = None
    ) -> Head:
        """Add a freshly initialised head, whose logits `head_logits` gives.

        Args:
            name: Its name; a taken one must be removed first.
            num_classes: Number of its units.
            inputs: `all` reads the super-feature, `last` always the branch added last, a number one branch.
            config: What kind of head; by default the classifier's.

        Raises:
            ContractError: The name is taken, or there is no such branch.
        """
        if name in self.heads:
            raise ContractError(f"The network has a head {name!r} already; remove it first or choose another name.")
        chosen = self._head_config if config is None else config
        if isinstance(inputs, int):
            self._branch(inputs)
            inputs %= len(self.branches)
        head = chosen.build(self._width_of(inputs))
        _follow(head, self.classifier)
        head.grow(num_classes)
        self._attach(name, head.train(self.training), inputs, chosen)
        return head

    def remove_head(self, name: str) -> None:
        """Remove a head.

        Raises:
            ContractError: There is no such head, or it is the classifier.
        """
        self._head(name)
        if name == CLASSIFIER:
            raise ContractError(
                "The head 'classifier' can't be removed; call its reset_parameters() to start it afresh."
            )
        del self.heads[name], self._inputs[name], self._configs[name]

    # ---- pruning

    def add_gates(self, index: int, start: float = 2.0) -> None:
        """Put a fresh gate on every set of channels of a branch; see `clframe.models.gates`.

        Raises:
            ContractError: There is no such branch, or its backbone has no support for gates.
        """
        attach_gates(self._branch(index), start)

    def prune_branch(self, index: int, kept: Mapping[str, Sequence[int]] | None = None) -> None:
        """Cut channels out of a branch, and the columns of features that go from the heads that read it.

        The features, and the logits of linear heads, are to rounding those with binary gates that are open for the
        channels kept. A cosine head's rows get shorter, and its logits larger.

        Args:
            index: Of the branch.
            kept: Numbers of the channels that stay, by set; by default the open ones of its gates, which are taken off.

        Raises:
            ContractError: There is no such branch, its backbone has no support for pruning, or there are no such
                channels.
        """
        branch, number = self._branch(index), index % len(self.branches)
        before = self.branch_dims
        places = prune(branch, kept)
        if len(places) == before[number]:
            return
        parts = [torch.arange(d) for d in before]
        parts[number] = places
        everywhere = torch.cat([part + sum(before[:k]) for k, part in enumerate(parts)])
        for name, inputs in self._inputs.items():
            read = len(before) - 1 if inputs == "last" else inputs
            if read == "all" or read == number:
                self._head(name).keep_inputs(everywhere if read == "all" else places)

    # ---- freezing and copying

    def freeze_branch(self, index: int) -> None:
        """Freeze a branch for good: no gradients, and eval mode whatever `train()` says, after a resume too.

        Raises:
            ContractError: There is no such branch.
        """
        branch = self._branch(index)
        self._frozen_branches = sorted({*self._frozen_branches, index % len(self.branches)})
        freeze(branch)

    def train(self, mode: bool = True) -> Self:
        """Set the mode of all modules but the frozen ones, which stay in eval mode."""
        super().train(mode and not self._frozen)
        for index in self._frozen_branches:
            self.branches[index].eval()
        return self

    def frozen_copy(self) -> Network:
        """Make a copy of its own storage, without gradients, that stays in eval mode."""
        twin = copy.deepcopy(self, {id(self._factory): self._factory})
        twin._frozen = True
        freeze(twin)
        return twin

    def structure(self) -> dict[str, Any]:
        """Describe branches and heads in JSON values; with the state dict, `from_structure` restores the network."""
        heads = {
            name: {
                "config": spec.to_dict(self._configs[name]),
                "inputs": self._inputs[name],
                "layout": self._head(name).layout(),
            }
            for name in self.heads
        }
        structure = {
            "branches": list(self.branch_dims),
            "frozen_branches": list(self._frozen_branches),
            "frozen": self._frozen,
            "heads": heads,
        }
        branches = [cast(Backbone, branch) for branch in self.branches]
        kept, gates = [b.kept_channels for b in branches], [list(gates_of(b)) for b in branches]
        return structure | ({"kept": kept} if any(kept) else {}) | ({"gates": gates} if any(gates) else {})

    @classmethod
    def from_structure(cls, structure: Mapping[str, Any], factory: Callable[[], Backbone]) -> Network:
        """Make a network of a described structure; `load_state_dict` then gives it its values.

        Args:
            structure: What `structure` gave.
            factory: Makes one backbone; `BackboneConfig.skeleton` spares it from reading pretrained weights again.

        Raises:
            ContractError: The factory's backbones have other feature lengths than those described.
        """
        recorded = structure["heads"]
        network = cls(factory, _head_config(recorded[CLASSIFIER]))
        for _ in structure["branches"][1:]:
            network.branches.append(factory())
        for branch, kept in zip(network.branches, structure.get("kept", ()), strict=False):
            if kept is not None:
                prune(cast(Backbone, branch), kept)
        for branch, gates in zip(network.branches, structure.get("gates", ()), strict=False):
            if gates:
                attach_gates(cast(Backbone, branch), only=gates)
        if list(network.branch_dims) != list(structure["branches"]):
            raise ContractError(
                f"The recorded network has branches of {list(structure['branches'])} features, the backbone at hand "
                f"gives {list(network.branch_dims)}; use the backbone that it was made with."
            )
        for name, entry in recorded.items():
            config = _head_config(entry)
            network._attach(name, config.build(network._width_of(entry["inputs"])), entry["inputs"], config)
            network._head(name).restore(entry["layout"])
        for index in structure["frozen_branches"]:
            network.freeze_branch(index)
        if structure["frozen"]:
            network._frozen = True
            freeze(network)
        return network

    # ---- small steps

    def _attach(self, name: str, head: Head, inputs: HeadInputs, config: HeadConfig) -> None:
        self.heads[name] = head
        self._inputs[name], self._configs[name] = inputs, config

    def _head(self, name: str) -> Head:
        if name not in self.heads:
            hint = did_you_mean(name, self.heads) or f" It has: {', '.join(self.heads)}."
            raise ContractError(f"The network has no head {name!r}.{hint}")
        return cast(Head, self.heads[name])

    def _branch(self, index: int) -> Backbone:
        if not -len(self.branches) <= index < len(self.branches):
            raise ContractError(f"The network has {len(self.branches)} branches, there is none of index {index}.")
        return cast(Backbone, self.branches[index])

    def _width_of(self, inputs: HeadInputs) -> int:
        if inputs == "all":
            return self.feature_dim
        return self._branch(-1 if inputs == "last" else inputs).feature_dim


def _head_config(entry: Mapping[str, Any]) -> HeadConfig:
    return spec.build(HeadConfig, entry["config"], "head")


def _follow(module: nn.Module, reference: nn.Module) -> None:
    """Move a module to the device, the dtype and, for convolutions, the memory format of another."""
    first = next(reference.parameters(), None)
    if first is None:
        return
    module.to(first.device, first.dtype)
    if any(is_channels_last(p) for p in reference.parameters()):
        module.to(memory_format=torch.channels_last)
