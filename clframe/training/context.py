"""What a strategy is lent for the length of a run: data, generators, statistics passes, fresh networks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from clframe.data.augment import Augmentation, Pipeline, ToInput
from clframe.models import Backbone, HeadConfig, Network
from clframe.strategy import Batch, Strategy
from clframe.stream import Experience, Stream
from clframe.training.batches import BatchMaker, sample_bytes
from clframe.training.recipe import Recipe
from clframe.training.seeds import RandomStreams, isolated

__all__ = ["Context", "Setup"]


@dataclass(kw_only=True, eq=False)
class Setup:
    """Everything that a run is made of, resolved.

    Attributes:
        stream: The data.
        strategy: The method.
        factory: Makes a fresh backbone; it may draw from the global generators.
        skeleton: Makes one whose values will be replaced, without reading pretrained weights.
        head: The classifier's kind.
        recipe: Of the main phase and, changed, of the others.
        first_recipe: Of the first experience.
        batch_size: Samples per step.
        eval_batch_size: Samples per forward pass when scoring.
        seed: Of everything random, unless one of the next two says otherwise.
        init_seed: Of initialisation and growth.
        data_seed: Of the order of samples and of augmentation.
        device: Where training happens.
        precision: `fp32`, or the type of automatic mixed precision.
        channels_last: Whether the network's convolutions keep channels last.
        augmentation: Of training images.
        test_transform: Of images that are not augmented.
        evaluate_future: Whether unseen tasks are scored too, and the untrained model.
        dry: Make phases and count steps, but compute nothing.
    """

    stream: Stream
    strategy: Strategy
    factory: Callable[[], Backbone]
    skeleton: Callable[[], Backbone]
    head: HeadConfig
    recipe: Recipe
    first_recipe: Recipe | None = None
    batch_size: int = 64
    eval_batch_size: int = 512
    seed: int = 0
    init_seed: int | None = None
    data_seed: int | None = None
    device: torch.device
    precision: str = "fp32"
    channels_last: bool = True
    augmentation: Augmentation | Pipeline | None = None
    test_transform: Augmentation | Pipeline | None = None
    evaluate_future: bool = False
    dry: bool = False

    def described(self) -> dict[str, Any]:
        """Return what was left to `auto`, as it was decided."""
        augmentation = self.augmentation
        spec = augmentation.to_spec() if isinstance(augmentation, Pipeline) else repr(augmentation)
        return {"device": str(self.device), "precision": self.precision, "augmentation": spec}


class Context:
    """The services of one run; see `clframe.strategy.RunContext`."""

    def __init__(self, setup: Setup) -> None:
        self.setup = setup
        self.stream: Stream = setup.stream
        self.strategy: Strategy = setup.strategy
        self.device = setup.device
        self.setting = setup.stream.setting
        self.score = setup.stream.score
        self.boundaries = setup.stream.boundaries
        self.batch_size = setup.batch_size
        self.num_classes = setup.stream.num_classes
        self.num_experiences = len(setup.stream.experiences)
        self.sample_bytes = sample_bytes(setup.stream.shape)
        self.streams = RandomStreams(setup.seed, setup.init_seed, setup.data_seed)
        self.experience = setup.stream.experiences[0]
        to_input = ToInput(setup.stream.mean, setup.stream.std)
        self.train_maker = BatchMaker(
            setup.stream.train, to_input, setup.device, setup.augmentation, setup.test_transform
        )
        self.test_maker = BatchMaker(setup.stream.test, to_input, setup.device, None, setup.test_transform)
        self.network = self.fresh_network()
        self._task_classes = torch.zeros(0, 0, dtype=torch.bool)

    def rng(self, purpose: str) -> torch.Generator:
        """Return the CPU generator of a purpose in the current scope."""
        return self.streams(purpose)

    def fresh_network(self) -> Network:
        """Return a newly initialised network of the run's architecture, without classes."""
        drawn = torch.randint(2**62, (), generator=self.rng("init"))
        with isolated(int(drawn)):
            return self.place(Network(self.setup.factory, self.setup.head))

    def place(self, network: Network) -> Network:
        """Move a network to the run's device and memory format, and let it make further branches as the run does."""
        network.set_factory(self.setup.factory)
        network = network.to(self.device)
        return network.to(memory_format=torch.channels_last) if self.setup.channels_last else network

    def recipe(self, experience: Experience, changes: dict[str, object] | None) -> Recipe:
        """Return the recipe of a phase of an experience."""
        first = self.setup.first_recipe if experience.index == 0 else None
        return (first or self.setup.recipe).changed(changes)

    def targets(self, ids: Tensor) -> Tensor:
        """Return the labels of training samples, on the CPU."""
        return self.stream.train.targets[ids]

    def batches(self, ids: Tensor, batch_size: int | None = None) -> Iterator[Batch]:
        """Yield samples in order under the test transform; in a dry run at most two of them."""
        chosen = ids[:2] if self.setup.dry else ids
        return self.train_maker.in_order(chosen, batch_size or self.batch_size, self.experience)

    @torch.no_grad()
    def features(self, ids: Tensor, network: Network | None = None) -> Tensor:
        """Return (N, D) features on the CPU: test transform, eval mode, no gradient."""
        model = network or self.network
        if self.setup.dry:
            return torch.zeros(len(ids), model.feature_dim)
        modes = [(module, module.training) for module in model.modules()]
        model.eval()
        try:
            parts = [model.features(b.x).float() for b in self.batches(ids, self.setup.eval_batch_size)]
        finally:
            for module, mode in modes:  # one by one: a phase may keep some modules in eval mode
                module.training = mode
        return torch.cat(parts).cpu() if parts else torch.empty(0, model.feature_dim)

    def task_mask(self, task_ids: Tensor) -> Tensor:
        """Return the (B, K) bool mask of the classes of every sample's task."""
        known = self.network.num_classes
        if self._task_classes.shape[1] != known:
            rows = 1 + max((t.task_id for t in self.stream.tasks if t.task_id is not None), default=0)
            table = torch.zeros(rows, known, dtype=torch.bool)
            for task in self.stream.tasks:
                if task.task_id is not None:
                    table[task.task_id, [c for c in task.classes if c < known]] = True
            self._task_classes = table.to(self.device)
        return self._task_classes[task_ids]
