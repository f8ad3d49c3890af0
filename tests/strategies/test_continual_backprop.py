"""Continual backprop: the units that help least are replaced."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from clframe.models import backbone_config
from clframe.models.mlp import MLP
from clframe.strategies.continual_backprop import ContinualBackprop
from clframe.strategies.finetune import Finetune
from clframe.testing.streams import synthetic_stream

SMALL = MLP(hidden=[12, 10])
RESNET = backbone_config("resnet8", {"width": 4})


def stream(setting: str = "class", **options):
    groups = [[0, 1]] * 3 if setting == "domain" else [[0, 1], [2, 3], [4, 5]]
    return synthetic_stream(setting=setting, experiences=groups, **options)


def steps_of(trial, watch) -> None:
    """Run; call `watch(strategy, batch)` before what the method does after every step."""
    inner = trial.strategy.after_step

    def both(batch):
        watch(trial.strategy, batch)
        inner(batch)

    trial.strategy.after_step = both
    trial.run()


@pytest.mark.parametrize("setting", ["class", "task", "domain"])
@pytest.mark.parametrize("options", [{"rate": 0.0, "maturity": 0}, {"rate": 1.0, "maturity": 10_000}])
@pytest.mark.parametrize("net", [MLP(hidden=[12, 10], dropout=0.2), RESNET], ids=["mlp", "resnet8"])
def test_replacing_nothing_is_fine_tuning_bit_for_bit(make, same, setting, options, net):
    kept = make(ContinualBackprop(**options), stream(setting), backbone=net).run()
    assert kept.strategy.replaced_ == 0
    assert kept.strategy.age_
    same(kept.bits(), make(Finetune(), stream(setting), backbone=net).run().bits())


@pytest.mark.parametrize("decay", [0.0, 0.9])
def test_utility_is_numpys(make, decay):
    trial = make(ContinualBackprop(rate=0.0, decay=decay), backbone=SMALL)
    utility, mean, steps = {}, {}, 0

    def watch(strategy, batch):
        nonlocal steps
        steps += 1
        layers = strategy.network.branches[0].layers
        first = np.maximum(
            batch.x.flatten(1).numpy() @ layers[0].weight.detach().numpy().T + layers[0].bias.detach().numpy(), 0
        )
        second = np.maximum(first @ layers[2].weight.detach().numpy().T + layers[2].bias.detach().numpy(), 0)
        heads = strategy.network.classifier.weight.detach().numpy()
        for name, h, w in (("gates.0", first, layers[2].weight.detach().numpy()), ("gates.2", second, heads)):
            use = np.abs(h).mean(0) * np.abs(w).sum(0)
            utility[name] = decay * utility.get(name, 0) + (1 - decay) * use
            mean[name] = decay * mean.get(name, 0) + (1 - decay) * h.mean(0)

    steps_of(trial, watch)
    strategy = trial.strategy
    assert steps > 9
    for name in ("gates.0", "gates.2"):
        assert (strategy.age_[name] == steps).all()
        np.testing.assert_allclose(strategy.utility_[name].numpy(), utility[name], rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(strategy.mean_[name].numpy(), mean[name], rtol=1e-4, atol=1e-6)
        unbiased = utility[name] / (1 - decay**steps)
        np.testing.assert_allclose(strategy.corrected(strategy.utility_, name).numpy(), unbiased, rtol=1e-4, atol=1e-6)


def test_the_utility_of_a_convolution_counts_all_places_and_the_whole_kernel(make):
    trial = make(ContinualBackprop(rate=0.0, decay=0.0), backbone=RESNET)
    expected = {}

    def watch(strategy, batch):
        network = strategy.network
        network.eval()
        with torch.no_grad():
            block = network.branches[0].layer1[0]
            h = torch.relu(block.bn1(block.conv1(network.branches[0].stem(batch.x)))).numpy()
        network.train()
        expected["u"] = np.abs(h).mean((0, 2, 3)) * np.abs(block.conv2.weight.detach().numpy()).sum((0, 2, 3))

    steps_of(trial, watch)
    np.testing.assert_allclose(trial.strategy.utility_["layer1.0.inner_gate"].numpy(), expected["u"], rtol=1e-4)


def test_young_units_are_left_alone(make):
    trial = make(ContinualBackprop(rate=0.25, maturity=5), backbone=SMALL)
    counts = []
    inner = trial.strategy.choose

    def watched():
        before = {n: age.clone() for n, age in trial.strategy.age_.items()}
        chosen = inner()
        for name, index in chosen.items():
            assert (before[name][index] > 5).all()
        counts.append({n: len(i) for n, i in chosen.items()})
        return chosen

    trial.strategy.choose = watched
    trial.run()
    assert counts[:5] == [{}] * 5
    assert counts[5] == {"gates.0": 3, "gates.2": 2}  # a quarter of 12 and of 10
    assert sum(sum(c.values()) for c in counts) == trial.strategy.replaced_


@pytest.mark.parametrize("rate", [0.01, 0.03, 0.12])
def test_shares_of_a_unit_add_up(make, rate):
    trial = make(
        ContinualBackprop(rate=rate, maturity=0), stream(train_per_class=12), backbone=MLP(hidden=[10]), epochs=4
    )
    mature = []
    inner = trial.strategy.choose
    trial.strategy.choose = lambda: (mature.append(int((trial.strategy.age_["gates.0"] > 0).sum())), inner())[1]
    trial.run()
    expected = rate * sum(mature)
    assert len(mature) == trial.trainer.counters["steps"]
    assert trial.strategy.replaced_ + trial.strategy.due_["gates.0"] == pytest.approx(expected)
    assert 0 <= trial.strategy.due_["gates.0"] < 1 + 1e-9
    assert trial.strategy.replaced_ > 0


def prepared(make, net=SMALL, setting: str = "class", **options):
    """A strategy after a run that replaced nothing, and a batch of its inputs."""
    trial = make(ContinualBackprop(rate=0.0, maturity=0, **options), stream(setting), backbone=net).run()
    trial.trainer.context.experience = trial.stream.experiences[-1]
    batch = next(iter(trial.trainer.context.batches(trial.stream.experiences[-1].train, batch_size=16)))
    trial.strategy.network.eval()
    return trial, batch.x


def test_those_of_the_smallest_utility_go(make):
    trial, _ = prepared(make)
    strategy = trial.strategy
    strategy.utility_["gates.0"] = torch.tensor([5.0, 3, 9, 1, 7, 8, 2, 6, 4, 10, 12, 11])
    strategy.age_["gates.0"][6] = 0  # would be next to go, but is new
    strategy.rate = 2.5 / 11
    assert strategy.choose()["gates.0"].tolist() == [3, 1]
    assert strategy.due_["gates.0"] == pytest.approx(0.5)


def test_a_replaced_unit_starts_again_and_nothing_else_changes(make):
    trial, _ = prepared(make)
    strategy, network = trial.strategy, trial.strategy.network
    before, means = copy.deepcopy(network), strategy.corrected(strategy.mean_, "gates.0").clone()
    drawn = []
    inner = trial.trainer.context.fresh_network
    trial.trainer.context.fresh_network = lambda: (drawn.append(inner()), drawn[-1])[1]
    strategy.replace_least({"gates.0": torch.tensor([1, 4])})
    old, new, fresh = before.branches[0].layers, network.branches[0].layers, drawn[0].branches[0].layers
    chosen, kept = [1, 4], [i for i in range(12) if i not in (1, 4)]
    for name in ("weight", "bias"):
        values = getattr(new[0], name)
        assert torch.equal(values[chosen], getattr(fresh[0], name)[chosen])
        assert torch.equal(values[kept], getattr(old[0], name)[kept])
    assert not new[2].weight[:, chosen].any()
    assert torch.equal(new[2].weight[:, kept], old[2].weight[:, kept])
    torch.testing.assert_close(new[2].bias, old[2].bias + old[2].weight[:, chosen] @ means[chosen])
    assert torch.equal(network.classifier.weight, before.classifier.weight)
    for state in (strategy.age_, strategy.utility_, strategy.mean_):
        assert not state["gates.0"][chosen].any()
        assert state["gates.2"].any()
    assert (strategy.age_["gates.0"][kept] > 0).all()
    assert strategy.replaced_ == 2


@pytest.mark.parametrize("setting", ["class", "task"])
def test_where_a_unit_says_the_same_on_every_input_its_going_changes_no_output(make, setting):
    trial, x = prepared(make, setting=setting, decay=0.0)
    strategy, network = trial.strategy, trial.strategy.network
    with torch.no_grad():
        for layer in (network.branches[0].layers[0], network.branches[0].layers[2]):
            layer.weight[3] = 0
            layer.bias[3] = 0.7
    strategy.update(strategy.activations(x))
    tasks = torch.zeros(len(x), dtype=torch.int64) if setting == "task" else None
    with torch.no_grad():
        before = network(x, tasks).logits
        strategy.replace_least({n: torch.tensor([3]) for n in ("gates.0", "gates.2")})
        torch.testing.assert_close(network(x, tasks).logits, before, rtol=1e-5, atol=1e-6)


def test_channels_of_a_block_are_replaced_with_their_norm(make):
    trial, _ = prepared(make, RESNET)
    strategy = trial.strategy
    block = strategy.network.branches[0].layer1[0]
    before = copy.deepcopy(block)
    strategy.replace_least({"layer1.0.inner_gate": torch.tensor([2])})
    assert block.bn1.running_mean[2] == 0
    assert block.bn1.running_var[2] == 1
    assert not block.conv2.weight[:, 2].any()
    assert not torch.equal(block.conv1.weight[2], before.conv1.weight[2])
    assert torch.equal(block.conv1.weight[[0, 1, 3]], before.conv1.weight[[0, 1, 3]])
