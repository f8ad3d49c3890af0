"""What a scenario is lent while its stream is built: other scenarios, and features of a frozen network."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import torch

from clframe.config import RunOptions, resolve
from clframe.data import DataRoot
from clframe.data.augment import build_augmentation
from clframe.errors import ConfigurationError
from clframe.models import BackboneConfig
from clframe.scenario import Scenario
from clframe.stream import AugmentationSpec, Stream
from clframe.training.extraction import feature_stream
from clframe.training.seeds import isolated

__all__ = ["EngineServices", "choose_device", "has_weights"]


class EngineServices:
    """The services of a run with some options; see `clframe.scenario.Services`."""

    def __init__(self, options: RunOptions) -> None:
        """Store."""
        self.options = options

    def build(self, scenario: Scenario, root: DataRoot, *, download: bool = False) -> Stream:
        """Build a scenario's stream, and check it."""
        scenario.bind(self)
        stream = scenario.build(root, download=download)
        stream.check()
        return stream

    def open(self, scenario: str | Mapping[str, Any], root: DataRoot, *, download: bool = False) -> Stream:
        """Build the stream of another scenario, given by its name, or a name and options."""
        return self.build(resolve({"scenario": scenario}).scenario, root, download=download)

    def features(
        self, stream: Stream, backbone: str | Mapping[str, Any], test_transform: AugmentationSpec | None = None
    ) -> Stream:
        """Return the same stream over the features of a frozen backbone, given by its name, or a name and options."""
        config: BackboneConfig = resolve({"backbone": backbone}).backbone
        shape, transform = stream.shape, None
        if len(shape) == 3:
            transform = build_augmentation(test_transform or stream.test_transform, shape)
            random = [r["name"] for t, r in zip(transform.transforms, transform.to_spec(), strict=True) if t.random]
            if random:
                raise ConfigurationError(
                    f"scenario.test_transform: expected transforms that draw nothing, such as resize, received {random[0]}."
                )
            shape = transform.output_shape(shape)
        with isolated(0):
            made = config.build(shape)
        return feature_stream(
            stream,
            made,
            test_transform=transform if transform is not None and transform.transforms else None,
            device=choose_device(self.options.device),
            channels_last=self.options.channels_last,
            cached=self.options.feature_cache == "auto",
            pretrained=has_weights(config),
        )


def has_weights(backbone: BackboneConfig) -> bool:
    """Whether a backbone starts from weights that were trained elsewhere."""
    copies = getattr(getattr(type(backbone), "factory", None), "copies_module", False)  # a user's, which has weights
    return bool(backbone.weights) or bool(getattr(backbone, "pretrained", False)) or copies


def choose_device(name: str) -> torch.device:
    """Return the device of a name; auto is a GPU when there is one.

    Raises:
        ConfigurationError: There is no such device.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ConfigurationError(f"Expected a device such as cpu or cuda, received {name!r}.") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigurationError(f"The device {name!r} was asked for, but PyTorch finds no GPU: use --device cpu.")
    if name == "cuda" and "LOCAL_RANK" in os.environ:  # torchrun: each process its own
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
    return device
