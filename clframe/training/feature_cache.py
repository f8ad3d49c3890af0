"""Features of a frozen network, computed once: kept on disk by the content of the samples, read as a memory map.

A cache is a folder `CACHE/features/KEY`. The key is the fingerprint of the network and of what images pass through on
their way into it, so another network, normalisation or precision has another folder. Inside, a feature belongs to the
bytes of its sample and not to a place in some data set: every class order and every cut of the same images shares it.

The folder holds safetensors files, each written under another name and renamed when complete, and never changed:

| tensor | holds |
|---|---|
| `digest` | (N, 16) uint8, hashes of the samples' bytes |
| `check` | (N,) int64, the CRC-32 of every row of features |
| `features` | (N, D) float32 |

What is damaged fails its check and is computed again. Processes that write at once write files of their own.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
import time
import warnings
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from clframe.data.root import cache_dir
from clframe.stream import SampleTable
from clframe.training.batches import BatchMaker

__all__ = ["FeatureCache", "features_dir"]

_DIGEST_BYTES = 16
_WRITE_SECONDS = 30.0
"""Longest stretch of computing that a killed process loses."""

_OLD_SECONDS = 24 * 3600.0

Forward = Callable[[Tensor], Tensor]
"""Maps the network's input (B, …) to features (B, D)."""


def features_dir() -> Path:
    """Return the folder of all feature caches, beside the decoded images; it need not exist."""
    return cache_dir() / "features"


@dataclass(frozen=True, eq=False)
class _Part:
    """Features of some samples, mapped from a file or in memory."""

    digests: NDArray[np.uint8]
    checks: NDArray[np.int64]
    features: NDArray[np.float32]
    path: Path | None = None

    def rows(self, rows: NDArray[np.int64]) -> NDArray[np.float32] | None:
        """Return a copy of some rows, None when one of them isn't what was written."""
        found = self.features[rows]
        if self.path is not None:
            for row, values in zip(self.checks[rows].tolist(), found, strict=True):
                if zlib.crc32(values.data) != row:
                    return None
        return found


class FeatureCache:
    """The features of one network under one preprocessing.

    Args:
        folder: Where they are kept; None keeps them in memory, as long as this object lives.
    """

    def __init__(self, folder: Path | None = None) -> None:
        """Touch no file."""
        self.folder = folder
        self._dtype = torch.float32
        self._parts: list[_Part | None] = []  # None where a part turned out to be damaged
        self._names: set[str] = set()
        self._where: dict[bytes, tuple[int, int]] = {}
        self._places: dict[SampleTable, tuple[Tensor, Tensor]] = {}
        self._writable = folder is not None

    def get(self, maker: BatchMaker, ids: Tensor, batch_size: int, forward: Forward) -> Tensor:
        """Return the features (N, D) of some samples, on the CPU; what isn't there is computed and kept."""
        while True:
            self.fill(maker, ids, batch_size, forward)
            found = self._read(maker.table, ids)
            if found is not None:
                return found

    def fill(self, maker: BatchMaker, ids: Tensor, batch_size: int, forward: Forward) -> None:
        """Have the features of some samples.

        Where none of them is there, the forward passes are those of `ids` cut into batches; otherwise of the missing
        ones in order, cut likewise. A feature's last bits may depend on the batch in which it was computed.

        Args:
            maker: Batches of the table that holds the samples.
            ids: (N,) ids in the table.
            batch_size: Samples per forward pass.
            forward: Computes features, without gradient.
        """
        part_of, _ = self._place(maker.table)
        unknown = ids[part_of[ids] < 0]
        if not len(unknown):
            return
        self._look()
        pending = _Pending(batch_size)
        written = time.monotonic()
        batches = list(torch.split(unknown, batch_size))
        for part, images in zip(batches, maker.table.batches(batches), strict=True):
            digests = _digests(images)
            known = torch.tensor([d in self._where for d in digests])
            pending.add(
                part[~known], images[~known], [d for d, k in zip(digests, known.tolist(), strict=True) if not k]
            )
            self._note(maker.table, part[known], [d for d, k in zip(digests, known.tolist(), strict=True) if k])
            pending.forward(maker, forward)
            if time.monotonic() - written > _WRITE_SECONDS:
                self._keep(maker.table, pending)
                written = time.monotonic()
        pending.forward(maker, forward, rest=True)
        self._keep(maker.table, pending)

    # -- where a sample's features are ---------------------------------------------------------------------------------

    def _place(self, table: SampleTable) -> tuple[Tensor, Tensor]:
        """Return, by the table's ids, the part that holds a sample's features (-1: not known) and the row in it."""
        if table not in self._places:
            self._places[table] = (torch.full((len(table),), -1), torch.zeros(len(table), dtype=torch.int64))
        return self._places[table]

    def _note(self, table: SampleTable, ids: Tensor, digests: Sequence[bytes]) -> None:
        if len(ids):
            part_of, row_of = self._place(table)
            places = torch.tensor([self._where[d] for d in digests])
            part_of[ids], row_of[ids] = places[:, 0], places[:, 1]

    def _read(self, table: SampleTable, ids: Tensor) -> Tensor | None:
        """Return features that `fill` has found, None when some of them are damaged; these are then forgotten."""
        part_of, row_of = (t[ids].numpy() for t in self._place(table))
        out: NDArray[np.float32] | None = None
        for number in np.unique(part_of).tolist():
            part = self._parts[number]
            chosen = part_of == number
            rows = None if part is None else part.rows(row_of[chosen])
            if rows is None:
                self._forget(number)
                return None
            if out is None:
                out = np.empty((len(ids), rows.shape[1]), dtype=np.float32)
            out[chosen] = rows
        if out is None:
            return torch.empty(0, 0)
        return torch.from_numpy(out).to(self._dtype)

    def _forget(self, number: int) -> None:
        """Drop a damaged part, its file too, so that its samples are computed again."""
        part, self._parts[number] = self._parts[number], None
        self._where = {d: place for d, place in self._where.items() if place[0] != number}
        for part_of, _ in self._places.values():
            part_of[part_of == number] = -1
        if part is not None and part.path is not None:
            with contextlib.suppress(OSError):
                part.path.unlink()

    def _append(self, part: _Part) -> None:
        number = len(self._parts)
        self._parts.append(part)
        for row, digest in enumerate(part.digests):
            self._where.setdefault(digest.tobytes(), (number, row))

    # -- files -----------------------------------------------------------------------------------------------------------

    def _look(self) -> None:
        """Open the files that other runs have written since."""
        if self.folder is None:
            return
        for path in sorted(self.folder.glob("*.safetensors")):
            if path.name in self._names:
                continue
            self._names.add(path.name)
            opened = _opened(path)
            if opened is None:
                with contextlib.suppress(OSError):
                    path.unlink()
                continue
            part, self._dtype = opened
            self._append(part)

    def _keep(self, table: SampleTable, pending: _Pending) -> None:
        """Write what was computed; where that fails, keep it in memory."""
        if not pending.features:
            return
        ids, digests, values = pending.take()
        self._dtype = values.dtype
        self._look()
        new = [i for i, digest in enumerate(digests) if digest not in self._where]
        if new:
            self._keep_rows([digests[i] for i in new], values[new].float().numpy())
        self._note(table, ids, digests)

    def _keep_rows(self, digests: Sequence[bytes], rows: NDArray[np.float32]) -> None:
        part = _Part(np.frombuffer(b"".join(digests), np.uint8).reshape(-1, _DIGEST_BYTES), _checks(rows), rows)
        if self._writable and self.folder is not None:
            try:
                part = self._write(part)
            except OSError as error:
                self._writable = False
                warnings.warn(
                    f"Features can't be kept in {self.folder} ({error.strerror or error}), so other runs will compute "
                    "them again: free space there, or set CLFRAME_CACHE to a folder with room.",
                    stacklevel=2,
                )
        self._append(part)

    def _write(self, part: _Part) -> _Part:
        from safetensors.numpy import save

        folder = self.folder or Path()
        folder.mkdir(parents=True, exist_ok=True)
        for left in folder.glob(".*.tmp"):  # of a killed process, when it is old
            if time.time() - left.stat().st_mtime > _OLD_SECONDS:
                left.unlink(missing_ok=True)
        index = {"digest": part.digests, "check": part.checks}
        metadata = {"dtype": str(self._dtype).removeprefix("torch."), "index": _index_hash(part.digests, part.checks)}
        name = f"{secrets.token_hex(8)}.safetensors"
        temporary = folder / f".{name}.tmp"
        try:
            with temporary.open("wb") as file:
                file.write(save({**index, "features": part.features}, metadata))
                file.flush()
                os.fsync(file.fileno())
            self._names.add(name)
            temporary.replace(folder / name)
        finally:
            temporary.unlink(missing_ok=True)
        opened = _opened(folder / name)
        return part if opened is None else opened[0]


class _Pending:
    """Samples on their way through the network."""

    def __init__(self, batch_size: int) -> None:
        self.size = batch_size
        self.waiting: list[Tensor] = []
        self.ids: list[Tensor] = []
        self.digests: list[bytes] = []
        self.features: list[Tensor] = []

    def add(self, ids: Tensor, images: Tensor, digests: list[bytes]) -> None:
        """Let samples wait until they fill a batch."""
        if len(ids):
            self.ids.append(ids)
            self.digests += digests
            self.waiting.append(images)

    def forward(self, maker: BatchMaker, forward: Forward, rest: bool = False) -> None:
        """Compute full batches, and with `rest` the last one too."""
        while (count := sum(map(len, self.waiting))) >= self.size or (rest and count):
            images = torch.cat(self.waiting)
            self.features.append(forward(maker.test_input(images[: self.size])).detach().cpu())
            self.waiting = [images[self.size :]]

    def take(self) -> tuple[Tensor, list[bytes], Tensor]:
        """Hand over what has been computed: ids, digests and features."""
        values, ids = torch.cat(self.features), torch.cat(self.ids)
        done, digests = ids[: len(values)], self.digests[: len(values)]
        self.ids, self.digests, self.features = [ids[len(values) :]], self.digests[len(values) :], []
        return done, digests, values


def _digests(images: Tensor) -> list[bytes]:
    """Hash the bytes of every sample."""
    rows = images.contiguous().flatten(1).numpy()
    return [hashlib.blake2b(row.data, digest_size=_DIGEST_BYTES).digest() for row in rows]


def _checks(rows: NDArray[np.float32]) -> NDArray[np.int64]:
    return np.array([zlib.crc32(row.data) for row in rows], dtype=np.int64)


def _index_hash(digests: NDArray[np.uint8], checks: NDArray[np.int64]) -> str:
    return hashlib.blake2b(digests.tobytes() + checks.tobytes(), digest_size=16).hexdigest()


def _opened(path: Path) -> tuple[_Part, torch.dtype] | None:
    """Map a file; None when it isn't whole, or its index isn't what was written."""
    try:
        with path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            if size > path.stat().st_size:
                return None
            header: dict[str, Any] = json.loads(file.read(size))
        arrays = {n: _mapped(path, 8 + size, header[n]) for n in ("digest", "check", "features")}
        metadata = header["__metadata__"]
        digests, checks = np.array(arrays["digest"]), np.array(arrays["check"])
        if metadata["index"] != _index_hash(digests, checks) or not len(digests) == len(checks) == len(
            arrays["features"]
        ):
            return None
        return _Part(digests, checks, arrays["features"], path), getattr(torch, metadata["dtype"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


_KINDS: dict[str, Any] = {"U8": np.uint8, "I64": np.int64, "F32": np.float32}


def _mapped(path: Path, begin: int, entry: dict[str, Any]) -> Any:
    """Map one tensor of a safetensors file; a file that is too short is refused."""
    start, _ = entry["data_offsets"]
    return np.memmap(path, _KINDS[entry["dtype"]], "r", begin + start, tuple(entry["shape"]))
