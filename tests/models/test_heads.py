from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from clframe.errors import ConfigurationError, ContractError
from clframe.models.heads import CosineHead, HeadConfig, LinearHead, LocalSimilarityHead, MultiHead

NAMES = ["linear", "cosine", "multi"]


def make(name: str, in_features: int = 6, **options):
    return HeadConfig(name=name, **options).build(in_features)


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=30, deadline=None)
@given(steps=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=5), seed=st.integers(0, 99))
def test_growing_leaves_old_rows_and_old_logits_bit_identical(name, steps, seed):
    torch.manual_seed(seed)
    head = make(name)
    head.grow(2)
    x = torch.randn(3, 64)
    for classes, inputs in steps:
        weight, bias, logits = head.weight.clone(), head.bias, head(x[:, : head.in_features])
        head.grow(head.num_classes + classes)
        k, d = weight.shape
        assert torch.equal(head.weight[:k], weight)
        assert bias is None or torch.equal(head.bias[:k], bias)
        torch.testing.assert_close(head(x[:, :d])[:, :k], logits)
        grown = head.weight.clone()
        head.grow_inputs(d + inputs)
        assert torch.equal(head.weight[:, :d], grown)
        assert head.weight.shape == (head.num_classes, d + inputs) == (k + classes, head.in_features)
        assert head(x[:, : d + inputs]).shape == (3, k + classes)


@pytest.mark.parametrize("name", ["linear", "multi"])
def test_zero_inputs_leave_the_logits_as_they_were(name):
    head = make(name)
    head.grow(4)
    x = torch.randn(3, 10)
    before = head(x[:, :6])
    head.grow_inputs(10, "zero")
    assert not head.weight[:, 6:].any()
    torch.testing.assert_close(head(x), before)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("init", ["torch", "kaiming_normal", "kaiming_uniform"])
def test_new_values_are_distributed_as_in_a_fresh_layer_of_the_full_fan_in(name, init):
    torch.manual_seed(0)
    head = make(name, 30, init=init)
    head.grow(1)
    head.grow(2001)
    head.grow_inputs(90)
    fresh = nn.Linear(90, 2000)
    bound = 1 / math.sqrt(90)
    rows, columns = head.weight[1:, :30], head.weight[:, 30:]
    if init == "torch":
        assert fresh.weight.abs().max() <= bound  # the law we copy, as torch has it
        assert columns.abs().max() <= bound < rows.abs().max() <= 1 / math.sqrt(30)
        assert columns.std().item() == pytest.approx(fresh.weight.std().item(), rel=0.02)
        if head.bias is not None:
            assert head.bias.abs().max() <= 1 / math.sqrt(30)
            assert head.bias.std().item() == pytest.approx(1 / math.sqrt(90), rel=0.05)
    else:
        assert columns.std().item() == pytest.approx(bound, rel=0.02)
        assert rows.std().item() == pytest.approx(1 / math.sqrt(30), rel=0.02)
        if init == "kaiming_uniform":  # PyTorch's own, for a linear unit
            nn.init.kaiming_uniform_(fresh.weight, nonlinearity="linear")
            assert columns.abs().max().item() == pytest.approx(fresh.weight.abs().max().item(), rel=0.001)
        assert head.bias is None or not head.bias.any()


def test_a_linear_head_starts_exactly_like_a_linear_layer():
    torch.manual_seed(3)
    head = LinearHead(7)
    head.grow(5)
    torch.manual_seed(3)
    layer = nn.Linear(7, 5)
    torch.testing.assert_close(head.weight, layer.weight, rtol=0, atol=1e-7)  # the same draws, one rounding apart
    torch.testing.assert_close(head.bias, layer.bias, rtol=0, atol=1e-7)


@pytest.mark.parametrize("name", NAMES)
def test_growth_keeps_dtype_device_and_whether_it_trains(name):
    head = make(name).double()
    head.grow(2)
    head.double().requires_grad_(False)
    head.grow(5)
    head.grow_inputs(8)
    assert {p.dtype for p in head.parameters()} == {torch.float64}
    if name != "multi":  # a multi-head's new task has a layer of its own, which trains
        assert not any(p.requires_grad for p in head.parameters())
    with torch.device("meta"):
        meta = make(name)
    meta.grow(3)
    meta.grow(5)
    meta.grow_inputs(9)
    assert all(p.is_meta for p in meta.parameters())
    ids = torch.zeros(2, dtype=torch.int64, device="meta")
    assert meta(torch.empty(2, 9, device="meta"), ids).shape == (2, 5)


def test_growing_to_the_same_size_draws_nothing_and_shrinking_is_refused():
    for name in NAMES:
        head = make(name)
        head.grow(3)
        state, parameters = torch.get_rng_state(), list(head.parameters())
        head.grow(3)
        head.grow_inputs(6)
        assert torch.equal(state, torch.get_rng_state())
        assert all(a is b for a, b in zip(parameters, head.parameters(), strict=True))
        with pytest.raises(ContractError, match="can't shrink from 3 to 2 classes"):
            head.grow(2)
        with pytest.raises(ContractError, match="can't shrink from 6 to 5 inputs"):
            head.grow_inputs(5)


@pytest.mark.parametrize("name", NAMES)
def test_write_and_reset_work_in_place(name):
    head = make(name)
    head.grow(2)
    head.grow(5)
    parameters = list(head.parameters())
    weight = torch.randn(5, 6)
    head.write(weight)
    assert torch.equal(head.weight, weight)
    if head.bias is not None:
        head.write(weight, torch.arange(5.0))
        assert torch.equal(head.bias, torch.arange(5.0))
    head.reset_parameters()
    assert not torch.isin(head.weight, weight).any()
    assert all(a is b for a, b in zip(parameters, head.parameters(), strict=True))


def test_initialisation_from_zeros():
    head = make("linear", init="zeros")
    head.grow(3)
    assert not head.weight.any()
    assert not head.bias.any()
    with pytest.raises(ConfigurationError, match="can't start from zeros"):
        make("cosine", init="zeros")


def test_cosine_logits_gradients_and_invariance():
    head = CosineHead(5, scale=3.0)
    head.grow(4)
    head.double()
    x = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    expected = torch.stack([F.cosine_similarity(x, row[None]) for row in head.weight], 1) * 3
    torch.testing.assert_close(head(x), expected)
    torch.testing.assert_close(head(7 * x), expected)

    def apply(x, weight, scale):
        return torch.func.functional_call(head, {"weight": weight, "scale": scale}, (x,))

    assert torch.autograd.gradcheck(apply, (x, head.weight, head.scale))


# ---- multi-head


def grown_multi(tasks, in_features=6, **options):
    head = make("multi", in_features, **options)
    for classes in tasks:
        head.grow(max(head.num_classes, max(classes) + 1), classes)
    return head


@pytest.mark.parametrize("tasks", [[[0, 1], [2], [3, 4, 5]], [[1, 0], [4, 2, 3]]])
def test_a_multi_head_is_a_linear_head_under_masked_logits(tasks):
    multi = grown_multi(tasks)
    linear = LinearHead(6)
    linear.grow(multi.num_classes)
    linear.write(multi.weight, multi.bias)
    x, ids = torch.randn(50, 6), torch.randint(len(tasks), (50,))
    torch.testing.assert_close(multi(x), linear(x))
    mask = torch.stack([torch.isin(torch.arange(multi.num_classes), torch.tensor(classes)) for classes in tasks])[ids]
    torch.testing.assert_close(multi(x, ids), linear(x).masked_fill(~mask, -math.inf))


def test_a_multi_heads_masked_loss_reaches_only_the_tasks_own_layer():
    head = grown_multi([[0, 1], [2, 3]])
    x = torch.randn(8, 6)
    ids = torch.ones(8, dtype=torch.int64)
    F.cross_entropy(head(x, ids), torch.randint(2, 4, (8,))).backward()
    first, second = (list(task.parameters()) for task in head.tasks)
    assert all(not p.grad.any() for p in first)
    assert all(p.grad.isfinite().all() and p.grad.any() for p in second)


def test_tasks_that_share_classes_have_layers_of_their_own():
    head = grown_multi([[0, 1], [0, 1], [1, 2]])
    x = torch.randn(4, 6)
    for t, classes in enumerate([[0, 1], [0, 1], [1, 2]]):
        logits = head(x, torch.full((4,), t))
        torch.testing.assert_close(logits[:, classes], head.tasks[t](x))
        assert logits.isinf().sum() == 4
    torch.testing.assert_close(head(x)[:, :1], head.tasks[1](x)[:, :1])  # class 0: task 1 is the latest that has it
    torch.testing.assert_close(head(x)[:, 1:], head.tasks[2](x))
    torch.testing.assert_close(F.linear(x, head.weight, head.bias), head(x))


def test_unknown_task_ids_mask_nothing():
    head = grown_multi([[0, 1], [2, 3]])
    x = torch.randn(3, 6)
    logits = head(x, torch.tensor([-1, 2, 1]))
    torch.testing.assert_close(logits[:2], head(x)[:2])
    assert logits[2].isinf().tolist() == [True, True, False, False]


def test_classes_of_a_task_that_do_not_fit_are_refused():
    head = grown_multi([[0, 1]])
    for count, classes in ((4, [2]), (3, [2, 2]), (3, [2, 3]), (3, [-1, 2])):
        with pytest.raises(ContractError, match="must be distinct"):
            head.grow(count, classes)
    assert (head.num_classes, len(head.tasks)) == (2, 1)


@pytest.mark.parametrize("name", NAMES)
def test_a_head_without_classes_gives_no_logits(name):
    head = make(name)
    assert head(torch.randn(3, 6)).shape == (3, 0)
    assert head.weight.shape == (0, 6)


def test_multi_is_the_class_it_says():
    assert [type(make(n)) for n in NAMES] == [LinearHead, CosineHead, MultiHead]
    assert make("linear", bias=False).bias is None
    assert make("multi", bias=False).bias is None


# ---- local similarity


def grown_proxies(classes: int, proxies: int = 3, in_features: int = 5, **options) -> LocalSimilarityHead:
    head = make("local_similarity", in_features, proxies=proxies, **options)
    head.grow(classes)
    return head


def test_local_similarity_logits_gradients_and_invariance():
    head = grown_proxies(4, scale=3.0).double()
    x = torch.randn(6, 5, dtype=torch.float64, requires_grad=True)
    proxies = F.normalize(head.weight.reshape(4, 3, 5), dim=2)
    similarity = -(F.normalize(x, dim=1)[:, None, None] - proxies).square().sum(3)
    expected = 3 * (similarity.softmax(2) * similarity).sum(2)
    torch.testing.assert_close(head(x), expected)
    torch.testing.assert_close(head(7 * x), expected)

    def apply(x, weight, scale):
        return torch.func.functional_call(head, {"weight": weight, "scale": scale}, (x,))

    assert torch.autograd.gradcheck(apply, (x, head.weight, head.scale))


def test_local_similarity_of_one_proxy_is_the_cosine_up_to_a_shift():
    head = grown_proxies(4, proxies=1, scale=2.0)
    cosine = CosineHead(5, scale=2.0)
    cosine.grow(4)
    cosine.write(head.weight.detach())
    x = torch.randn(9, 5)
    torch.testing.assert_close(head(x), 2 * cosine(x) - 4)


def test_local_similarity_grows_in_classes_and_inputs():
    torch.manual_seed(0)
    head = grown_proxies(2)
    x, weight = torch.randn(3, 8), head.weight.clone()
    logits = head(x[:, :5])
    head.grow(6)
    assert head.weight.shape == (6, 15)
    assert torch.equal(head.weight[:2], weight)
    torch.testing.assert_close(head(x[:, :5])[:, :2], logits)
    grown = head.weight.view(6, 3, 5).clone()
    for new in ("fresh", "zero"):
        longer = grown_proxies(2)
        longer.load_state_dict(grown_proxies(2).state_dict())
        longer.grow(6)
        longer.write(grown.view(6, 15))
        longer.requires_grad_(False)
        longer.grow_inputs(8, new)
        found = longer.weight.view(6, 3, 8)
        assert torch.equal(found[..., :5], grown)
        assert bool(found[..., 5:].any()) is (new == "fresh")
        assert not longer.weight.requires_grad
        assert longer(x).shape == (3, 6)
    with pytest.raises(ContractError, match="can't shrink from 6 to 5 classes"):
        head.grow(5)
    with pytest.raises(ContractError, match="can't shrink from 5 to 4 inputs"):
        head.grow_inputs(4)


def test_local_similarity_is_drawn_by_the_fan_in_of_one_proxy_and_reset_in_place():
    torch.manual_seed(0)
    head = grown_proxies(900, in_features=30, init="kaiming_normal", scale=2.0)
    assert head.weight.std().item() == pytest.approx(1 / math.sqrt(30), rel=0.02)
    parameters, before = list(head.parameters()), head.weight.clone()
    with torch.no_grad():
        head.scale.fill_(5.0)
    head.reset_parameters()
    assert all(a is b for a, b in zip(parameters, head.parameters(), strict=True))
    assert not torch.isin(head.weight, before).all(1).any()
    assert head.scale.item() == 2.0


def test_local_similarity_is_restored_from_its_layout():
    head = grown_proxies(4)
    head.grow_inputs(7)
    again = make("local_similarity", 5, proxies=3)
    again.restore(head.layout())
    again.load_state_dict(head.state_dict())
    x = torch.randn(3, 7)
    assert torch.equal(again(x), head(x))


def test_local_similarity_without_classes_on_the_meta_device_and_from_zeros():
    assert make("local_similarity")(torch.randn(3, 6)).shape == (3, 0)
    with torch.device("meta"):
        meta = make("local_similarity")
    meta.grow(3)
    meta.grow_inputs(9)
    meta.grow(5)
    assert all(p.is_meta for p in meta.parameters())
    assert meta(torch.empty(2, 9, device="meta")).shape == (2, 5)
    with pytest.raises(ConfigurationError, match="A local_similarity head can't start from zeros"):
        make("local_similarity", init="zeros")
