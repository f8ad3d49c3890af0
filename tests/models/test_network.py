from __future__ import annotations

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from clframe.errors import ContractError
from clframe.models.backbone import build_backbone
from clframe.models.heads import HeadConfig
from clframe.models.network import Network, freeze


def tiny(name="resnet8"):
    options = {"resnet8": {"width": 2}, "mlp": {"hidden": [5]}}[name]
    return lambda: build_backbone(name, options, (1, 8, 8))


def randomise_buffers(network):
    for name, buffer in network.named_buffers():
        if name.endswith("running_mean"):
            buffer.normal_()
        elif name.endswith("running_var"):
            buffer.uniform_(0.5, 2)


X = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def test_forward_is_the_branches_side_by_side_under_the_classifier():
    net = Network(tiny(), HeadConfig())
    net.add_branch()
    net.grow(4)
    net.eval()
    with torch.no_grad():
        out = net(X)
        parts = [branch(X) for branch in net.branches]
        assert all(torch.equal(a, b) for a, b in zip(out.branch_features, parts, strict=True))
        assert torch.equal(out.features, torch.cat(parts, 1))
        assert torch.equal(net.features(X), out.features)
        expected = nn.functional.linear(out.features, net.classifier.weight, net.classifier.bias)
        assert torch.equal(out.logits, expected)
        assert out.stages == ()
        tapped = net(X, stages=True)
        assert torch.equal(tapped.logits, out.logits)
        assert len(tapped.stages) == 3
        assert torch.equal(torch.relu(tapped.stages[-1]).mean((2, 3)), out.branch_features[-1])


def test_task_ids_reach_a_multi_head():
    net = Network(tiny("mlp"), HeadConfig(name="multi"))
    net.grow(2)
    net.grow(2, classes=[0, 1])
    net.grow(3)
    ids = torch.tensor([0, 1, 2])
    assert torch.equal(net(X, ids).logits, net.classifier(net.features(X), ids))
    assert net(X, ids).logits.isinf().tolist() == [[False, False, True], [False, False, True], [True, True, False]]


@pytest.mark.parametrize("ids", [None, torch.tensor([0, 1, 2])])
def test_from_features_gives_what_forward_gives(ids):
    net = Network(tiny(), HeadConfig(name="multi")).eval()
    net.add_branch()
    for classes in (2, 3, 4):
        net.grow(classes)
    for name, inputs in (("all", "all"), ("last", "last"), ("first", 0)):
        net.add_head(name, 2, inputs=inputs, config=HeadConfig())
    with torch.no_grad():
        whole, again = net(X, ids), net.from_features(net.features(X), ids)
        assert torch.equal(whole.features, again.features)
        assert torch.equal(whole.logits, again.logits)
        assert bool(again.logits.isinf().any()) == (ids is not None)
        for head in net.heads:
            assert torch.equal(net.head_logits(head, whole), net.head_logits(head, again))


def test_growing_keeps_the_logits_of_old_classes():
    net = Network(tiny(), HeadConfig()).eval()
    net.grow(3)
    before = net(X).logits
    net.grow(5)
    torch.testing.assert_close(net(X).logits[:, :3], before)
    net.add_branch(copy_from=0, new_inputs="zero")
    torch.testing.assert_close(net(X).logits[:, :3], before)
    assert net.num_classes == 5
    assert net.feature_dim == net.classifier.in_features == 16


def test_a_copied_branch_has_the_values_and_buffers_but_its_own_storage_and_trains():
    net = Network(tiny(), HeadConfig())
    randomise_buffers(net)
    net.features(X).sum().backward()
    net.freeze_branch(0)
    new = net.add_branch(copy_from=0)
    old = net.branches[0]
    for (name, a), b in zip(old.state_dict().items(), new.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
        assert a.data_ptr() != b.data_ptr()
    assert all(p.requires_grad and p.grad is None for p in new.parameters())
    assert new.training
    assert not old.training


def test_a_fresh_branch_follows_dtype_and_memory_format():
    net = Network(tiny(), HeadConfig()).double().to(memory_format=torch.channels_last)
    branch = net.add_branch()
    net.add_head("aux", 3, "last")
    net.grow(2)
    assert {p.dtype for p in net.parameters()} == {torch.float64}
    assert branch.get_parameter("layer1.0.conv1.weight").is_contiguous(memory_format=torch.channels_last)
    assert not torch.equal(branch.get_parameter("conv1.weight"), net.branches[0].get_parameter("conv1.weight"))


def test_named_heads_read_what_they_were_told():
    net = Network(tiny(), HeadConfig())
    net.add_branch()
    for name, inputs, width in (("all", "all", 16), ("last", "last", 8), ("old", 0, 8), ("newest", -1, 8)):
        head = net.add_head(name, 3, inputs)
        assert head.in_features == width
    net.eval()
    out = net(X)
    reads = {"all": out.features, "last": out.branch_features[1], "old": out.branch_features[0]}
    for name, features in reads.items():
        assert torch.equal(net.head_logits(name, out), net.heads[name](features))
    net.add_branch()
    out = net(X)
    assert net.heads["all"].in_features == 24
    assert torch.equal(net.head_logits("last", out), net.heads["last"](out.branch_features[2]))
    assert torch.equal(net.head_logits("newest", out), net.heads["newest"](out.branch_features[1]))
    assert net.head_logits("classifier", out) is out.logits
    net.remove_head("old")
    assert "old" not in net.heads
    net.add_head("old", 2, 0, HeadConfig(bias=False))
    assert net.heads["old"].bias is None


def test_frozen_branches_stay_frozen_through_train():
    net = Network(tiny(), HeadConfig())
    net.grow(2)
    net.add_branch(copy_from=0)
    net.freeze_branch(0)
    net.train()
    before = {k: v.clone() for k, v in net.branches[0].state_dict().items()}
    optimiser = torch.optim.SGD([p for p in net.parameters() if p.requires_grad], lr=1.0, weight_decay=0.1)
    for _ in range(2):
        net(X).logits.square().sum().backward()
        optimiser.step()
    assert all(torch.equal(v, before[k]) for k, v in net.branches[0].state_dict().items())
    assert not any(
        torch.equal(a, b) for a, b in zip(net.branches[1].parameters(), net.branches[0].parameters(), strict=True)
    )
    assert (net.branches[1].training, net.branches[0].training) == (True, False)


def test_a_backbone_is_frozen_when_every_branch_is_for_good():
    net = Network(tiny(), HeadConfig())
    freeze(net)  # for the time being
    assert not net.backbone_frozen
    net.freeze_branch(0)
    assert net.backbone_frozen
    assert Network.from_structure(net.structure(), tiny()).backbone_frozen
    net.add_branch()
    assert not net.backbone_frozen
    assert net.frozen_copy().backbone_frozen
    net.freeze_branch(-1)
    assert net.backbone_frozen


def test_a_frozen_copy_is_independent_and_stays_frozen():
    net = Network(tiny(), HeadConfig())
    net.grow(3)
    randomise_buffers(net)
    net(X).logits.sum().backward()
    twin = net.frozen_copy()
    assert net.training
    assert all(p.requires_grad for p in net.parameters())
    expected = net.eval()(X).logits.detach()
    assert torch.equal(twin(X).logits, expected)
    with torch.no_grad():
        for p in net.parameters():
            p.add_(1)
        for b in net.buffers():
            b.add_(1)
    net.grow(5)
    twin.train()
    assert torch.equal(twin(X).logits, expected)
    assert not any(m.training for m in twin.modules())
    assert not any(p.requires_grad or p.grad is not None for p in twin.parameters())
    assert not any(a.data_ptr() == b.data_ptr() for a, b in zip(net.buffers(), twin.buffers(), strict=True))
    assert not any(m.training for m in restored(twin).train().modules())


def restored(net: Network, name="resnet8") -> Network:
    """Through JSON and a state dict, with another random state, as a resume does it."""
    structure = json.loads(json.dumps(net.structure()))
    torch.manual_seed(12345)
    again = Network.from_structure(structure, tiny(name))
    again.load_state_dict(net.state_dict())
    return again


def assert_same(net: Network, again: Network) -> None:
    assert again.structure() == net.structure()
    assert [n for n, _ in again.named_parameters()] == [n for n, _ in net.named_parameters()]
    net.eval()
    again.eval()
    with torch.no_grad():
        ours, theirs = net(X), again(X)
        assert torch.equal(ours.features, theirs.features)
        assert torch.equal(ours.logits, theirs.logits)
        for name in net.heads:
            assert torch.equal(net.head_logits(name, ours), again.head_logits(name, theirs))


def test_a_der_network_survives_a_round_trip():
    net = Network(tiny(), HeadConfig(bias=False, init="kaiming_normal"))
    for t in range(3):
        if t:
            net.freeze_branch(t - 1)
            net.add_branch(copy_from=t - 1)
            if "auxiliary" in net.heads:
                net.remove_head("auxiliary")
            net.add_head("auxiliary", 3, "last")
        net.grow(2 * (t + 1))
        randomise_buffers(net)
    assert net.frozen_branches == (0, 1)
    one = sum(p.numel() for p in net.branches[0].parameters())
    heads = 6 * 24 + 3 * 8
    assert net.parameter_bytes() == 4 * (3 * one + heads)
    again = restored(net)
    assert_same(net, again)
    again.train()
    assert [b.training for b in again.branches] == [False, False, True]
    assert not any(p.requires_grad for b in again.branches[:2] for p in b.parameters())


def test_a_foster_network_survives_a_round_trip():
    net = Network(tiny(), HeadConfig())
    net.grow(3)
    student = net.frozen_copy()
    net.add_head("old", 3, 0)
    net.heads["old"].write(net.classifier.weight.detach(), net.classifier.bias.detach())
    net.freeze_branch(0)
    freeze(net.heads["old"])
    net.add_branch(copy_from=0)
    net.grow(5)
    net.add_head("enhancement", 5, "last")
    randomise_buffers(net)
    assert_same(net, restored(net))
    assert_same(student, restored(student))
    out = net.eval()(X)
    torch.testing.assert_close(
        net.head_logits("old", out),
        net.classifier.weight[:3, :8].matmul(out.branch_features[0].T).T + net.classifier.bias[:3],
    )


STEPS = st.one_of(
    st.tuples(st.just("grow"), st.integers(0, 3)),
    st.tuples(st.just("branch"), st.booleans()),
    st.tuples(st.just("freeze"), st.integers(0, 2)),
    st.tuples(st.just("head"), st.sampled_from(["all", "last", 0])),
    st.tuples(st.just("remove"), st.integers(0, 2)),
    st.tuples(st.just("grow_head"), st.integers(0, 2)),
)


@pytest.mark.parametrize("head", ["linear", "cosine", "local_similarity", "multi"])
@settings(max_examples=25, deadline=None)
@given(steps=st.lists(STEPS, max_size=7))
def test_any_growth_survives_a_round_trip(head, steps):
    net = Network(tiny("mlp"), HeadConfig(name=head))
    for i, (kind, value) in enumerate(steps):
        extra = [n for n in net.heads if n != "classifier"]
        if kind == "grow":
            net.grow(net.num_classes + value)
        elif kind == "branch" and len(net.branches) < 4:
            net.add_branch(copy_from=len(net.branches) - 1 if value else None)
        elif kind == "freeze":
            net.freeze_branch(value % len(net.branches))
        elif kind == "head":
            net.add_head(f"head{i}", i + 1, value)
        elif kind == "remove" and extra:
            net.remove_head(extra[value % len(extra)])
        elif kind == "grow_head" and extra:
            name = extra[value % len(extra)]
            net.grow(net.heads[name].num_classes + 1, head=name)
    assert_same(net, restored(net, "mlp"))


def test_another_backbone_does_not_pass_for_the_recorded_one():
    with pytest.raises(ContractError, match=r"has branches of \[5\] features, the backbone at hand gives \[8\]"):
        Network.from_structure(Network(tiny("mlp"), HeadConfig()).structure(), tiny())


def test_what_is_not_there_is_named():
    net = Network(tiny("mlp"))
    with pytest.raises(ContractError, match=r"no head 'clasifier'.* Did you mean 'classifier'"):
        net.grow(2, head="clasifier")
    with pytest.raises(ContractError, match="none of index 1"):
        net.freeze_branch(1)
    with pytest.raises(ContractError, match="none of index 3"):
        net.add_head("aux", 2, 3)
    with pytest.raises(ContractError, match="has a head 'classifier' already"):
        net.add_head("classifier", 2)
    with pytest.raises(ContractError, match="can't be removed"):
        net.remove_head("classifier")


def test_on_the_meta_device_every_step_of_growth_runs():
    with torch.device("meta"):
        net = Network(tiny(), HeadConfig(name="multi"))
        net.grow(2)
    net.grow(4)
    net.add_branch(copy_from=0)
    net.add_branch()
    net.add_head("aux", 3, "last")
    assert all(t.is_meta for t in (*net.parameters(), *net.buffers()))
    ids = torch.zeros(2, dtype=torch.int64, device="meta")
    out = net(torch.empty(2, 1, 8, 8, device="meta"), ids, stages=True)
    assert out.logits.shape == (2, 4)
    assert net.head_logits("aux", out).shape == (2, 3)
