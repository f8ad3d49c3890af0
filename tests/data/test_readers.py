"""Readers: copies, the same bits from memory and from files, in order, whatever the workers."""

from __future__ import annotations

import gc
import multiprocessing
import pickle

import numpy as np
import pytest
import torch

from clframe.data import ImageFolder, ImageReader, ImageSet, MemoryReader
from clframe.errors import DataError


@pytest.fixture
def readers(files, pack, root):
    path = pack(files, "zip")
    stored = ImageFolder(path=path, mode="store").open(root).train
    streams = {n: ImageFolder(path=path, mode="stream", workers=n).open(root).train for n in (0, 2)}
    return stored, streams


BATCHES = [torch.tensor(b) for b in ([3, 1, 2], [14], [0, 0, 7], [5, 6, 4, 9])]


@pytest.mark.parametrize("workers", [0, 2])
def test_streaming_equals_the_store(readers, workers):
    stored, streams = readers
    stream = streams[workers]
    assert torch.equal(stored.targets, stream.targets)
    assert (stream.images.shape, stream.images.dtype, len(stream.images)) == ((3, 6, 6), torch.uint8, 15)
    expected = [stored.images.gather(b) for b in BATCHES]
    for found in (list(stream.images.batches(BATCHES)), list(stored.images.batches(BATCHES))):
        assert len(found) == len(BATCHES)
        assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))


@pytest.mark.parametrize("kind", ["folder", "deflated.zip", "tar"])
def test_streaming_equals_the_store_resized(files, pack, root, kind):
    path = pack(files, kind)
    opened = [
        ImageFolder(path=path, mode=mode, size=4, workers=1).open(root).test.images for mode in ("store", "stream")
    ]
    batches = [torch.tensor([5, 0]), torch.tensor([1, 2, 3])]
    pairs = zip(*(reader.batches(batches) for reader in opened), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_streaming_touches_no_global_generator(readers):
    _, streams = readers
    for workers, stream in streams.items():
        before = torch.get_rng_state()
        list(stream.images.batches(BATCHES[: workers + 1]))
        assert torch.equal(before, torch.get_rng_state())


def test_workers_end_when_the_iterator_is_closed(readers):
    stream = readers[1][2].images.batches(BATCHES)
    next(stream)
    assert len(multiprocessing.active_children()) == 2
    stream.close()
    gc.collect()
    assert not multiprocessing.active_children()


def test_a_corrupt_file_in_a_worker_is_one_sentence(files, pack, root):
    files["set/train/cat/04.png"] = b"\x89PNG no more"
    stream = ImageFolder(path=pack(files, "tar"), mode="stream", workers=1).open(root).train.images
    batches = stream.batches([torch.tensor([0]), torch.tensor([14])])
    next(batches)
    with pytest.raises(DataError, match=r"^The image set/train/cat/04\.png of \S+ is corrupt [^\n]*$"):
        next(batches)


def test_another_size_in_a_stream_is_named(files, pack, root, encode):
    files["set/train/cat/04.png"] = encode(np.zeros((6, 7, 3), np.uint8))
    stream = ImageFolder(path=pack(files, "zip"), mode="stream").open(root).train.images
    with pytest.raises(DataError, match=r"cat/04\.png .* has 7×6 pixels where others have 6×6; give a size"):
        stream.gather(torch.tensor([14]))


def test_gathered_images_are_copies(readers):
    for split in (readers[0], readers[1][0]):
        first = split.images.gather(torch.tensor([2, 3]))
        kept = first.clone()
        first.zero_()
        assert torch.equal(split.images.gather(torch.tensor([2, 3])), kept)
        assert kept.any()


def test_writing_to_the_mapped_tensor_never_reaches_the_file(readers):
    reader = readers[0].images
    other = pickle.loads(pickle.dumps(reader))
    before = other.gather(torch.arange(15))
    reader.tensor.zero_()
    fresh = pickle.loads(pickle.dumps(reader))
    assert torch.equal(fresh.gather(torch.arange(15)), before)


@pytest.mark.parametrize("which", [0, 1])
def test_a_pickled_reader_reads_the_same_and_is_small(readers, which):
    reader = readers[0].images if which == 0 else readers[1][2].images
    reader.gather(torch.tensor([0]))  # opens what it needs
    data = pickle.dumps(reader)
    assert len(data) < 3000
    assert torch.equal(pickle.loads(data).gather(torch.arange(15)), reader.gather(torch.arange(15)))


def test_indices_outside_are_refused(readers):
    for split in (readers[0], readers[1][0]):
        for index in (15, -1):
            with pytest.raises(IndexError):
                split.images.gather(torch.tensor([index]))


def test_both_readers_keep_the_protocol(readers):
    assert isinstance(readers[0].images, ImageReader)
    assert isinstance(readers[1][0].images, ImageReader)


def test_other_tensors_and_lengths_are_refused():
    with pytest.raises(DataError, match=r"Expected uint8 images .*float64"):
        MemoryReader(torch.zeros(3, 4, dtype=torch.float64))
    with pytest.raises(DataError, match="2 targets for 3 images"):
        ImageSet(MemoryReader(torch.zeros(3, 4)), torch.zeros(2, dtype=torch.int64))
