"""Where images come from, and how they reach the trainer: sources, the image store, readers.

Importing this package loads neither torchvision nor Pillow nor scikit-learn; each is loaded when it is needed.
"""

from __future__ import annotations

from clframe.data.arrays import Arrays, MapDataset, UserData
from clframe.data.folders import ImageFolder
from clframe.data.known import KNOWN, KnownSet
from clframe.data.reader import ImageData, ImageReader, ImageSet, MemoryReader
from clframe.data.root import DataRoot, cache_dir
from clframe.data.source import ImageSource
from clframe.data.sources import DataRow, Digits, NamedSet, TorchvisionSet, describe_data, find_source
from clframe.data.store import ImageStore
from clframe.data.stream_reader import StreamingReader

__all__ = [
    "KNOWN",
    "Arrays",
    "DataRoot",
    "DataRow",
    "Digits",
    "ImageData",
    "ImageFolder",
    "ImageReader",
    "ImageSet",
    "ImageSource",
    "ImageStore",
    "KnownSet",
    "MapDataset",
    "MemoryReader",
    "NamedSet",
    "StreamingReader",
    "TorchvisionSet",
    "UserData",
    "cache_dir",
    "describe_data",
    "find_source",
]
