"""Files by name, in a folder, a zip or a tar archive; nothing is ever extracted to disk.

Archives are judged as a whole before a byte of an image is read: a path that escapes, or a link, refuses them.
"""

from __future__ import annotations

import hashlib
import os
import struct
import tarfile
import zipfile
import zlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from clframe.data.decode import CorruptImage
from clframe.errors import DataError

__all__ = ["ARCHIVE_SUFFIXES", "FileTree", "Member", "is_archive_name", "open_tree"]

ARCHIVE_SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
_HELD_BYTES = 8 << 30
_LINK = 0o120000


class Member(NamedTuple):
    """One file: its name below the tree's top, its size in bytes, and where its bytes lie in an archive."""

    name: str
    size: int
    offset: int = 0
    packed: int = 0
    method: int = zipfile.ZIP_STORED
    check: int = 0
    """CRC-32 in a zip, modification time in ns in a folder, 0 in a tar."""


class FileTree(ABC):
    """Files by name. Safe to share between threads, and to send to worker processes, which open it anew."""

    random_access = True
    """Whether members can be read in any order without `hold`."""

    def __init__(self, path: Path) -> None:
        """Open nothing yet."""
        self.path = path
        self._descriptor: _Descriptor | None = None

    @abstractmethod
    def members(self) -> list[Member]:
        """List every file, after checking that no name leaves the tree.

        Raises:
            DataError: The archive is damaged, or holds an escaping path or a link.
        """

    @abstractmethod
    def read(self, member: Member) -> bytes:
        """Return one file's bytes.

        Raises:
            CorruptImage: The archive's own checksum or length contradicts them.
        """

    def key(self, members: Sequence[Member]) -> str:
        """Return a fingerprint that changes when any file does."""
        lines = (f"{m.name}\0{m.size}\0{m.check}" for m in sorted(members))
        return hashlib.sha256("\n".join(lines).encode(errors="surrogateescape")).hexdigest()

    def hold(self, members: Sequence[Member]) -> None:  # noqa: B027 - most need none
        """Read members into memory ahead, where the archive allows no random access."""

    def _pread(self, length: int, offset: int) -> bytes:
        descriptor = self._descriptor
        try:
            if descriptor is None or descriptor.process != os.getpid():
                descriptor = self._descriptor = _Descriptor(self.path)
            return descriptor.pread(length, offset)
        except OSError as error:
            raise CorruptImage(error.strerror or str(error)) from None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_descriptor": None}


class FolderTree(FileTree):
    """A directory; links inside it are followed, since it is the user's own."""

    def members(self) -> list[Member]:
        """List every file below the folder."""
        found: list[Member] = []
        self._walk(self.path, "", found, set())
        return found

    def _walk(self, folder: Path, prefix: str, found: list[Member], above: set[tuple[int, int]]) -> None:
        status = folder.stat()
        here = (status.st_dev, status.st_ino)
        if here in above:  # a link to a folder that holds it
            return
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.is_dir():
                    self._walk(Path(entry.path), f"{prefix}{entry.name}/", found, {*above, here})
                elif entry.is_file():
                    info = entry.stat()
                    found.append(Member(prefix + entry.name, info.st_size, check=info.st_mtime_ns))

    def read(self, member: Member) -> bytes:
        """Return one file's bytes."""
        try:
            return (self.path / member.name).read_bytes()
        except OSError as error:
            raise CorruptImage(error.strerror or str(error)) from None


class ZipTree(FileTree):
    """A zip archive, read at known offsets: no worker has to parse the directory again."""

    def members(self) -> list[Member]:
        """List every file of the archive."""
        try:
            with zipfile.ZipFile(self.path) as archive:
                infos = archive.infolist()
        except (zipfile.BadZipFile, OSError, EOFError, ValueError, struct.error) as error:
            raise _damaged(self.path, "zip", error) from None
        found: dict[str, Member] = {}
        for info in infos:
            name = _checked_name(info.filename, self.path)
            if (info.external_attr >> 16) & 0o170000 == _LINK:
                raise _escapes(self.path, info.filename, "a link")
            if info.flag_bits & 0x1:
                raise DataError(f"{self.path} is encrypted ({info.filename}); give an archive without a password.")
            if not info.is_dir():
                found[name] = Member(
                    name, info.file_size, info.header_offset, info.compress_size, info.compress_type, info.CRC
                )
        return list(found.values())

    def read(self, member: Member) -> bytes:
        """Return one file's bytes, checked against their CRC."""
        head = self._pread(30, member.offset)
        if len(head) != 30 or head[:4] != b"PK\x03\x04":
            raise CorruptImage("its zip header is damaged")
        names, extra = struct.unpack("<HH", head[26:30])
        raw = self._pread(member.packed, member.offset + 30 + names + extra)
        data = self._unpack(raw, member)
        if len(data) != member.size or zlib.crc32(data) != member.check:
            raise CorruptImage("its zip checksum doesn't match")
        return data

    def _unpack(self, raw: bytes, member: Member) -> bytes:
        if member.method == zipfile.ZIP_STORED:
            return raw
        try:
            if member.method == zipfile.ZIP_DEFLATED:
                return zlib.decompressobj(-15).decompress(raw, member.size + 1)
            with zipfile.ZipFile(self.path) as archive:
                return archive.read(member.name)
        except (zlib.error, zipfile.BadZipFile, NotImplementedError, KeyError, EOFError, OSError) as error:
            raise CorruptImage(str(error)) from None


class TarTree(FileTree):
    """A tar archive, compressed or not; a compressed one is held in memory while it is decoded."""

    def __init__(self, path: Path) -> None:
        """Look at the first bytes only."""
        super().__init__(path)
        self.random_access = path.name.lower().endswith(".tar") and not _is_compressed(path)
        self._held: dict[str, bytes] = {}

    def members(self) -> list[Member]:
        """List every file of the archive."""
        found: dict[str, Member] = {}
        try:
            with tarfile.open(self.path) as archive:
                for info in archive:
                    name = _checked_name(info.name, self.path)
                    if not (info.isfile() or info.isdir()):
                        raise _escapes(self.path, info.name, "a link or a special file")
                    if info.isfile():
                        found[name] = Member(name, info.size, info.offset_data)
        except (tarfile.TarError, OSError, EOFError, zlib.error) as error:
            raise _damaged(self.path, "tar", error) from None
        return list(found.values())

    def key(self, members: Sequence[Member]) -> str:
        """Return the hash of the archive's bytes: a tar has no checksums of its members."""
        with self.path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    def hold(self, members: Sequence[Member]) -> None:
        """Read members of a compressed archive into memory, in the archive's order.

        Raises:
            DataError: They would take more than 8 GiB.
        """
        if self.random_access:
            return
        total = sum(m.size for m in members)
        if total > _HELD_BYTES:
            raise DataError(
                f"{self.path} is a compressed tar of {total / 2**30:.1f} GiB, which can't be read in place; "
                "unpack it to a folder or repack it as a zip or an uncompressed tar."
            )
        wanted = {m.offset: m.name for m in members}
        try:
            with tarfile.open(self.path) as archive:
                for info in archive:
                    file = archive.extractfile(info) if info.offset_data in wanted and info.isfile() else None
                    if file is not None:
                        self._held[wanted[info.offset_data]] = file.read()
        except (tarfile.TarError, OSError, EOFError, zlib.error) as error:
            raise _damaged(self.path, "tar", error) from None

    def read(self, member: Member) -> bytes:
        """Return one file's bytes."""
        data = self._pread(member.size, member.offset) if self.random_access else self._held[member.name]
        if len(data) != member.size:
            raise CorruptImage("the archive ends before it does")
        return data


class _Descriptor:
    """A file descriptor that closes itself, used only in the process that opened it."""

    def __init__(self, path: Path) -> None:
        self.process = os.getpid()
        self._number = -1
        self._number = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))

    def pread(self, length: int, offset: int) -> bytes:
        """Read without moving a shared position."""
        return os.pread(self._number, length, offset)

    def __del__(self) -> None:
        if self._number >= 0 and self.process == os.getpid():
            os.close(self._number)


def is_archive_name(path: Path) -> bool:
    """Whether the name is that of an archive that `open_tree` reads."""
    return path.name.lower().endswith(ARCHIVE_SUFFIXES)


def open_tree(path: Path) -> FileTree:
    """Return the files of a folder, a zip or a tar.

    Raises:
        DataError: The path doesn't exist or is none of these.
    """
    if path.is_dir():
        return FolderTree(path)
    if not path.is_file():
        raise DataError(f"Expected a folder or archive of images, but {path} doesn't exist; check the path.")
    if zipfile.is_zipfile(path):
        return ZipTree(path)
    if path.name.lower().endswith(".zip"):
        raise _damaged(path, "zip", "its end is missing")
    if is_archive_name(path) or tarfile.is_tarfile(path):
        return TarTree(path)
    raise DataError(f"Expected a folder, a .zip or a .tar(.gz) of images, received {path}.")


def _is_compressed(path: Path) -> bool:
    with path.open("rb") as file:
        start = file.read(6)
    return start.startswith((b"\x1f\x8b", b"BZh", b"\xfd7zXZ"))


def _checked_name(name: str, archive: Path) -> str:
    """Return a member's name with forward slashes and no `.` parts.

    Raises:
        DataError: The name is absolute or climbs out of the archive.
    """
    plain = name.replace("\\", "/")
    if plain.startswith("/") or (len(plain) > 1 and plain[1] == ":"):
        raise _escapes(archive, name, "an absolute path")
    if "/./" not in plain and ".." not in plain and not plain.startswith("./"):  # the usual case, fast
        return plain
    parts = [part for part in plain.split("/") if part not in ("", ".")]
    if ".." in parts:
        raise _escapes(archive, name, "a path that leaves it")
    return "/".join(parts)


def _escapes(archive: Path, name: str, what: str) -> DataError:
    return DataError(
        f"The archive {archive} holds {what} ({name!r}), so nothing of it was read; repack it with plain files "
        "below one folder."
    )


def _damaged(path: Path, kind: str, error: object) -> DataError:
    return DataError(f"{path} is not a complete {kind} archive ({error}); copy or download it again.")
