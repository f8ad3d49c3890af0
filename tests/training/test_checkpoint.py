"""Checkpoints: what goes in comes out, nothing runs, and a file is whole or the old one."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor, nn

from clframe.config import resolve
from clframe.errors import ContractError, RunDirectoryError
from clframe.memory import ExemplarMemory
from clframe.models import HeadConfig, Network
from clframe.strategy import Strategy
from clframe.testing.bench import Bench, first_difference
from clframe.testing.streams import TinyNet
from clframe.training import checkpoint
from clframe.training.checkpoint import (
    export_weights,
    pack,
    read_checkpoint,
    restore_strategy,
    strategy_state,
    unpack,
    write_checkpoint,
)
from clframe.training.context import Context


def factory() -> TinyNet:
    return TinyNet(1, 8, 2)


def through_disk(value: Any, folder: Path) -> Any:
    write_checkpoint(folder / "c.pt", {"value": pack(value)})
    return unpack(read_checkpoint(folder / "c.pt")["value"], factory)


scalars = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**60), 2**60), st.floats(allow_nan=False), st.text(max_size=5)
)
keys = st.one_of(st.integers(0, 99), st.text(max_size=3), st.tuples(st.integers(0, 9), st.integers(0, 9)))
values = st.recursive(
    scalars,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.lists(inner, max_size=3).map(tuple),
        st.sets(st.integers(0, 99), max_size=3),
        st.frozensets(st.text(max_size=2), max_size=3),
        st.dictionaries(keys, inner, max_size=3),
    ),
    max_leaves=8,
)


@given(values)
def test_plain_values_come_back_with_their_types(value: Any) -> None:
    back = unpack(pack(value), factory)
    assert back == value
    assert type(back) is type(value)
    assert repr(back) == repr(value) or isinstance(value, (set, frozenset, dict, list, tuple))


def test_tensors_come_back_bit_by_bit(tmp_path: Path) -> None:
    value = {
        "float": torch.randn(3, 2), "ids": torch.arange(4), "half": torch.randn(2).bfloat16(), "nan": torch.tensor([torch.nan]),
        "nested": [(torch.ones(1), {"deep": torch.zeros(0, 4)})],
    }  # fmt: skip
    assert first_difference(through_disk(value, tmp_path), value) is None


def network() -> Network:
    net = Network(factory, HeadConfig(name="cosine"))
    net.grow(3)
    net.add_branch()
    net.add_head("aux", 2, inputs="last")
    net.freeze_branch(0)
    net.grow(5)
    net(torch.randn(4, 1, 8, 8))  # moves the statistics of BatchNorm
    return net


@pytest.mark.parametrize("frozen", [False, True])
def test_networks_come_back_whole(frozen: bool, tmp_path: Path) -> None:
    net = network().frozen_copy() if frozen else network()
    back = through_disk(net, tmp_path)
    assert back.structure() == net.structure()
    assert first_difference(dict(back.state_dict()), dict(net.state_dict())) is None
    assert [p.requires_grad for p in back.parameters()] == [p.requires_grad for p in net.parameters()]
    assert [m.training for m in back.modules()] == [m.training for m in net.modules()]
    x = torch.randn(2, 1, 8, 8)
    net.eval(), back.eval()
    assert torch.equal(back(x).logits, net(x).logits)


def test_modules_generators_and_memories_come_back(tmp_path: Path) -> None:
    memory = ExemplarMemory(3, policy="reservoir", sample_bytes=7)
    memory.observe(
        torch.arange(9),
        torch.arange(9) % 2,
        generator=torch.Generator().manual_seed(0),
        extras={"z": torch.randn(9, 2)},
    )
    generator = torch.Generator().manual_seed(5)
    torch.rand(3, generator=generator)
    value = {
        "m": memory,
        "g": generator,
        "l": nn.Linear(3, 2, bias=False),
        "p": nn.Parameter(torch.ones(2), requires_grad=False),
    }
    back = through_disk(value, tmp_path)
    assert first_difference(back["m"].state_dict(), memory.state_dict()) is None
    assert torch.equal(torch.rand(4, generator=back["g"]), torch.rand(4, generator=generator))
    assert torch.equal(back["l"].weight, value["l"].weight)  # type: ignore[union-attr]
    assert back["l"].bias is None
    assert isinstance(back["p"], nn.Parameter)
    assert not back["p"].requires_grad


def test_what_is_packed_is_restored_apart() -> None:
    """A restored memory shares nothing with the one that goes on."""
    memory = ExemplarMemory(3, policy="ring")
    memory.observe(torch.arange(3), torch.zeros(3, dtype=torch.int64), generator=torch.Generator())
    back = unpack(pack(memory), factory)
    back.ids[0] = 99
    assert memory.ids.tolist() == [0, 1, 2]


class Held(Strategy):
    """Holds what a test gives it."""


@pytest.mark.parametrize(
    ("value", "kind"), [(lambda: 1, "function"), (object(), "object"), (nn.Conv2d(1, 1, 1), "Conv2d")]
)
def test_what_can_t_be_restored_is_refused_by_its_name(value: Any, kind: str) -> None:
    held = Held()
    held.thing_ = {"deep": [1, value]}  # type: ignore[attr-defined]
    with pytest.raises(ContractError, match=rf"Held\.thing_\['deep'\]\[1\] is a {kind}"):
        strategy_state(held)


def test_a_strategys_state_is_what_ends_in_an_underscore() -> None:
    held = Held(epochs=3)
    held.a_, held.b, held._c_ = torch.ones(2), 5, 6  # type: ignore[attr-defined]
    state = strategy_state(held)
    assert list(state) == ["a_"]
    other = Held(epochs=4)
    other.old_ = 1  # type: ignore[attr-defined]
    restore_strategy(other, state, factory)
    assert torch.equal(other.a_, torch.ones(2))  # type: ignore[attr-defined]
    assert not hasattr(other, "old_")
    assert other.epochs == 4


class Malicious:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def test_reading_executes_nothing(tmp_path: Path) -> None:
    marker = tmp_path / "executed"
    torch.save({"value": Malicious(marker)}, tmp_path / "bad.pt")
    with pytest.raises(RunDirectoryError, match="damaged"):
        read_checkpoint(tmp_path / "bad.pt")
    (tmp_path / "raw.pt").write_bytes(pickle.dumps(Malicious(marker)))
    with pytest.raises(RunDirectoryError, match="damaged"):
        read_checkpoint(tmp_path / "raw.pt")
    assert not marker.exists()
    torch.load(tmp_path / "bad.pt", weights_only=False)  # the file would have done it
    assert marker.exists()


@pytest.mark.parametrize(
    "damage", [lambda b: b[: len(b) // 2], lambda b: b"", lambda b: b[:200] + b"\0" * 50 + b[250:]]
)
def test_a_damaged_file_is_named(damage: Any, tmp_path: Path) -> None:
    path = tmp_path / "c.pt"
    write_checkpoint(path, {"value": torch.arange(1000)})
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(RunDirectoryError, match=r"c\.pt is damaged"):
        read_checkpoint(path)
    with pytest.raises(RunDirectoryError, match="found none"):
        read_checkpoint(tmp_path / "missing.pt")


@pytest.mark.parametrize(
    "error", [OSError(28, "No space left on device"), RuntimeError("file write failed"), KeyboardInterrupt()]
)
def test_a_failed_write_keeps_the_old_file(
    error: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "c.pt"
    write_checkpoint(path, {"value": 1})

    def half(state: Any, where: Path) -> None:
        where.write_bytes(b"half")
        raise error

    monkeypatch.setattr(checkpoint.torch, "save", half)
    expected = RunDirectoryError if isinstance(error, Exception) else KeyboardInterrupt
    with pytest.raises(expected):
        write_checkpoint(path, {"value": 2})
    assert read_checkpoint(path) == {"value": 1}
    if isinstance(error, Exception):
        assert [p.name for p in tmp_path.iterdir()] == ["c.pt"]


def test_tensors_of_a_device_go_to_the_device_and_those_of_the_cpu_stay() -> None:
    """Ids live on the CPU whatever the run's device."""

    class Storage:
        def to(self, *, device: torch.device) -> str:
            return str(device)

    storage: Any = Storage()
    onto = checkpoint._Onto(torch.device("cuda:1"))
    assert onto(storage, "cpu") is storage
    assert str(onto(storage, "cuda:0")) == "cuda:1"
    assert checkpoint._Onto(torch.device("cpu"))(storage, "cuda:0") is storage


def test_exported_weights_are_the_first_branch_and_the_classifier(tmp_path: Path) -> None:
    net = Network(factory)
    net.grow(4)
    export_weights(net, tmp_path / "w.safetensors")
    found: dict[str, Tensor] = load_file(tmp_path / "w.safetensors")
    fresh = factory()
    fresh.load_state_dict({n: t for n, t in found.items() if not n.startswith("linear.")})
    assert torch.equal(fresh.conv.weight, net.branches[0].conv.weight)
    assert torch.equal(found["linear.weight"], net.classifier.weight)  # type: ignore[arg-type]


def test_a_network_read_from_a_checkpoint_makes_further_branches_as_the_run_does():
    """A skeleton, which spares reading pretrained weights, is only for values that the checkpoint replaces."""
    context = Context(Bench(resolve({"strategy": "finetune"}).strategy).setup())
    read = unpack(pack(context.network), context.setup.skeleton)
    assert read._factory is context.setup.skeleton
    assert context.place(read)._factory is context.setup.factory
