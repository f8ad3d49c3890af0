"""What a backbone is, how one is configured, and how a user's own module becomes one."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from clframe import registry, spec
from clframe.errors import ConfigurationError, ContractError
from clframe.models.modes import eval_mode
from clframe.models.weights import load_weights, read_provenance
from clframe.spec import Configurable, field

__all__ = [
    "Backbone",
    "BackboneConfig",
    "ChannelLayer",
    "UserBackbone",
    "UserBackboneConfig",
    "backbone_config",
    "build_backbone",
    "image_shape",
]

TIMM_PREFIX = "timm/"


@dataclasses.dataclass(frozen=True, slots=True)
class ChannelLayer:
    """A convolution or linear layer, and the sets of channels that it reads and writes.

    A set of channels has the name of the place where a gate on it is attached, such as `layer1.0.gate`. Several layers
    may write one set, such as a convolution and the projection that is added to it.

    Attributes:
        module: The layer's name in the backbone.
        reads: The set of channels that it reads; None for the network's input.
        writes: The set of channels that it writes.
        norm: Name of the normalisation, channel by channel, of what it writes.
        own: Whether what it writes comes from this layer and its norm alone, and reaches the readers of the set (the heads,
            if it is the features) alone, each channel through an activation at most: no shortcut joins it.
    """

    module: str
    reads: str | None
    writes: str
    norm: str | None = None
    own: bool = False


class Backbone(nn.Module):
    """Turns inputs into feature vectors; it has no classifier.

    A subclass sets `feature_dim` and defines `forward`; `forward_stages` is optional.
    """

    feature_dim: int
    """Length D of a feature vector."""

    input_mean: tuple[float, ...] | None = None
    """Per-channel mean in [0, 1] that the weights were trained with; None: the data's own."""

    input_std: tuple[float, ...] | None = None
    """Per-channel deviation in [0, 1] that the weights were trained with; None: the data's own."""

    input_size: tuple[int, int] | None = None
    """Height and width in pixels that the weights were trained with; None: any."""

    def forward(self, x: Tensor) -> Tensor:
        """Compute features: (B, C, H, W) or (B, F) to (B, D)."""
        raise NotImplementedError(f"{type(self).__name__} must define forward(x) -> (B, D).")

    def forward_stages(self, x: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Compute the features and what each stage gave, taken before the stage's last ReLU.

        Returns:
            Features (B, D), identical to those of `forward`, and one tensor per stage, shallowest first; no stages
            where the backbone has none to show.
        """
        return cast(Tensor, self(x)), ()

    def weights_target(self) -> nn.Module:
        """The module whose tensor names a weights file uses; a wrapper returns what it wraps."""
        return self

    kept_channels: dict[str, list[int]] | None = None
    """Numbers of the channels that stayed of every set, once channels have been pruned; see `clframe.models.prune`."""

    def channel_layers(self) -> tuple[ChannelLayer, ...]:
        """Describe the layers whose channels can be gated and pruned, in the order of the computation.

        A backbone that gives any promises that a channel whose gate is 0 reaches nothing but the readers of its set, as
        exact zeros, and that the last layer writes the features. Without support there are none.
        """
        return ()

    def rewire(self, kept: Mapping[str, list[int]]) -> None:
        """Adapt what joins sets of channels, such as shortcuts, to the channels that are kept (all sets, by name)."""


class BackboneConfig(Configurable):
    """A backbone's options. A subclass declares its own as fields and defines `make`."""

    free_options: ClassVar[frozenset[str]] = frozenset()
    """Options that matter only in training or at initialisation: a weights file serves every value of them."""

    weights: str | None = field(
        default=None, help="Checkpoint file to start from (.safetensors or .pth); a classifier in it is ignored."
    )
    input_mean: list[float] | None = field(
        default=None,
        help="Per-channel mean, of pixels in [0, 1], that the weights expect; none: what the backbone states, else the data's.",
    )
    input_std: list[float] | None = field(default=None, help="Per-channel deviation, likewise.")

    @typing.final
    def build(self, input_shape: tuple[int, ...]) -> Backbone:
        """Make the backbone for one kind of input, and load its weights if a file is given.

        Args:
            input_shape: (C, H, W) of an image or (F,) of a feature vector, without the batch.

        Raises:
            ConfigurationError: The input doesn't suit the backbone, or the weights file doesn't.
        """
        backbone = self.make(tuple(input_shape))
        if self.weights is not None:
            self._check_provenance(read_provenance(self.weights))
            load_weights(backbone.weights_target(), self.weights, type(self).__name__)
        return self.stated(backbone)

    def stated(self, backbone: Backbone) -> Backbone:
        """Give a backbone the input statistics of the options, where there are some, instead of its own."""
        if self.input_mean is not None or self.input_std is not None:
            backbone.input_mean = None if self.input_mean is None else tuple(self.input_mean)
            backbone.input_std = None if self.input_std is None else tuple(self.input_std)
        return backbone

    def _check_provenance(self, provenance: Mapping[str, Any] | None) -> None:
        """Refuse a file of `clframe pretrain` that was made for another backbone, or with options that count.

        Some options, such as a ViT's number of heads, change what is computed but no tensor's shape.
        """
        if provenance is None:
            return
        made = dict(provenance["backbone"])
        name = registry.name_of("backbone", getattr(type(self), "factory", type(self)))
        theirs = str(made.pop("name"))
        if _last(theirs) != _last(name):
            raise ConfigurationError(
                f"The weights in {self.weights} were made for the backbone {theirs}, not for {name}: choose that backbone "
                "with the options that the file was made with, or another file."
            )
        ours = {k: v for k, v in spec.to_dict(self).items() if k not in self.free_options and k != "weights"}
        other = [f"{k} is {made[k]} in the file, {v} here" for k, v in ours.items() if k in made and made[k] != v]
        if other:
            raise ConfigurationError(
                f"The weights in {self.weights} were made for {theirs} with other options ({'; '.join(other)}): set "
                "these as in the file, or choose another file."
            )

    def skeleton(self, input_shape: tuple[int, ...]) -> Backbone:
        """Make the same architecture without reading any weights, for a checkpoint to fill."""
        return self.make(tuple(input_shape))

    def make(self, input_shape: tuple[int, ...]) -> Backbone:
        """Make the freshly initialised backbone, drawing from torch's global generator.

        Args:
            input_shape: (C, H, W) of an image or (F,) of a feature vector, without the batch.
        """
        raise NotImplementedError(f"{type(self).__name__} must define make(input_shape) -> Backbone.")


def _last(name: str) -> str:
    """A user's class without the folder in which it lay when the file was made."""
    return name.rpartition(":")[2]


def image_shape(input_shape: tuple[int, ...], name: str, smallest: int = 8) -> tuple[int, int, int]:
    """Check that a backbone gets images that are large enough.

    Args:
        input_shape: (C, H, W) without the batch.
        name: What the error calls the backbone.
        smallest: Least height and width in pixels.

    Raises:
        ConfigurationError: The input isn't an image, or is too small.
    """
    if len(input_shape) != 3 or min(input_shape[1:]) < smallest or input_shape[0] < 1:
        raise ConfigurationError(
            f"{name} expects images (C, H, W) of at least {smallest}×{smallest} pixels, received inputs of shape "
            f"{tuple(input_shape)}; choose the backbone 'mlp', or resize the images."
        )
    return input_shape[0], input_shape[1], input_shape[2]


class UserBackbone(Backbone):
    """A user's own module as a backbone.

    The module is run once on zeros, in eval mode and without gradients, to check that it gives (B, D).

    Args:
        module: Maps (B, *input_shape) to (B, D). If it has an integer `feature_dim`, D must be that; if it has
            `forward_stages`, that gives the stages.
        input_shape: Shape of one input, without the batch.

    Raises:
        ContractError: The module's forward fails on such inputs, or gives anything but (B, D).
    """

    def __init__(self, module: nn.Module, input_shape: tuple[int, ...]) -> None:
        super().__init__()
        self.module = module
        for name in ("input_mean", "input_std", "input_size"):
            setattr(self, name, getattr(module, name, None))  # as the module may state them
        said = getattr(module, "feature_dim", None)
        self.feature_dim = self._measure(input_shape)
        if isinstance(said, int) and said != self.feature_dim:
            raise ContractError(
                f"{self._name} says feature_dim = {said}, but its forward gives {self.feature_dim} features; "
                "make the two agree or leave feature_dim out."
            )

    @property
    def _name(self) -> str:
        return type(self.module).__name__

    def _measure(self, input_shape: tuple[int, ...]) -> int:
        reference = next(self.module.parameters(), None)
        uninitialised = isinstance(reference, nn.parameter.UninitializedParameter)
        device = None if reference is None or uninitialised else reference.device
        try:
            with eval_mode(self.module), torch.no_grad():
                out = self.module(torch.zeros(2, *input_shape, device=device))
        except Exception as error:
            raise ContractError(
                f"The backbone {self._name} must map inputs (B, {', '.join(map(str, input_shape))}) to (B, D), but its "
                f"forward failed ({type(error).__name__}: {error})."
            ) from error
        if not isinstance(out, Tensor) or out.dim() != 2 or out.shape[0] != 2:
            raise ContractError(self._complaint(out))
        return out.shape[1]

    def _complaint(self, out: object) -> str:
        received = f"shape {tuple(out.shape)}" if isinstance(out, Tensor) else type(out).__name__
        return (
            f"The backbone {self._name} must give features (B, D), its forward gave {received}; "
            "pool or flatten what it returns."
        )

    def forward(self, x: Tensor) -> Tensor:
        """Compute features: (B, *input_shape) to (B, D).

        Raises:
            ContractError: The module gave another shape than it did at first.
        """
        out = self.module(x)
        if not isinstance(out, Tensor) or out.dim() != 2 or out.shape[1] != self.feature_dim:
            raise ContractError(self._complaint(out))
        return out

    def forward_stages(self, x: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Give the module's own `forward_stages`, or the features and no stages."""
        own = getattr(self.module, "forward_stages", None)
        if own is None:
            return self.forward(x), ()
        features, stages = own(x)
        return features, tuple(stages)

    def weights_target(self) -> nn.Module:
        """The user's module: its files don't know of this wrapper."""
        return self.module


class UserBackboneConfig(BackboneConfig):
    """Options of a user's module class or factory; a subclass is made for each, with its keywords as fields."""

    factory: ClassVar[Callable[..., nn.Module]]
    takes_input_shape: ClassVar[bool] = False
    own_keywords: ClassVar[frozenset[str]] = frozenset()

    def make(self, input_shape: tuple[int, ...]) -> Backbone:
        """Call the class or factory with the options, and wrap what it gives unless it is a `Backbone` already.

        Raises:
            ConfigurationError: The constructor refuses the options.
            ContractError: What it gives is no module, or breaks the contract of a backbone.
        """
        kind: Any = type(self)
        factory: Callable[..., nn.Module] = kind.factory
        keywords = {f.name: getattr(self, f.name) for f in spec.fields_of(kind) if f.name in self.own_keywords}
        if self.takes_input_shape:
            keywords["input_shape"] = input_shape
        try:
            module = factory(**keywords)
        except (TypeError, ValueError) as error:
            raise ConfigurationError(
                f"The backbone {_name_of(factory)} could not be made with {keywords} ({error}); change these options."
            ) from error
        if not isinstance(module, nn.Module):
            raise ContractError(
                f"The backbone factory {_name_of(factory)} must return a torch module, it returned "
                f"{type(module).__name__}."
            )
        return module if isinstance(module, Backbone) else UserBackbone(module, input_shape)


def backbone_config(name: str | type | Callable[..., Any], options: Mapping[str, Any] | None = None) -> BackboneConfig:
    """Make a backbone's configuration from a name and options.

    Args:
        name: A registered name; `timm/<model>`; `package.module:Name` or `path/to/file.py:Name`; or, in Python, the
            class or factory function itself. The keywords of a module class or of a factory are its options; a
            parameter called `input_shape` is given the shape of one input.
        options: Values by option name, as YAML or the command line give them.

    Raises:
        ConfigurationError: The name, an option's name, or an option's value is wrong.
    """
    values = dict(options or {})
    if isinstance(name, str) and name.startswith(TIMM_PREFIX):
        values = {"model": name.removeprefix(TIMM_PREFIX), **values}
        name = "timm"
    return spec.build(config_class(name), values, "backbone")


def build_backbone(
    name: str | type | Callable[..., Any], options: Mapping[str, Any] | None, input_shape: tuple[int, ...]
) -> Backbone:
    """Make a backbone from a name, options and the shape of one input.

    Args:
        name: As `backbone_config` takes it.
        options: As `backbone_config` takes them.
        input_shape: (C, H, W) of an image or (F,) of a feature vector.

    Raises:
        ConfigurationError: The name, an option, the input or the weights file doesn't fit.
        ContractError: A user's module breaks the contract of a backbone.
    """
    return backbone_config(name, options).build(input_shape)


def config_class(name: str | type | Callable[..., Any]) -> type[BackboneConfig]:
    found: Any = name
    if isinstance(name, str):
        listed = name in registry.available("backbone") or ":" not in name
        found = registry.load("backbone", name) if listed else registry.load_object(name)
    if isinstance(found, type) and issubclass(found, BackboneConfig):
        return found
    is_class = isinstance(found, type)
    if isinstance(found, nn.Module) or (is_class and not issubclass(found, nn.Module)) or not callable(found):
        received = found.__name__ if is_class else f"a {type(found).__name__}"
        raise ConfigurationError(
            f"Expected a torch module class, a function that makes one, or a BackboneConfig as backbone, received "
            f"{received}; give the class rather than an instance of it."
        )
    return _user_config(found)


@functools.cache
def _user_config(factory: Callable[..., nn.Module]) -> type[UserBackboneConfig]:
    """Make the configuration class whose fields are the keywords of a module class or of a factory."""
    parameters = _keywords(factory)
    body: dict[str, Any] = {
        "__module__": __name__,
        "__doc__": inspect.getdoc(factory) or f"Options of {_name_of(factory)}.",
        "__annotations__": {
            "factory": ClassVar[Any],
            "takes_input_shape": ClassVar[bool],
            "own_keywords": ClassVar[Any],
        },
        "factory": staticmethod(factory),
        "takes_input_shape": "input_shape" in parameters,
        "own_keywords": frozenset(parameters) - {"input_shape", "weights"},
    }
    hints = _annotations(factory)
    for key, parameter in parameters.items():
        if key in ("input_shape", "weights"):  # given by the engine; `weights` is the field that every backbone has
            continue
        body["__annotations__"][key] = _type_of(hints.get(key), parameter.default)
        body[key] = _field_of(parameter.default)
    made = types.new_class(_name_of(factory), (UserBackboneConfig,), exec_body=lambda namespace: namespace.update(body))
    return cast(type[UserBackboneConfig], made)


def _keywords(factory: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return {name: p for name, p in inspect.signature(factory).parameters.items() if p.kind in named}


def _annotations(factory: Callable[..., Any]) -> dict[str, Any]:
    target = factory.__init__ if isinstance(factory, type) else factory  # type: ignore[misc]
    try:
        return typing.get_type_hints(target)
    except Exception:  # an annotation that can't be resolved only costs the check of its type
        return {}


def _type_of(annotation: Any, default: Any) -> Any:
    """A field's type: the annotation, or what the default suggests, so that `3` on a command line is a number."""
    if annotation is not None:
        return annotation
    if isinstance(default, (bool, str)):
        return type(default)
    return int | float if isinstance(default, (int, float)) else Any


def _field_of(default: Any) -> Any:
    if default is inspect.Parameter.empty:
        return field(help="Keyword of the backbone's constructor.")
    if isinstance(default, (list, dict, set)):
        return field(default_factory=lambda: default)
    return field(default=default)


def _name_of(factory: Callable[..., Any]) -> str:
    return str(getattr(factory, "__name__", type(factory).__name__))
