"""The multi-layer perceptron: on flattened images, or on feature vectors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar, Literal

from torch import Tensor, nn

from clframe.errors import ConfigurationError
from clframe.models.backbone import Backbone, BackboneConfig, ChannelLayer
from clframe.spec import field

__all__ = ["MLP", "Activation", "PerceptronNet"]

Activation = Literal["relu", "gelu", "tanh", "leaky_relu"]
_ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "gelu": nn.GELU,
    "tanh": nn.Tanh,
    "leaky_relu": nn.LeakyReLU,
}


class PerceptronNet(Backbone):
    """Linear layers with an activation after each; the last hidden layer's activation is the feature vector.

    Args:
        inputs: Length of a flattened input.
        hidden: Units of each hidden layer; with none, the features are the flattened inputs.
        activation: Name of the activation.
        layer_norm: Whether a LayerNorm stands before each activation.
        dropout: Probability of zeroing a value after each activation.
    """

    def __init__(
        self,
        inputs: int,
        hidden: Sequence[int],
        activation: Activation = "relu",
        layer_norm: bool = False,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.layers = nn.Sequential()
        self._taps: list[int] = []
        width = inputs
        for units in hidden:
            self.layers.append(nn.Linear(width, units))
            if layer_norm:
                self.layers.append(nn.LayerNorm(units))
            self._taps.append(len(self.layers) - 1)
            self.layers.append(_ACTIVATIONS[activation]())
            if dropout:
                self.layers.append(nn.Dropout(dropout))
            width = units
        self.feature_dim = width
        self.gates = nn.ModuleDict()
        self._gateable = not layer_norm

    def forward(self, x: Tensor) -> Tensor:
        """Compute features: (B, …) to (B, D)."""
        if self.gates:
            return self.forward_stages(x)[0]
        features: Tensor = self.layers(x.flatten(1))
        return features

    def forward_stages(self, x: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Compute the features and each hidden layer's values (B, D_k) before its activation."""
        x = x.flatten(1)
        stages: list[Tensor] = []
        for i, layer in enumerate(self.layers):
            x = layer(x)
            if i in self._taps:
                if str(i) in self.gates:
                    x = self.gates[str(i)](x)
                stages.append(x)
        return x, tuple(stages)

    def channel_layers(self) -> tuple[ChannelLayer, ...]:
        """Gates stand before the activations, all of which leave 0 at 0; LayerNorm would mix the units: none with it."""
        if not self._gateable:
            return ()
        names = [f"gates.{i}" for i in self._taps]
        reads = [None, *names][: len(names)]
        return tuple(
            ChannelLayer(f"layers.{i}", r, n, own=True) for i, r, n in zip(self._taps, reads, names, strict=True)
        )


class MLP(BackboneConfig):
    """Multi-layer perceptron; D is the number of units of the last hidden layer."""

    free_options: ClassVar[frozenset[str]] = frozenset({"dropout"})

    hidden: list[int] = field(default_factory=lambda: [400, 400], unit="units", help="Units of each hidden layer.")
    activation: Activation = field(default="relu", help="Activation after each hidden layer.")
    layer_norm: bool = field(default=False, help="LayerNorm before each activation.")
    dropout: float = field(default=0.0, ge=0, lt=1, help="Probability of zeroing a value after each activation.")

    def make(self, input_shape: tuple[int, ...]) -> PerceptronNet:
        """Make the network for inputs of any shape, which it flattens.

        Raises:
            ConfigurationError: A hidden layer has no units.
        """
        if any(units < 1 for units in self.hidden):
            raise ConfigurationError(
                f"backbone.hidden: expected at least 1 unit in each layer, received {self.hidden}; correct the list."
            )
        return PerceptronNet(math.prod(input_shape), self.hidden, self.activation, self.layer_norm, self.dropout)
