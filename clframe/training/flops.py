"""Counting floating-point operations while they are computed: a multiplication and an addition are two."""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch._ops import HigherOrderOperator
from torch.utils._python_dispatch import TorchDispatchMode, _get_current_dispatch_mode

__all__ = ["FlopCounter", "formulas"]

Formula = Callable[..., int]
"""Maps an operator's arguments, and its result as `out_val`, to floating-point operations."""


class FlopCounter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Adds up the operations of everything that is computed inside, backward passes too; may be entered again.

    It reads shapes and hands every operator on as it is, so that no bit of a result changes. Counted are products of
    matrices and vectors, convolutions, attention, distances, and decompositions of matrices (leading terms, Golub & Van
    Loan 2013, "Matrix Computations"); what goes element by element (activations, norms, pooling, the optimiser's
    update) counts as nothing, and so do recurrent layers.

    The formulas are those of PyTorch's own `FlopCounterMode`, which has none for attention on the CPU, counts the weight
    gradient of a grouped convolution as if all channels were joined, and costs twice as much time.

    Attributes:
        flops: Operations so far.
    """

    supports_higher_order_operators = True

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.flops = 0
        self._runs: object | None = None

    @property
    def is_running(self) -> bool:
        """Whether it counts what is computed now, and nothing else watches in between."""
        return self._runs is not None and _get_current_dispatch_mode() is self

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Count what is computed inside, but for what `pausing` encloses."""
        self._runs = object()
        self.__enter__()  # type: ignore[no-untyped-call]
        try:
            yield
        finally:
            if self.is_running:  # no pause has left it
                self.__exit__(None, None, None)  # type: ignore[no-untyped-call]
            self._runs = None

    @contextlib.contextmanager
    def pausing(self) -> Iterator[None]:
        """Don't count what is computed inside; it costs nothing more then. Does nothing unless `is_running`.

        It may end after `running` has, as the block of a generator does that an exception has left behind.
        """
        runs = self._runs if self.is_running else None
        if runs is not None:
            self.__exit__(None, None, None)  # type: ignore[no-untyped-call]
        try:
            yield
        finally:
            if runs is not None and runs is self._runs:
                self.__enter__()  # type: ignore[no-untyped-call]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Compute an operator and count it."""
        formula, whole = _treatment(func)
        if whole and torch.is_inference_mode_enabled():
            with self:  # inference mode passes on whole what is made of other operators, such as `linear`
                return func._op_dk(_COMPOSITE, *args, **(kwargs or {}))
        out = func(*args, **kwargs) if kwargs else func(*args)
        if formula is not None:
            self.flops += formula(*args, **(kwargs or {}), out_val=out)
        return out


_COMPOSITE = torch._C.DispatchKey.CompositeImplicitAutograd


@functools.cache  # asked for every operator of every counted step
def _treatment(func: Any) -> tuple[Formula | None, bool]:
    """Return an operator's formula, and whether it is one without a formula that is made of others."""
    if isinstance(func, HigherOrderOperator):  # such as control flow: computed, but not looked into
        return None, False
    formula = formulas().get(func.overloadpacket)
    composite = bool(torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), _COMPOSITE))
    return formula, formula is None and composite


@functools.cache
def formulas() -> Mapping[Any, Formula]:
    """Return the formula of every operator that counts: PyTorch's, corrected and completed."""
    from torch.utils.flop_counter import flop_registry  # imports a compiler, where there is one

    aten = torch.ops.aten
    flash = flop_registry[aten._scaled_dot_product_flash_attention]
    flash_backward = flop_registry[aten._scaled_dot_product_flash_attention_backward]
    return {
        **flop_registry,
        aten.mm: _mm,  # PyTorch's own look for shapes in every argument, which takes longer than a small product
        aten.addmm: lambda _, a, b, **__: _mm(a, b),
        aten.convolution_backward: _convolution_backward,
        aten._scaled_dot_product_flash_attention_for_cpu: flash,
        aten._scaled_dot_product_flash_attention_for_cpu_backward: flash_backward,
        aten._native_multi_head_attention: _multi_head_attention,
        aten._transformer_encoder_layer_fwd: _encoder_layer,
        aten.mv: lambda matrix, *_, **__: 2 * matrix.numel(),
        aten.addmv: lambda _, matrix, *__, **___: 2 * matrix.numel(),
        aten.dot: lambda a, *_, **__: 2 * a.numel(),
        aten._cdist_forward: lambda a, *_, out_val, **__: 3 * out_val.numel() * a.shape[-1],
        aten._cdist_backward: lambda grad, a, *_, **__: 3 * grad.numel() * a.shape[-1],
        aten.linalg_cholesky_ex: _of_square(lambda n, _: n**3 / 3),
        aten._linalg_eigh: _of_square(lambda n, _: 9 * n**3),
        aten.linalg_inv_ex: _of_square(lambda n, _: 2 * n**3),
        aten._linalg_solve_ex: _of_square(lambda n, k: 2 * n**3 / 3 + 2 * n * n * k),
        aten.linalg_solve_triangular: _of_square(lambda n, k: n * n * k),
        aten._linalg_svd: _svd,
    }


def _mm(a: Tensor, b: Tensor, **_: Any) -> int:
    """Of a product of matrices (M, K) and (K, N)."""
    return 2 * a.numel() * b.shape[1]


def _convolution_backward(
    grad_out: Tensor,
    x: Tensor,
    weight: Tensor,
    bias_sizes: Any,
    stride: Any,
    padding: Any,
    dilation: Any,
    transposed: bool,
    output_padding: Any,
    groups: int,
    mask: Any,
    **_: Any,
) -> int:
    """As much for the input's gradient, and as much for the weight's, as for the forward pass."""
    places = x if transposed else grad_out
    forward = 2 * places.numel() * math.prod(weight.shape[1:])
    return (int(mask[0]) + int(mask[1])) * forward


def _multi_head_attention(query: Tensor, key: Tensor, value: Tensor, dim: int, *_: Any, **__: Any) -> int:
    """Projections of queries, keys and values, attention, and the projection of its result (PyTorch's fast path)."""
    batch, length = query.shape[:2]
    others = key.shape[1]
    return 4 * batch * dim * dim * (length + others) + 4 * batch * length * others * dim


def _encoder_layer(x: Tensor, dim: int, *more: Any, **_: Any) -> int:
    """Self-attention and two linear layers (PyTorch's fast path)."""
    hidden = more[12].shape[0]  # of the first linear layer's weight (H, D)
    rows = x.numel() // x.shape[-1]
    return _multi_head_attention(x, x, x, dim) + 4 * rows * dim * int(hidden)


def _of_square(per_matrix: Callable[[int, int], float]) -> Formula:
    """Return the formula of what is done with matrices (…, N, N) and right-hand sides (…, N, K)."""

    def formula(matrix: Tensor, *rest: Any, **_: Any) -> int:
        n = matrix.shape[-1]
        right = rest[0] if rest and isinstance(rest[0], Tensor) else matrix
        count = matrix.numel() // max(1, n * n)
        return round(count * per_matrix(n, right.shape[-1] if right.ndim >= matrix.ndim else 1))

    return formula


def _svd(matrix: Tensor, *_: Any, **__: Any) -> int:
    """Singular values and vectors of (…, M, N), N the smaller: 6 M N² + 20 N³."""
    small, large = sorted(matrix.shape[-2:])
    count = matrix.numel() // max(1, small * large)
    return int(count * (6 * large * small**2 + 20 * small**3))
