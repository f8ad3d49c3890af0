"""Features on disk: the same bits, nothing forwarded twice, and nothing damaged believed."""

from __future__ import annotations

import dataclasses
import io
import json
import multiprocessing
import os
import shutil
from pathlib import Path

import pytest
import torch
from torch import nn

from clframe.config import resolve
from clframe.data.augment import ToInput
from clframe.data.reader import MemoryReader
from clframe.launch.build import build_setup
from clframe.strategies.finetune import Finetune
from clframe.strategies.nmc import NMC
from clframe.strategy import ParameterGroup
from clframe.stream import SampleTable
from clframe.testing.bench import MemoryRecorder, first_difference
from clframe.testing.streams import synthetic_stream
from clframe.training import feature_cache
from clframe.training.batches import BatchMaker
from clframe.training.checkpoint import pack
from clframe.training.context import Context
from clframe.training.feature_cache import FeatureCache
from clframe.training.trainer import Trainer


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of the test's own; returns the folder of features in it."""
    monkeypatch.setenv("CLFRAME_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "features"


class Net(nn.Module):
    """A user's trained network; notes how many images each forward pass had."""

    feature_dim = 5

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 5, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.any():  # the engine tries a user's module on zeros when it is made
            PASSES.append(len(x))
        return self.conv(x).tanh().mean((2, 3))


PASSES: list[int] = []


@pytest.fixture
def net() -> Net:
    torch.manual_seed(3)
    PASSES.clear()
    return Net()


@pytest.fixture
def maker() -> BatchMaker:
    images = torch.randint(0, 256, (40, 8, 8, 1), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    return maker_of(images)


def maker_of(images: torch.Tensor) -> BatchMaker:
    table = SampleTable(MemoryReader(images), torch.zeros(len(images), dtype=torch.int64))
    return BatchMaker(table, ToInput([0.5], [0.25]), torch.device("cpu"))


@torch.no_grad()
def direct(net: Net, maker: BatchMaker, ids: torch.Tensor, size: int = 8) -> torch.Tensor:
    return torch.cat([net(maker.test_input(maker.table.gather(part))) for part in ids.split(size)])


def got(cache: FeatureCache, net: Net, maker: BatchMaker, ids: torch.Tensor) -> tuple[torch.Tensor, list[int]]:
    """Features, and the forward passes that they took."""
    PASSES.clear()
    with torch.no_grad():
        found = cache.get(maker, ids, 8, net)
    return found, list(PASSES)


def files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.safetensors"))


# -- one cache ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("on_disk", [True, False])
def test_the_first_pass_has_the_bits_of_the_direct_road_and_later_ones_forward_nothing(net, maker, tmp_path, on_disk):
    ids = torch.randperm(40, generator=torch.Generator().manual_seed(0))[:30]
    cache = FeatureCache(tmp_path / "c" if on_disk else None)
    found, passes = got(cache, net, maker, ids)
    assert passes == [8, 8, 8, 6]
    assert torch.equal(found, direct(net, maker, ids))
    again, passes = got(cache, net, maker, ids.flip(0))
    assert not passes
    assert torch.equal(again, found.flip(0))
    assert (tmp_path / "c").exists() == on_disk


def test_another_process_to_be_reads_the_same_bits_as_a_map(net, maker, tmp_path):
    ids = torch.arange(40)
    found, _ = got(FeatureCache(tmp_path), net, maker, ids)
    cache = FeatureCache(tmp_path)
    again, passes = got(cache, net, maker, ids)
    assert not passes
    assert torch.equal(again, found)
    assert type(cache._parts[0].features.base).__name__ in ("memmap", "mmap")


@pytest.mark.parametrize("reopened", [False, True])
def test_only_what_is_missing_is_computed_in_full_batches(net, maker, tmp_path, reopened):
    cache = FeatureCache(tmp_path)
    got(cache, net, maker, torch.arange(0, 40, 2))
    cache = FeatureCache(tmp_path) if reopened else cache
    found, passes = got(cache, net, maker, torch.arange(40))
    assert passes == [8, 8, 4]
    torch.testing.assert_close(found, direct(net, maker, torch.arange(40)))
    assert torch.equal(found[1::2], direct(net, maker, torch.arange(1, 40, 2)))
    assert [len(p.digests) for p in cache._parts] == [20, 20]


def test_a_sample_is_known_by_its_content_in_any_table_and_twice_in_one(net, maker, tmp_path):
    got(FeatureCache(tmp_path), net, maker, torch.arange(40))
    order = torch.tensor([7, 7, 39, 0, 12])
    other = maker_of(maker.table.images.tensor[order].clone())
    found, passes = got(FeatureCache(tmp_path), net, other, torch.arange(5))
    assert not passes
    assert torch.equal(found, direct(net, maker, torch.arange(40))[order])
    twice = FeatureCache(tmp_path / "new")
    assert len(got(twice, net, other, torch.tensor([0, 1, 0, 3]))[0]) == 4
    changed = maker.table.images.tensor.clone()
    changed[3, 0, 0, 0] ^= 1
    _, passes = got(FeatureCache(tmp_path), net, maker_of(changed), torch.arange(40))
    assert passes == [1]


def test_feature_vectors_are_samples_too(tmp_path):
    maker = maker_of(torch.rand(9, 4, generator=torch.Generator().manual_seed(0)))
    cache = FeatureCache(tmp_path)
    for _ in range(2):
        assert torch.equal(cache.get(maker, torch.arange(9), 4, lambda x: 2 * x), 2 * maker.table.images.tensor)


def test_the_type_of_the_features_is_kept(net, maker, tmp_path):
    ids = torch.arange(10)
    for _ in range(2):
        found = FeatureCache(tmp_path).get(maker, ids, 8, lambda x: net(x).bfloat16())
        assert found.dtype == torch.bfloat16
        assert torch.equal(found, direct(net, maker, ids).bfloat16())


DAMAGES = {
    "empty": lambda data, at: b"",
    "header cut": lambda data, at: data[:20],
    "last byte missing": lambda data, at: data[:-1],
    "cut in the features": lambda data, at: data[: at["features"] + 7],
    "features flipped": lambda data, at: _flipped(data, at["features"] + 41),
    "last feature flipped": lambda data, at: _flipped(data, len(data) - 1),
    "digest flipped": lambda data, at: _flipped(data, at["digest"] + 5),
    "check flipped": lambda data, at: _flipped(data, at["check"] + 3),
    "zeros, as after a power cut": lambda data, at: bytes(len(data)),
    "no such thing": lambda data, at: b"\xff" * 64,
}


def _flipped(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 4]) + data[at + 1 :]


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_what_is_damaged_is_computed_again(net, maker, tmp_path, damage):
    ids = torch.arange(40)
    got(FeatureCache(tmp_path), net, maker, ids)
    (path,) = files(tmp_path)
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    begins = {k: 8 + size + v["data_offsets"][0] for k, v in json.loads(data[8 : 8 + size]).items() if k[0] != "_"}
    path.write_bytes(damage(data, begins))
    found, passes = got(FeatureCache(tmp_path), net, maker, ids)
    assert sum(passes) == 40
    assert torch.equal(found, direct(net, maker, ids))
    assert path not in files(tmp_path)
    found, passes = got(FeatureCache(tmp_path), net, maker, ids)
    assert not passes
    assert torch.equal(found, direct(net, maker, ids))


def test_only_the_damaged_file_is_computed_again(net, maker, tmp_path):
    cache = FeatureCache(tmp_path)
    got(cache, net, maker, torch.arange(16))
    got(cache, net, maker, torch.arange(40))
    first = cache._parts[0].path
    first.write_bytes(_flipped(first.read_bytes(), first.stat().st_size - 1))
    found, passes = got(FeatureCache(tmp_path), net, maker, torch.arange(40))
    assert passes == [8, 8]
    torch.testing.assert_close(found, direct(net, maker, torch.arange(40)))


def test_a_killed_writer_leaves_what_it_had_written_and_nothing_half(net, maker, tmp_path, monkeypatch):
    monkeypatch.setattr(feature_cache, "_WRITE_SECONDS", -1.0)

    def dies(x):
        if len(PASSES) == 3:
            raise KeyboardInterrupt
        return net(x)

    with pytest.raises(KeyboardInterrupt), torch.no_grad():
        FeatureCache(tmp_path).get(maker, torch.arange(40), 8, dies)
    found, passes = got(FeatureCache(tmp_path), net, maker, torch.arange(40))
    assert passes == [8, 8]
    assert torch.equal(found, direct(net, maker, torch.arange(40)))


def test_a_half_written_file_is_never_looked_at_and_removed_when_old(net, maker, tmp_path):
    for name, age in (("new", 0), ("old", 10**6)):
        path = tmp_path / f".{name}.safetensors.tmp"
        path.write_bytes(b"half")
        os.utime(path, (path.stat().st_mtime - age,) * 2)
    got(FeatureCache(tmp_path), net, maker, torch.arange(40))
    assert sorted(p.name for p in tmp_path.glob(".*")) == [".new.safetensors.tmp"]


def test_where_nothing_can_be_written_the_run_goes_on(net, maker, tmp_path):
    (tmp_path / "file").write_text("in the way")
    cache = FeatureCache(tmp_path / "file" / "folder")
    with pytest.warns(UserWarning, match="Features can't be kept in .*: free space there"):
        found, _ = got(cache, net, maker, torch.arange(40))
    assert torch.equal(found, direct(net, maker, torch.arange(40)))
    again, passes = got(cache, net, maker, torch.arange(40))
    assert not passes
    assert torch.equal(again, found)


def test_two_that_compute_at_once_agree_and_keep_one_copy(net, maker, tmp_path):
    first, second = FeatureCache(tmp_path), FeatureCache(tmp_path)

    def meanwhile(x):
        if not files(tmp_path):
            second.get(maker, torch.arange(40), 8, net)
        return net(x)

    with torch.no_grad():
        found = first.get(maker, torch.arange(40), 8, meanwhile)
    assert len(files(tmp_path)) == 1
    assert torch.equal(found, second.get(maker, torch.arange(40), 8, net))


def _fills(folder: Path, images: torch.Tensor, net: Net, start, results) -> None:
    torch.set_num_threads(1)
    start.wait()
    with torch.no_grad():
        results.put(FeatureCache(folder).get(maker_of(images), torch.arange(len(images)), 8, net).numpy().tobytes())


def test_two_processes_write_at_the_same_time(net, maker, tmp_path):
    forked = multiprocessing.get_context("fork")
    start, results = forked.Barrier(2), forked.Queue()
    workers = [
        forked.Process(target=_fills, args=(tmp_path, maker.table.images.tensor, net, start, results)) for _ in range(2)
    ]
    for worker in workers:
        worker.start()
    seen = [results.get(timeout=60) for _ in workers]
    for worker in workers:
        worker.join()
    found, passes = got(FeatureCache(tmp_path), net, maker, torch.arange(40))
    assert not passes
    assert seen == [found.numpy().tobytes()] * 2
    assert not list(tmp_path.glob(".*"))


# -- in a run ----------------------------------------------------------------------------------------------------------


def trainer_of(strategy, backbone, stream=None, **options) -> Trainer:
    stream = synthetic_stream(test_per_class=4) if stream is None else stream
    chosen = {
        "device": "cpu",
        "measure": "none",  # which sends samples of its own through the network
        "precision": "fp32",
        "batch_size": 4,
        "eval_batch_size": 8,
        "augmentation": "none",
        **options,
    }
    config = resolve({"scenario": stream, "strategy": strategy, "backbone": backbone, **chosen})
    PASSES.clear()
    made = Trainer(build_setup(config, stream), MemoryRecorder())
    PASSES.clear()
    return made


def kept(trainer: Trainer) -> dict:
    return {str(k): {n: torch.from_numpy(v) for n, v in c.items()} for k, c in trainer.recorder.kept.items()}


def passed(trainer: Trainer) -> int:
    """Run, and count the images that went through the network."""
    PASSES.clear()
    trainer.run()
    return sum(PASSES)


def test_a_second_run_forwards_nothing_and_each_image_goes_through_the_network_once(net, cache):
    uncached = trainer_of(NMC(), net, feature_cache="off")
    assert passed(uncached) == 36 + 8 + 16 + 24
    assert not cache.exists()
    first, second = trainer_of(NMC(), net), trainer_of(NMC(), net)
    assert passed(first) == 36 + 24
    assert passed(second) == 0
    # tasks of a whole number of batches: the same batches, hence the same bits
    assert first_difference(kept(uncached), kept(first)) is None
    assert first_difference(kept(first), kept(second)) is None
    assert first_difference(pack(uncached.strategy.sums_), pack(second.strategy.sums_)) is None


def test_other_batches_differ_by_rounding_alone(net):
    off, on = (trainer_of(NMC(), net, feature_cache=c, eval_batch_size=5) for c in ("off", "auto"))
    off.run()
    on.run()
    for name, columns in kept(off).items():
        for column, values in columns.items():
            torch.testing.assert_close(kept(on)[name][column], values, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "options", [{"setting": "task"}, {"setting": "domain", "experiences": [[0, 1]] * 3}, {"valid_per_class": 4}]
)
def test_every_setting_scores_as_without_the_cache(net, options):
    stream = synthetic_stream(test_per_class=4, **options)
    runs = [trainer_of(NMC(), net, stream, feature_cache=c) for c in ("off", "auto", "auto")]
    for run in runs:
        run.valid = "valid_per_class" in options
        run.run()
    assert len(kept(runs[0])) == (6 if runs[0].valid else 3)
    assert all(first_difference(kept(runs[0]), kept(run)) is None for run in runs[1:])


class FreezeAfter(Finetune):
    """Trains its network in the first experience and only the classifier afterwards."""

    def phases(self, experience):
        if experience.index == 0:
            return [self.main_phase(experience)]
        head = ParameterGroup(list(self.network.classifier.parameters()))
        return [dataclasses.replace(self.main_phase(experience), parameters=[head])]

    def after_experience(self, experience):
        self.network.freeze_branch(0)
        self.run.features(experience.train)


def test_what_was_trained_here_is_kept_in_memory_and_resumes_exactly(net, cache):
    off, on = (trainer_of(FreezeAfter(epochs=1), net, feature_cache=c, optimizer={"lr": 0.1}) for c in ("off", "auto"))
    assert passed(off) - passed(on) == 8 + 16  # each test image once
    assert first_difference(kept(off), kept(on)) is None
    assert not cache.exists()
    state = torch.load(io.BytesIO(on.recorder.saved[1]), weights_only=True)
    resumed = trainer_of(FreezeAfter(epochs=1), net, optimizer={"lr": 0.1})
    resumed.load_state(state)
    resumed.run()
    assert first_difference(pack(on.strategy.network), pack(resumed.strategy.network)) is None
    last = str(("test", 3, "classifier"))
    assert first_difference(kept(on)[last], kept(resumed)[last]) is None


class Mirrored(NMC):
    """Predicts in a way of its own."""

    def predict(self, x, task_ids=None):
        return self.report_heads(self.network(x.flip(3), task_ids))


def test_a_strategy_that_predicts_otherwise_is_given_images(net):
    trainer = trainer_of(Mirrored(), net)
    assert passed(trainer) == 36 + 8 + 16 + 24


def test_a_network_that_is_put_in_place_has_features_of_its_own(net):
    trainer = trainer_of(NMC(), net)
    trainer.run()
    context, ids = trainer.context, torch.arange(12)
    before = context.features(ids)
    network = context.network
    assert context.feature_cache("fp32").folder is not None
    with torch.no_grad():
        next(network.parameters()).mul_(1.5)
    assert context.feature_cache("fp32").folder is None  # what no other run can have
    assert not torch.allclose(context.features(ids), before)
    network.add_branch()
    assert context.feature_cache("fp32") is None


def test_the_network_of_a_resumed_run_finds_its_features(net):
    first = trainer_of(NMC(), net)
    first.run()
    resumed = trainer_of(NMC(), net)
    resumed.load_state(torch.load(io.BytesIO(first.recorder.saved[1]), weights_only=True))
    assert passed(resumed) == 0
    last = str(("test", 3, "nmc"))
    assert first_difference(kept(first)[last], kept(resumed)[last]) is None


def test_test_images_go_through_task_by_task_so_that_a_resumed_run_has_the_same_batches(net, cache):
    first = trainer_of(NMC(), net, eval_batch_size=5)
    passed(first)
    assert PASSES == [12, 5, 3] * 3
    shutil.rmtree(cache)
    resumed = trainer_of(NMC(), net, eval_batch_size=5)
    resumed.load_state(torch.load(io.BytesIO(first.recorder.saved[1]), weights_only=True))
    passed(resumed)
    assert PASSES == [12] + [5, 3] * 3


def context_of(net, stream=None, **options) -> Context:
    trainer = trainer_of(NMC(), net, stream, **options)
    trainer.strategy.setup()
    return trainer.context


def _other_weights(net):
    with torch.no_grad():
        net.conv.weight[0, 0, 0, 0] += 1e-6
    return net


def _other_setting(net):
    net.conv.padding = (1, 1)
    return net


RESIZED = [{"name": "resize", "size": 10}]
KEYS = {
    "weights": lambda net: context_of(_other_weights(net)),
    "architecture": lambda net: context_of(_other_setting(net)),
    "test transform": lambda net: context_of(net, test_transform=RESIZED, augmentation=RESIZED),
    "mean": lambda net: context_of(net, dataclasses.replace(synthetic_stream(), mean=(0.4,))),
    "deviation": lambda net: context_of(net, dataclasses.replace(synthetic_stream(), std=(0.4,))),
    "size of the images": lambda net: context_of(net, synthetic_stream(size=9)),
    "memory format": lambda net: context_of(net, channels_last=False),
}  # fmt: skip


@pytest.mark.parametrize("other", KEYS.values(), ids=KEYS)
def test_the_key_changes_with_all_that_decides_a_feature(net, other):
    folders = [context_of(net).feature_cache("fp32").folder for _ in range(2)]
    assert folders[0] == folders[1]
    assert folders[0] != context_of(net).feature_cache("bf16").folder
    assert other(net).feature_cache("fp32").folder not in (None, folders[0])


def test_mixed_precision_has_features_of_its_own_in_training_and_scoring(net, cache):
    trainer = trainer_of(NMC(), net, precision="bf16")
    trainer.run()
    assert len(list(cache.iterdir())) == 2
    off = trainer_of(NMC(), net, precision="bf16", feature_cache="off")
    off.run()
    assert first_difference(kept(off), kept(trainer)) is None


def test_what_cannot_be_read_goes_uncached(net, cache):
    net.noise = torch.Generator()
    trainer = trainer_of(NMC(), net)
    assert passed(trainer) == 36 + 8 + 16 + 24
    assert not cache.exists()


def test_a_network_that_trains_has_no_cache(net, cache):
    trainer = trainer_of(Finetune(epochs=1), net)
    trainer.run()
    assert trainer.context.feature_cache("fp32") is None
    assert not cache.exists()
