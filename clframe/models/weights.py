"""Checkpoint files of backbones: read without executing code, checked tensor by tensor."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from clframe.errors import ConfigurationError

__all__ = ["CLASSIFIER_NAMES", "load_weights", "read_tensors"]

CLASSIFIER_NAMES = frozenset({"linear", "fc", "head", "classifier"})
"""First parts of the tensor names that are taken for a classifier when the backbone has no such part."""

_SHOWN = 3


def load_weights(module: nn.Module, path: str | Path, name: str = "") -> None:
    """Copy the tensors of a checkpoint file into a module.

    Every parameter and buffer must be in the file with its shape, and the file may hold nothing else, with two
    exceptions: a classifier (`linear`, `fc`, `head` or `classifier`) that the module doesn't have is ignored, and
    BatchNorm's `num_batches_tracked` may be missing or too many.

    Args:
        module: Receives the values; its dtype and device stay.
        path: A `.safetensors` file, or a `.pt`/`.pth`/`.bin` file that `torch.load(weights_only=True)` reads.
        name: What the error calls the module; by default its class.

    Raises:
        ConfigurationError: There is no such file, it can't be read, or it was made for another architecture.
    """
    own = module.state_dict()
    found = {key: tensor for key, tensor in read_tensors(path).items() if key in own or not _is_classifier(key)}
    problems = _differences(own, found)
    if problems:
        listed = "; ".join(problems[:_SHOWN]) + ("; …" if len(problems) > _SHOWN else "")
        raise ConfigurationError(
            f"The weights in {path} don't fit {name or type(module).__name__}: {len(problems)} tensors differ ({listed}). "
            "Choose the backbone and options that the file was made for, or another file."
        )
    module.load_state_dict(found, strict=False)


def read_tensors(path: str | Path) -> dict[str, Tensor]:
    """Read the tensors of a checkpoint file onto the CPU, by name.

    A dictionary nested under `state_dict` or `model` is unpacked, and a `module.` before every name removed.

    Raises:
        ConfigurationError: There is no such file, or it can't be read.
    """
    file = Path(path).expanduser()
    if not file.is_file():
        raise ConfigurationError(f"There is no weights file {path}; give the path of a .safetensors or .pth file.")
    try:
        tensors = _read(file)
    except Exception as error:
        raise ConfigurationError(
            f"The weights file {path} can't be read ({type(error).__name__}); "
            "it must hold tensors by name, as safetensors or as a state dict."
        ) from error
    prefix = "module."
    if tensors and all(name.startswith(prefix) for name in tensors):
        return {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    return tensors


def _read(file: Path) -> dict[str, Tensor]:
    if file.suffix == ".safetensors":
        from safetensors.torch import load_file

        return dict(load_file(file, device="cpu"))
    content = torch.load(file, map_location="cpu", weights_only=True)
    for key in ("state_dict", "model"):
        if isinstance(content.get(key), Mapping):
            content = content[key]
    if not all(isinstance(value, Tensor) for value in content.values()):
        raise TypeError("not a state dict")
    return dict(content)


def _is_classifier(name: str) -> bool:
    return name.split(".", 1)[0] in CLASSIFIER_NAMES


def _differences(own: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> list[str]:
    """Say in words, in the module's order, what keeps the tensors from fitting."""
    problems = []
    for name, tensor in own.items():
        if name not in found:
            problems.append(f"{name} isn't in the file")
        elif found[name].shape != tensor.shape:
            problems.append(f"{name} is {_size(found[name])} in the file, {_size(tensor)} in the backbone")
    problems += [f"{name} isn't in the backbone" for name in found if name not in own]
    return [problem for problem in problems if "num_batches_tracked" not in problem]


def _size(tensor: Tensor) -> str:
    return "×".join(str(n) for n in tensor.shape) or "a single number"
