"""What something computes, as one hash: its tensors and settings, and the code of its classes and functions.

Two values of equal fingerprint compute the same, so what one of them computed may stand for the other. In the doubtful
direction the hash differs: code that was edited without effect, or attributes that nothing reads, make another one.
"""

from __future__ import annotations

import enum
import functools
import hashlib
import sys
import types
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

__all__ = ["fingerprint"]

_PLAIN = (type(None), bool, int, float, complex, str, bytes)
_TORCH_PLAIN = (torch.dtype, torch.device, torch.Size, torch.memory_format, torch.layout)
_SILENT = frozenset({"__doc__", "__module__", "__qualname__", "__firstlineno__", "__static_attributes__"})
_MODULE_INTERNALS = frozenset(vars(nn.Module()))
_RECORDS = frozenset({"pretrained_cfg", "default_cfg"})
"""Where timm notes what weights were trained on, which computes nothing."""


class _Unreadable(Exception):
    """Something whose behaviour can't be told from its parts."""


def fingerprint(*values: Any) -> str | None:
    """Return a hash of what some values compute, the same in every process.

    Read are tensors, plain values, collections, modules with everything in them, objects by their attributes, and
    functions and classes by their code, that of the functions and classes which they name included; of installed
    packages the version stands for the code. Modules count as in eval mode.

    Returns:
        40 hexadecimal digits; None where a part can't be read, such as a generator or an open file.

    >>> fingerprint([1, "a"]) == fingerprint([1, "a"]) != fingerprint([1, "b"])
    True
    """
    reader = _Reader()
    try:
        for value in values:
            reader.read(value)
    except (_Unreadable, RuntimeError, TypeError, ValueError):  # RuntimeError: a tensor without values
        return None
    return reader.hash.hexdigest()


class _Reader:
    """Feeds values to a hash."""

    def __init__(self) -> None:
        self.hash = hashlib.sha1(usedforsecurity=False)
        self._code: dict[int, int] = {}  # functions and classes met so far, by identity
        self._inside: set[int] = set()  # objects around the current one

    def say(self, *parts: object) -> None:
        """Feed some plain values, so that no two lists of them look alike."""
        for part in parts:
            data = part if isinstance(part, bytes) else str(part).encode()
            self.hash.update(len(data).to_bytes(8, "little") + data)

    def read(self, value: Any) -> None:
        """Feed any value."""
        if isinstance(value, enum.Enum):
            self.say("enum", type(value).__qualname__, value.name)
        elif isinstance(value, _PLAIN):
            self.say(type(value).__name__, value if isinstance(value, bytes) else repr(value))
        elif isinstance(value, (*_TORCH_PLAIN, Path)):
            self.say(type(value).__name__, str(value))
        elif isinstance(value, (Tensor, np.ndarray)):
            self._tensor(value if isinstance(value, Tensor) else torch.from_numpy(np.ascontiguousarray(value)))
        elif isinstance(value, type) or _is_function(value):
            self._callable(value)
        else:
            self._nested(value)

    def _tensor(self, value: Tensor) -> None:
        if nn.parameter.is_lazy(value):
            raise _Unreadable
        self.say("tensor", value.dtype, tuple(value.shape))
        plain = value.detach().to("cpu").contiguous().reshape(-1)
        self.hash.update(memoryview(plain.view(torch.uint8).numpy()))  # type: ignore[arg-type]

    def _nested(self, value: Any) -> None:
        """Feed what holds other values."""
        if id(value) in self._inside:
            self.say("around")
            return
        self._inside.add(id(value))
        try:
            self._parts(value)
        finally:
            self._inside.discard(id(value))

    def _parts(self, value: Any) -> None:
        if isinstance(value, nn.Module):
            self._module(value)
        elif isinstance(value, Mapping):
            self.say("mapping", len(value))
            for key, item in value.items():
                self.read(key)
                self.read(item)
        elif isinstance(value, (list, tuple)):
            self.say(type(value).__name__, len(value))
            for item in value:
                self.read(item)
        elif isinstance(value, (set, frozenset)):
            self.say("set", *sorted(str(fingerprint(item)) for item in value))
        elif isinstance(value, functools.partial):
            self.say("partial")
            for part in (value.func, value.args, value.keywords):
                self.read(part)
        elif isinstance(value, types.MethodType):
            self.read(value.__func__)
            self.read(value.__self__)
        else:
            self._object(value)

    def _module(self, module: nn.Module) -> None:
        self._callable(type(module))
        own = {k: v for k, v in vars(module).items() if k not in _MODULE_INTERNALS and k not in _RECORDS}
        hooks = [*module._forward_pre_hooks.values(), *module._forward_hooks.values()]
        for what, parts in (
            ("parameters", module._parameters), ("buffers", module._buffers), ("attributes", own),
            ("hooks", dict(enumerate(hooks))), ("modules", module._modules),
        ):  # fmt: skip
            self.say(what, len(parts))
            for name in sorted(parts, key=str):
                self.say(name)
                self.read(parts[name])  # type: ignore[index]

    def _object(self, value: Any) -> None:
        slots = [n for c in type(value).__mro__ for n in getattr(c, "__slots__", ()) if hasattr(value, n)]
        if not hasattr(value, "__dict__") and not slots:
            raise _Unreadable
        object.__reduce_ex__(value, 2)  # raises a TypeError for what hides state in C, such as an open file
        self._callable(type(value))
        attributes = {**{n: getattr(value, n) for n in slots}, **getattr(value, "__dict__", {})}
        for name in sorted(attributes):
            self.say(name)
            self.read(attributes[name])

    # -- code --------------------------------------------------------------------------------------------------------

    def _callable(self, value: Any) -> None:
        """Feed a function or class once; when met again, that it is the same one."""
        if id(value) in self._code:
            self.say("again", self._code[id(value)])
            return
        self._code[id(value)] = len(self._code)
        if isinstance(value, type):
            self._class(value)
        elif isinstance(value, types.FunctionType):
            self._function(value)
        elif hasattr(value, "__wrapped__"):  # functools.cache and the like
            self._callable(value.__wrapped__)
        else:
            self.say("builtin", getattr(value, "__module__", ""), getattr(value, "__qualname__", repr(value)))

    def _named(self, value: Any) -> bool:
        """Feed the name of a function or class; whether its code is to be read too."""
        module = value.__module__ or "builtins"
        self.say(type(value).__name__, module, value.__qualname__)
        version = _installed(module)
        self.say(version or "")
        return version is None

    def _class(self, cls: type) -> None:
        if not self._named(cls):
            return
        for base in cls.__mro__[1:]:
            self._callable(base)
        for name, member in sorted(vars(cls).items()):
            if name in _SILENT:
                continue
            inner = _unwrapped(member)
            if isinstance(inner, types.FunctionType):
                self.say(name)
                self._callable(inner)
            elif _is_constant(inner):
                self.say(name, repr(inner))

    def _function(self, function: types.FunctionType) -> None:
        if self._named(function):
            self._bytecode(function.__code__, function.__globals__)
        self.read(function.__defaults__)
        self.read(function.__kwdefaults__)
        for cell in function.__closure__ or ():
            if _filled(cell):
                self.read(cell.cell_contents)

    def _bytecode(self, code: types.CodeType, names: dict[str, Any]) -> None:
        self.say(code.co_code, *code.co_names, *code.co_varnames)
        for constant in code.co_consts:
            if isinstance(constant, types.CodeType):
                self._bytecode(constant, names)
            else:
                self.say(sorted(map(repr, constant)) if isinstance(constant, frozenset) else repr(constant))
        for found in _referenced(code, names):
            if isinstance(found, (type, types.FunctionType)) or hasattr(found, "__wrapped__"):
                self._callable(found)
            elif _is_constant(found):
                self.say(repr(found))


def _referenced(code: types.CodeType, names: dict[str, Any]) -> Iterator[Any]:
    """Yield what a function's code reads by name from its module, and from modules that aren't installed."""
    for name in code.co_names:
        found = names.get(name)
        if isinstance(found, types.ModuleType):
            if _installed(found.__name__) is None:
                yield from (vars(found)[n] for n in code.co_names if n in vars(found))
        elif found is not None:
            yield found


def _is_function(value: Any) -> bool:
    kinds = (types.FunctionType, types.BuiltinFunctionType, types.MethodDescriptorType, types.WrapperDescriptorType)
    return isinstance(value, kinds) or (callable(value) and isinstance(getattr(value, "__wrapped__", None), kinds))


def _is_constant(value: Any) -> bool:
    return isinstance(value, _PLAIN) or (isinstance(value, tuple) and all(_is_constant(v) for v in value))


def _unwrapped(member: Any) -> Any:
    if isinstance(member, (staticmethod, classmethod)):
        return member.__func__
    if isinstance(member, property):
        return member.fget
    return getattr(member, "func", member) if isinstance(member, functools.cached_property) else member


def _filled(cell: types.CellType) -> bool:
    try:
        cell.cell_contents  # noqa: B018 - an empty cell raises
    except ValueError:
        return False
    return True


@functools.cache
def _installed(module: str) -> str | None:
    """Return what stands for the code of a module that nobody edits: Python's or an installed package's version."""
    top = module.partition(".")[0]
    if top == "__main__":
        return None
    if top in sys.stdlib_module_names:
        return f"python {sys.version_info[0]}.{sys.version_info[1]}"
    loaded = sys.modules.get(top)
    where = Path(getattr(loaded, "__file__", None) or "")
    if not {"site-packages", "dist-packages"} & set(where.parts):
        return None
    return f"{top} {getattr(loaded, '__version__', '')}"
