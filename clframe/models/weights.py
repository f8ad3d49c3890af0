"""Checkpoint files of backbones: read without executing code, checked tensor by tensor; what `clframe pretrain` writes."""

from __future__ import annotations

import functools
import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from clframe.errors import ConfigurationError, RunDirectoryError

__all__ = ["CLASSIFIER_NAMES", "file_digest", "load_weights", "read_provenance", "read_tensors", "save_weights"]

CLASSIFIER_NAMES = frozenset({"linear", "fc", "head", "classifier"})
"""First parts of the tensor names that are taken for a classifier when the backbone has no such part."""

_SHOWN = 3
_PROVENANCE = "clframe"
"""Key of the provenance among a safetensors file's metadata."""


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
        shape = (read_provenance(path) or {}).get("input", {}).get("shape")
        made_for = f", made for inputs of {'×'.join(map(str, shape))}," if shape else ""
        raise ConfigurationError(
            f"The weights in {path}{made_for} don't fit {name or type(module).__name__}: {len(problems)} tensors differ "
            f"({listed}). Choose the backbone and options that the file was made for, or another file."
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


def save_weights(module: nn.Module, path: Path, provenance: Mapping[str, Any]) -> None:
    """Write a backbone's tensors as safetensors, with where they come from in the file's metadata.

    Raises:
        RunDirectoryError: The file can't be written; what was there before is untouched.
    """
    from safetensors.torch import save_file

    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in module.state_dict().items()}
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(tensors, temporary, metadata={_PROVENANCE: json.dumps(provenance, sort_keys=True)})
        temporary.replace(path)
    except Exception as error:  # safetensors raises its own kind for a full disk
        temporary.unlink(missing_ok=True)
        raise RunDirectoryError(f"The weights {path} can't be written ({error}): choose another --out.") from error


def read_provenance(path: str | Path) -> dict[str, Any] | None:
    """Return what a file of `clframe pretrain` says of where it comes from; None for any other file."""
    from safetensors import SafetensorError, safe_open

    file = Path(path).expanduser()
    if file.suffix != ".safetensors" or not file.is_file():
        return None
    try:
        with safe_open(file, framework="pt") as opened:
            text = (opened.metadata() or {}).get(_PROVENANCE)
        found = None if text is None else json.loads(text)
    except (OSError, ValueError, SafetensorError):  # reading the tensors will say what is wrong
        return None
    return found if isinstance(found, dict) else None


def file_digest(path: str | Path) -> str:
    """Return the SHA-256 of a file in hexadecimal digits; a file that hasn't changed since is not read again."""
    file = Path(path).expanduser()
    about = file.stat()
    return _digest(str(file.resolve()), about.st_size, about.st_mtime_ns)


@functools.lru_cache(maxsize=64)
def _digest(path: str, size: int, changed: int) -> str:
    with Path(path).open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


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
