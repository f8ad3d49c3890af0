"""What a strategy is lent for the length of a run: data, generators, statistics passes, fresh networks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from clframe.data.augment import Augmentation, Pipeline, ToInput
from clframe.errors import ConfigurationError
from clframe.fingerprint import fingerprint
from clframe.models import Backbone, HeadConfig, MultiHead, Network, eval_mode
from clframe.strategy import Batch, Strategy
from clframe.stream import Experience, Stream
from clframe.training.batches import BatchMaker, sample_bytes
from clframe.training.feature_cache import FeatureCache, features_dir
from clframe.training.instruments import Instrument
from clframe.training.ranks import ALONE, Ranks
from clframe.training.recipe import Recipe
from clframe.training.seeds import RandomStreams, isolated

__all__ = ["STATISTICS_BATCH", "Context", "Setup", "cache_key", "input_statistics"]

STATISTICS_BATCH = 512
"""Samples per forward pass for features: not the scoring batch size, on which no bit of a run may depend."""


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
        steps: Optimiser steps of every experience, for a run of equal budgets; None means whole passes over the data.
        eval_batch_size: Samples per forward pass when scoring.
        seed: Of everything random, unless one of the next two says otherwise.
        init_seed: Of initialisation and growth.
        data_seed: Of the order of samples and of augmentation.
        device: Where training happens.
        precision: `fp32`, or the type of automatic mixed precision.
        channels_last: Whether the network's convolutions keep channels last.
        augmentation: Of training images.
        test_transform: Of images that are not augmented.
        pretrained: Whether the backbone starts from weights trained elsewhere.
        feature_cache: Whether features of a frozen network are kept.
        evaluate_future: Whether unseen tasks are scored too, and the untrained model.
        scored_on: The samples by which the run is judged: `test`, or `valid` for a run that may not look at test samples.
        instruments: What measures the run while it trains.
        ranks: This process among those of the run.
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
    steps: tuple[int, ...] | None = None
    eval_batch_size: int = 512
    seed: int = 0
    init_seed: int | None = None
    data_seed: int | None = None
    device: torch.device
    precision: str = "fp32"
    channels_last: bool = True
    augmentation: Augmentation | Pipeline | None = None
    test_transform: Augmentation | Pipeline | None = None
    pretrained: bool = False
    feature_cache: bool = True
    evaluate_future: bool = False
    scored_on: Literal["test", "valid"] = "test"
    instruments: Sequence[Instrument] = ()
    ranks: Ranks = ALONE
    dry: bool = False

    def described(self) -> dict[str, Any]:
        """Return what was left to `auto`, as it was decided."""
        made = {
            name: value.to_spec() if isinstance(value, Pipeline) else repr(value)
            for name, value in (("augmentation", self.augmentation), ("test_transform", self.test_transform))
        }
        return {"device": str(self.device), "precision": self.precision, **made}


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
        self.pretrained = setup.pretrained
        self.input_shape = setup.stream.shape
        self.optimizer: torch.optim.Optimizer | None = None  # of the phase that trains now
        self.pass_over: Callable[[Iterator[Batch]], Iterator[Batch]] = iter  # instruments may watch every batch
        self.presented = 0  # samples that the strategy asked for beside the trainer's batches, not counted yet
        self.streams = RandomStreams(setup.seed, setup.init_seed, setup.data_seed)
        self.experience = setup.stream.experiences[0]
        self.network = self.fresh_network()
        to_input = ToInput(*input_statistics(cast(Backbone, self.network.branches[0]), setup.stream))
        self.train_maker = BatchMaker(
            setup.stream.train, to_input, setup.device, setup.augmentation, setup.test_transform
        )
        self.test_maker = BatchMaker(setup.stream.test, to_input, setup.device, None, setup.test_transform)
        self._caches = _Caches(setup)
        self._task_classes = torch.zeros(0, 0, dtype=torch.bool)

    def described(self) -> dict[str, Any]:
        """Return the statistics by which images are normalised."""
        to_input = self.test_maker.to_input
        return {"input_mean": list(to_input.mean), "input_std": list(to_input.std)}

    def rng(self, purpose: str) -> torch.Generator:
        """Return the CPU generator of a purpose in the current scope."""
        return self.streams(purpose)

    def fresh_network(self) -> Network:
        """Return a newly initialised network of the run's architecture, without classes."""
        drawn = torch.randint(2**62, (), generator=self.rng("init"))
        with isolated(int(drawn)):
            return self.place(Network(self.setup.factory, self.setup.head))

    def grow(self, experience: Experience) -> None:
        """Grow the classifier to the classes seen; growing again for the same experience changes nothing.

        In one piece, unless it has more already. A multi-head gets the layer of every task so far that it has none of: of
        all of them where the network is a fresh one.
        """
        network = self.network
        if not isinstance(network.classifier, MultiHead):
            network.grow(max(experience.num_seen_classes, network.num_classes), classes=experience.classes)
            return
        before = self.stream.experiences[: experience.index]
        with_classes = [e for e in (*before, experience) if e.classes]
        for e in with_classes[len(network.classifier.tasks) :]:
            network.grow(max(e.num_seen_classes, network.num_classes), classes=e.classes)

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
        return self.pass_over(self.train_maker.in_order(chosen, batch_size or self.batch_size, self.experience))

    def training_batch(self, ids: Tensor, purpose: str) -> Batch:
        """Return samples as one batch under the training augmentation, drawn from the purpose's own generator."""
        self.presented += len(ids)
        return self.train_maker.drawn(ids, self.experience, self.rng(purpose))

    @torch.no_grad()
    def features(self, ids: Tensor, network: Network | None = None) -> Tensor:
        """Return (N, D) features on the CPU: test transform, eval mode, no gradient; those of a frozen network from disk."""
        model = network or self.network
        if self.setup.dry:
            return torch.zeros(len(ids), model.feature_dim)
        cache = self.feature_cache("fp32") if model is self.network else None
        if cache is not None and (cache.folder is None or torch.is_autocast_enabled(self.device.type)):
            cache = None
        with eval_mode(model):
            if cache is not None and len(ids):
                with self.setup.ranks.first_then_others():
                    return cache.get(self.train_maker, ids, STATISTICS_BATCH, lambda x: model.features(x).float())
            mine = self.setup.ranks.share(ids)
            parts = [model.features(b.x).float() for b in self.batches(mine, STATISTICS_BATCH)]
        return self.gathered(torch.cat(parts).cpu() if parts else torch.empty(0, model.feature_dim))

    def gathered(self, values: Tensor) -> Tensor:
        """Return the rows of a whole batch from this rank's share of them; the same tensor where there is one rank."""
        return self.setup.ranks.gathered(values)

    def feature_cache(self, precision: str) -> FeatureCache | None:
        """Return where features of the run's network are kept, None while some of its backbone trains.

        They are kept on disk when every branch is what the run's backbone is from the start, such as weights from a file;
        in memory when it was trained here, so that no other run could use them.

        Args:
            precision: In which they are computed: `fp32`, or the type of automatic mixed precision.
        """
        return self._caches.of(self.network, self.train_maker, precision)

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

    def forget_moments(self, parameter: nn.Parameter, dim: int, index: Tensor) -> None:
        """Set the optimiser's running averages of some entries of a parameter to zero; a count of its steps stays."""
        state = {} if self.optimizer is None else self.optimizer.state.get(parameter, {})
        for average in state.values():
            if isinstance(average, Tensor) and average.dim() and average.shape == parameter.shape:
                average.index_fill_(dim, index, 0)


class _Caches:
    """The feature caches of the network that a run has now."""

    def __init__(self, setup: Setup) -> None:
        self.setup = setup
        self._own: str | None = None
        self._found: dict[str, FeatureCache] = {}

    def of(self, network: Network, maker: BatchMaker, precision: str) -> FeatureCache | None:
        setup = self.setup
        if not setup.feature_cache or setup.dry or setup.device.type == "meta" or not network.backbone_frozen:
            return None
        if not any(True for _ in network.branches.parameters()):  # nothing is computed
            return None
        branches = [fingerprint(branch) for branch in network.branches]
        way = [maker.to_input.mean, maker.to_input.std, maker.test_transform, setup.stream.shape]
        key = None if None in branches else cache_key(branches, way, setup.device, setup.channels_last, precision)
        if key is None:
            return None
        if key not in self._found:
            if all(branch == self._from_the_start() for branch in branches):
                self._found[key] = FeatureCache(features_dir() / key)
            else:  # of networks trained in this run only the present one's
                self._found = {k: v for k, v in self._found.items() if v.folder is not None}
                self._found[key] = FeatureCache()
        return self._found[key]

    def _from_the_start(self) -> str | None:
        """Return the fingerprint of the backbone that the run's configuration gives by itself."""
        if self._own is None:
            with isolated(0):
                self._own = fingerprint(self.setup.factory()) or ""
        return self._own


def cache_key(
    branches: Sequence[str | None], way: Sequence[Any], device: torch.device, channels_last: bool, precision: str
) -> str | None:
    """Return the name of the cache of some features, None where it can't be told.

    Args:
        branches: Fingerprint of every branch of the network.
        way: What images pass through on their way into it.
        device: Where features are computed; with the next two it decides in how many digits, and by whose kernels.
        channels_last: Whether convolutions keep channels last.
        precision: `fp32`, or the type of automatic mixed precision.
    """
    cuda = torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision()
    arithmetic = [precision, device.type, channels_last, torch.__version__, *(cuda if device.type == "cuda" else ())]
    return fingerprint(list(branches), list(way), arithmetic)


def input_statistics(backbone: Backbone, stream: Stream) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return the mean and deviation by which images are normalised: the backbone's where it states them, else the data's.

    Raises:
        ConfigurationError: The backbone's don't fit the images' channels.
    """
    mean, std = backbone.input_mean, backbone.input_std
    if len(stream.shape) != 3 or (mean is None and std is None):
        return stream.mean, stream.std
    channels = stream.shape[0]
    if mean is None or std is None or not len(mean) == len(std) == channels or min(std) <= 0:
        raise ConfigurationError(
            f"The backbone must state input_mean and input_std with a number for each of {channels} channels, the latter "
            f"above 0, received {mean} and {std}: correct them, or leave both out for the data's own."
        )
    return tuple(map(float, mean)), tuple(map(float, std))
