"""From a checked configuration to what a trainer needs, and from a run directory back to a model."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from clframe.composite import leaves, tags_of
from clframe.config import RunConfig, resolve
from clframe.data import DataRoot, MemoryReader
from clframe.data.augment import Pipeline, build_augmentation
from clframe.errors import ConfigurationError, RunDirectoryError
from clframe.launch.services import EngineServices, choose_device, has_weights
from clframe.metrics import Tasks
from clframe.models import Backbone, BackboneConfig
from clframe.strategy import Strategy
from clframe.stream import EvaluationTask, Experience, SampleTable, Stream, no_samples
from clframe.tracking.rundir import RunDirectory
from clframe.training.batches import BatchMaker
from clframe.training.checkpoint import read_checkpoint, restore_strategy, unpack
from clframe.training.context import Context, Setup
from clframe.training.measures import instruments_for
from clframe.training.ranks import ALONE, Ranks

__all__ = ["build_setup", "check_fit", "check_same_stream", "load_strategy", "open_stream", "stream_record"]

_ON_FEATURES = ", or on features of such weights no network at all (--backbone mlp --backbone.hidden [])"


def open_stream(config: RunConfig, data_root: Any, download: bool) -> Stream:
    """Build the scenario's stream, or take one that was given in Python; cut to what the run options ask for.

    Raises:
        ConfigurationError: There are fewer experiences than `first_experiences`, or no samples that `scored_on` asks for.
    """
    options = config.options
    stream = config.scenario
    if not isinstance(stream, Stream):
        stream = EngineServices(options).build(stream, DataRoot.resolve(data_root), download=download)
    if options.first_experiences is not None:
        stream = stream.first(options.first_experiences)
    if options.scored_on == "valid" and not any(len(t.valid) for t in stream.tasks):
        raise ConfigurationError(
            f"scored_on: expected a scenario with validation samples for valid, but {stream.name!r} sets none aside: give "
            "scenario.valid_per_class, or leave scored_on at test."
        )
    return stream


def check_same_stream(directory: RunDirectory, stream: Stream) -> None:
    """Refuse another stream than the one that a run was made on.

    Raises:
        RunDirectoryError: The fingerprints differ.
    """
    recorded = directory.stream["fingerprint"]
    if stream.fingerprint != recorded:
        raise RunDirectoryError(
            f"The data or scenario differs from what {directory.path} was run on (stream {stream.fingerprint[:12]}, "
            f"expected {recorded[:12]}): bring back the same data, or start a new run."
        )


def build_setup(config: RunConfig, stream: Stream, *, dry: bool = False, ranks: Ranks = ALONE) -> Setup:
    """Make the objects of a run; nothing is trained yet.

    Args:
        config: The checked configuration.
        stream: The scenario's.
        dry: Make phases and count steps, but compute nothing.
        ranks: This process among those of the run.

    Raises:
        ConfigurationError: The parts don't fit each other or the machine.
    """
    options = config.options
    device = choose_device(options.device)
    if options.batch_size < ranks.count:
        raise ConfigurationError(
            f"batch_size: expected at least a sample for each of the {ranks.count} processes, received {options.batch_size}: "
            "raise it, or start fewer."
        )
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    augmentation, test_transform = _transforms(config, stream)
    shape = stream.shape if test_transform is None else test_transform.output_shape(stream.shape)
    check_fit(config.strategy, stream, config.backbone, shape)
    _check_single_pass(config.strategy, stream)
    make, skeleton = _factories(config.backbone, shape)
    return Setup(
        stream=stream,
        strategy=config.strategy,
        factory=make,
        skeleton=skeleton,
        head=config.head,
        recipe=config.recipe,
        first_recipe=config.first_recipe,
        batch_size=options.batch_size,
        steps=_steps(options.steps_per_experience, stream),
        eval_batch_size=options.eval_batch_size,
        seed=options.seed,
        init_seed=options.init_seed,
        data_seed=options.data_seed,
        device=device,
        precision=_precision(options.precision, device),
        channels_last=options.channels_last,
        augmentation=augmentation,
        test_transform=test_transform,
        pretrained=_pretrained(config.backbone, stream, shape),
        feature_cache=options.feature_cache == "auto",
        evaluate_future=options.evaluate_future,
        scored_on=options.scored_on,
        instruments=instruments_for(options.measure),
        ranks=ranks,
        dry=dry,
    )


def _steps(given: int | list[int] | None, stream: Stream) -> tuple[int, ...] | None:
    """Return the optimiser steps of every experience, None where none are stated.

    Raises:
        ConfigurationError: A list of another length, or a stream in which samples may be presented only once.
    """
    if given is None:
        return None
    count = len(stream.experiences)
    if stream.online:
        raise ConfigurationError(
            f"The scenario {stream.name!r} presents every sample once, so steps_per_experience can't state how many steps "
            "that takes: leave it out, or set scenario.online to false."
        )
    if isinstance(given, list) and len(given) != count:
        raise ConfigurationError(
            f"steps_per_experience: expected one number, or one for each of {count} experiences, received {len(given)}."
        )
    return tuple(given) if isinstance(given, list) else (given,) * count


def _transforms(config: RunConfig, stream: Stream) -> tuple[Pipeline | None, Pipeline | None]:
    """Return what training images and images that are not augmented pass through; None for nothing.

    Raises:
        ConfigurationError: The two leave images of different sizes, or what is not to be augmented would be.
    """
    if len(stream.shape) != 3:
        return None, None
    options = config.options
    chosen = stream.augmentation if options.augmentation == "auto" else options.augmentation
    tested = stream.test_transform if options.test_transform == "auto" else options.test_transform
    train, test = (build_augmentation(spec, stream.shape) for spec in (chosen, tested))
    for transform, record in zip(test.transforms, test.to_spec(), strict=True):
        if transform.random:
            raise ConfigurationError(
                f"test_transform: expected transforms that draw nothing, such as resize and center_crop, received "
                f"{record['name']}: give it as augmentation instead."
            )
    sizes = [p.output_shape(stream.shape) for p in (train, test)]
    if sizes[0] != sizes[1]:
        raise ConfigurationError(
            f"augmentation: expected training and test images of one size, received {sizes[0][1]}×{sizes[0][2]} and "
            f"{sizes[1][1]}×{sizes[1][2]} pixels: set test_transform, for instance to a Resize and a CenterCrop."
        )
    return (train if train.transforms else None), (test if test.transforms else None)


def check_fit(
    strategy: Strategy, stream: Stream, backbone: BackboneConfig, shape: tuple[int, ...] | None = None
) -> None:
    """Refuse a combination that makes no sense, before anything is computed.

    Args:
        strategy: The method.
        stream: What it is to learn from.
        backbone: Makes the network's body.
        shape: Of the network's input; None means the stream's.

    Raises:
        ConfigurationError: One sentence per problem.
    """
    tags = tags_of(strategy)
    name = "+".join(type(s).__name__ for s in leaves(strategy))
    wrong = [
        (
            stream.setting not in tags.settings,
            f"is defined for {_words(tags.settings)}-incremental streams, not {stream.setting}",
        ),
        (
            stream.score not in tags.scores,
            f"learns from {_words(tags.scores)}, but the stream is scored by {stream.score}",
        ),
        (
            tags.needs_boundaries and not stream.boundaries,
            "needs to be told where tasks end, which this stream doesn't say",
        ),
        (stream.online and not tags.online, "can't learn from a single pass"),
        (
            _has(stream, "unlabelled") and not tags.uses_unlabelled,
            "can't use samples without labels, which this stream has: put +pseudo_labels behind it, which learns from them "
            "(with --strategy.strength 0 it leaves them out), or choose another scenario",
        ),
        (_has(stream, "forget") and not tags.can_unlearn, "can't unlearn samples, which this stream asks for"),
        (
            tags.needs_layernorm and not _has_layers(backbone, shape or stream.shape, nn.LayerNorm),
            "needs a backbone with LayerNorm, such as vit_tiny",
        ),
        (
            tags.needs_batchnorm and not _has_layers(backbone, shape or stream.shape, nn.modules.batchnorm._BatchNorm),
            "needs a backbone with BatchNorm, such as resnet32",
        ),
        (
            tags.needs_own_channels and not _has_own_channels(backbone, shape or stream.shape),
            "needs a backbone that describes channels which no shortcut joins, such as resnet32, or mlp without layer_norm",
        ),
        (
            tags.needs_pretrained and not _pretrained(backbone, stream, shape or stream.shape),
            "needs a backbone with weights: give --backbone.weights FILE, a timm model with --backbone.pretrained true, "
            "or in Python a trained module" + _ON_FEATURES * stream.pretrained,
        ),
        (
            tags.needs_exemplars and not (tags.stores_samples or tags.needs_all_data) and _leaves_classes(stream),
            "needs exemplars of the classes seen before, which a strategy in front of it must keep, as replay does "
            "(--strategy replay+NAME)",
        ),
    ]
    usual = ": choose another strategy or scenario"
    problems = [f"{name} {text}{'' if ': ' in text else usual}." for bad, text in wrong if bad]
    if problems:
        raise ConfigurationError("\n".join(problems))


def _check_single_pass(strategy: Strategy, stream: Stream) -> None:
    """Refuse a main phase that presents samples of a single-pass stream again; methods with phases of their own know.

    Raises:
        ConfigurationError: `strategy.epochs` is more than 1.
    """
    own = any(type(part).phases is not Strategy.phases for part in leaves(strategy))
    if stream.online and not own and max(strategy.epochs, strategy.first_epochs or 0) > 1:
        raise ConfigurationError(
            f"The scenario {stream.name!r} presents every sample once, but strategy.epochs is {strategy.epochs}: add "
            "--epochs 1, or set scenario.online to false."
        )


def _words(values: Any) -> str:
    return " or ".join(sorted(values))


def _has(stream: Stream, what: str) -> bool:
    return any(len(getattr(e, what)) for e in stream.experiences)


def _leaves_classes(stream: Stream) -> bool:
    """Whether some experience has no sample of a class seen before."""
    return any(e.classes and len(e.classes) < e.num_seen_classes for e in stream.experiences)


def _has_layers(backbone: BackboneConfig, shape: tuple[int, ...], kind: type[nn.Module]) -> bool:
    with torch.device("meta"):
        return any(isinstance(m, kind) for m in backbone.skeleton(shape).modules())


def _has_own_channels(backbone: BackboneConfig, shape: tuple[int, ...]) -> bool:
    with torch.device("meta"):
        return any(layer.own for layer in backbone.skeleton(shape).channel_layers())


def _pretrained(backbone: BackboneConfig, stream: Stream, shape: tuple[int, ...]) -> bool:
    """Whether features come from weights trained elsewhere: the backbone's, or those that made a stream of features."""
    if has_weights(backbone):
        return True
    if not stream.pretrained:
        return False
    with torch.device("meta"):
        return not any(True for _ in backbone.skeleton(shape).parameters())


def _factories(
    backbone: BackboneConfig, shape: tuple[int, ...]
) -> tuple[Callable[[], Backbone], Callable[[], Backbone]]:
    return lambda: backbone.build(shape), lambda: backbone.stated(backbone.skeleton(shape))


def _precision(name: str, device: torch.device) -> str:
    if name == "auto":
        return "bf16" if device.type == "cuda" and torch.cuda.is_bf16_supported() else "fp32"
    if name == "fp16" and device.type != "cuda":
        raise ConfigurationError(f"Expected fp32 or bf16 on {device.type}, received precision fp16: it needs a GPU.")
    return name


def stream_record(stream: Stream) -> dict[str, Any]:
    """Return what `stream.json` holds: enough for every metric, and to load the model without the data."""
    tasks = Tasks(
        classes=tuple(t.classes for t in stream.tasks),
        seen=tuple(e.num_seen_classes for e in stream.experiences),
        introduced=tuple(t.available_after for t in stream.tasks),
    )
    return {
        "schema": 1,
        "name": stream.name,
        "setting": stream.setting,
        "score": stream.score,
        "online": stream.online,
        "fingerprint": stream.fingerprint,
        "data_fingerprint": stream.data_fingerprint,
        "shape": list(stream.shape),
        "mean": list(stream.mean),
        "std": list(stream.std),
        "pretrained": stream.pretrained,
        "test_transform": build_augmentation(stream.test_transform, stream.shape).to_spec(),
        "class_names": list(stream.class_names),
        "class_order": list(stream.class_order),
        "task_ids": [t.task_id for t in stream.tasks],
        "tasks": tasks.to_dict(),
        "experiences": stream.describe(),
    }


def load_strategy(
    directory: RunDirectory,
    backbone: Any = None,
    strategy: Any = None,
    *,
    checkpoint: str = "latest.pt",
    device: str = "cpu",
) -> tuple[Strategy, BatchMaker]:
    """Bring back a run's strategy with its trained state, without the data.

    Args:
        directory: The run.
        backbone: Where the configuration can't name it: the module given to the run.
        strategy: Likewise.
        checkpoint: Its file in the folder `checkpoints`, such as one that `keep_models` has kept.
        device: Where the network goes, in full precision.
    """
    record = directory.config
    if backbone is not None:
        record["backbone"] = backbone
    if strategy is not None:
        record["strategy"] = strategy
    stream = _hollow_stream(directory.stream)
    record["scenario"] = stream
    record.pop("weights", None)  # every value comes from the checkpoint: the file may be gone
    config = resolve({**record, "device": device, "precision": "fp32", "threads": None})
    setup = build_setup(config, stream)
    state = read_checkpoint(directory.checkpoints / checkpoint, setup.device)
    context = Context(dataclasses.replace(setup, factory=setup.skeleton))  # a weights file may be gone by now
    for part in leaves(setup.strategy):
        part.bind(context)
    setup.strategy.bind(context)
    setup.strategy.network = unpack(state["network"], setup.skeleton).to(setup.device)
    for part, saved in zip(leaves(setup.strategy), state["strategies"], strict=True):
        restore_strategy(part, saved, setup.skeleton, lambda network: network.to(setup.device))
    setup.strategy.network.eval()
    return setup.strategy, context.test_maker


def _hollow_stream(record: dict[str, Any]) -> Stream:
    """A stream without samples, of the recorded shape, classes and tasks."""
    shape = tuple(record["shape"])
    images = len(shape) == 3
    empty = torch.empty((0, *shape[1:], shape[0]), dtype=torch.uint8) if images else torch.empty((0, *shape))
    table = SampleTable(MemoryReader(empty), no_samples())
    parts = zip(record["tasks"]["classes"], record["task_ids"], record["tasks"]["introduced"], strict=True)
    tasks = [
        EvaluationTask(j, tuple(classes), no_samples(), no_samples(), after, task_id)
        for j, (classes, task_id, after) in enumerate(parts)
    ]
    seen = record["tasks"]["seen"]
    experiences = [Experience(i, (), (), k, no_samples()) for i, k in enumerate(seen)]
    return Stream(
        name=record["name"],
        experiences=tuple(experiences),
        tasks=tuple(tasks),
        train=table,
        test=table,
        class_names=tuple(record["class_names"]),
        class_order=tuple(record["class_order"]),
        mean=tuple(record["mean"]),
        std=tuple(record["std"]),
        test_transform=record["test_transform"],
        setting=record["setting"],
        score=record["score"],
        pretrained=record.get("pretrained", False),
    )
