"""Small image folders, and the containers they come in."""

from __future__ import annotations

import io
import tarfile
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from clframe.data import DataRoot

Files = dict[str, bytes]
Pack = Callable[[Mapping[str, bytes], str], Path]


def png(pixels: np.ndarray, mode: str | None = None, form: str = "PNG") -> bytes:
    image = Image.fromarray(pixels)
    buffer = io.BytesIO()
    (image.convert(mode) if mode else image).save(buffer, form)
    return buffer.getvalue()


def image_files(
    size: int = 6, train: int = 5, test: int = 2, classes: tuple[str, ...] = ("ant", "bee", "cat")
) -> Files:
    """Random RGB images as PNG, by name; every pixel differs between files."""
    draws = np.random.RandomState(0)
    return {
        f"set/{split}/{name}/{i:02d}.png": png(draws.randint(0, 256, (size, size, 3), np.uint8))
        for split, count in (("train", train), ("test", test))
        for name in classes
        for i in range(count)
    }


@pytest.fixture
def files() -> Files:
    return image_files()


@pytest.fixture
def root(tmp_path: Path) -> DataRoot:
    folder = tmp_path / "root"
    folder.mkdir()
    return DataRoot(folders=(folder,), download_folder=folder)


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Every test starts with an empty cache."""
    monkeypatch.setenv("CLFRAME_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def pack(tmp_path: Path) -> Pack:
    """Write files as `folder`, `zip`, `deflated.zip`, `tar` or `tar.gz` and return the path."""

    def write(files: Mapping[str, bytes], kind: str) -> Path:
        path = tmp_path / f"packed.{kind}"
        if kind == "folder":
            for name, data in files.items():
                (path / name).parent.mkdir(parents=True, exist_ok=True)
                (path / name).write_bytes(data)
        elif kind.endswith("zip"):
            method = zipfile.ZIP_DEFLATED if "deflated" in kind else zipfile.ZIP_STORED
            with zipfile.ZipFile(path, "w", method) as archive:
                for name, data in files.items():
                    archive.writestr(name, data)
        else:
            with tarfile.open(path, "w:gz" if kind.endswith("gz") else "w") as archive:
                for name, data in files.items():
                    info = tarfile.TarInfo(name)
                    info.size = len(data)
                    archive.addfile(info, io.BytesIO(data))
        return path

    return write


@pytest.fixture
def make_files() -> Callable[..., Files]:
    return image_files


@pytest.fixture
def encode() -> Callable[..., bytes]:
    return png
