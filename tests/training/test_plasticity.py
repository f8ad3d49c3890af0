"""Instruments of plasticity: what they see of a network and of its training, and that they change nothing."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from clframe.models import Network, backbone_config
from clframe.models.mlp import MLP
from clframe.plasticity import dormant_units, effective_rank
from clframe.strategies.der import DER
from clframe.strategies.finetune import Finetune
from clframe.strategies.foster import FOSTER
from clframe.strategies.icarl import ICaRL
from clframe.strategies.layernorm_tuning import LayerNormTuning
from clframe.strategies.redo import ReDo
from clframe.strategies.replay import Replay
from clframe.testing import MemoryRecorder
from clframe.testing.bench import first_difference
from clframe.testing.streams import synthetic_stream
from clframe.training.activations import watch_network
from clframe.training.checkpoint import pack
from clframe.training.measures import MEASURES
from clframe.training.plasticity import hessian_eigenvalue, probe_ids
from clframe.training.trainer import Stopped, Trainer
from tests.fakes import make_setup

TWO = {"experiences": [[0, 1], [2, 3]]}
RESNET = backbone_config("resnet8", {"width": 4})
VIT = backbone_config("vit_tiny", {"patch": 4, "dim": 12, "depth": 2, "heads": 2})


def trainer(strategy: Any, backbone: Any = None, stream: Any = TWO, measure: Any = "all", **options: Any) -> Trainer:
    trainer_options = {k: options.pop(k) for k in ("stop_after",) if k in options}
    setup = make_setup(strategy, stream, backbone=backbone or MLP(hidden=[12, 10]), measure=measure, **options)
    return Trainer(setup, MemoryRecorder(), **trainer_options)


def measured(trained: Trainer) -> list[dict[str, Any]]:
    names = [n for n in MEASURES if n != "cost"]
    found = [values["values"] for kind, values in trained.recorder.events if kind == "measured"]
    return [{n: v for n, v in f.items() if any(n.startswith(m) for m in [*names, "dead_units"])} for f in found]


def run(*args: Any, **options: Any) -> Trainer:
    made = trainer(*args, **options)
    made.run()
    return made


# -- a run with instruments is the run without ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("strategy", "backbone"),
    [
        (Finetune(epochs=2), MLP(hidden=[12], dropout=0.3)),
        (DER(epochs=2, memory_size=6, masks=True), RESNET),
        (FOSTER(epochs=2, memory_size=6, compression_epochs=2), RESNET),
        (ICaRL(epochs=2, memory_size=6), RESNET),
        (ReDo(epochs=2, every=2, threshold=0.5), MLP(hidden=[12, 10])),
    ],
    ids=["finetune", "der", "foster", "icarl", "redo"],
)
def test_measuring_changes_no_bit(strategy: Any, backbone: Any) -> None:
    plain = run(strategy, backbone, measure="none")
    full = run(strategy, backbone)
    assert not measured(plain)
    assert {*measured(full)[1]} >= {"dormant_units", "effective_rank", "online_accuracy", "gradient_norm", "curvature"}
    assert first_difference(pack(plain.strategy.network), pack(full.strategy.network)) is None
    assert plain.recorder.kept.keys() == full.recorder.kept.keys()
    for key, columns in plain.recorder.kept.items():
        for name, column in columns.items():
            np.testing.assert_array_equal(column, full.recorder.kept[key][name])
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in full.strategy.network.modules())


def test_measuring_changes_no_bit_of_layernorm_tuning(tmp_path: Any) -> None:
    from safetensors.torch import save_file

    torch.manual_seed(0)
    file = tmp_path / "weights.safetensors"
    save_file(VIT.build(synthetic_stream().shape).state_dict(), file)
    backbone = VIT.replace(weights=str(file))
    plain = run(LayerNormTuning(epochs=2), backbone, measure="none")
    full = run(LayerNormTuning(epochs=2), backbone)
    assert first_difference(pack(plain.strategy.network), pack(full.strategy.network)) is None
    assert measured(full)[1]["curvature"] is not None


@pytest.mark.parametrize("stop_after", [1, 4, 6, 8, 11])
def test_a_resumed_run_measures_the_same(stop_after: int) -> None:
    strategy = Replay(epochs=2, memory_size=4)
    whole = run(strategy)
    stopped = trainer(strategy, stop_after=stop_after)
    with pytest.raises(Stopped):
        stopped.run()
    goes_on = trainer(strategy)
    goes_on.load_state(stopped.recorder.latest())
    goes_on.run()
    both = {}
    for found in (stopped, goes_on):
        for kind, values in found.recorder.events:
            if kind == "measured":
                both[values["experience"]] = values["values"]
    expected = measured(whole)
    for i, values in both.items():
        assert {n: values[n] for n in expected[i - 1]} == expected[i - 1]
    assert set(both) == {1, 2}


# -- the probe set -------------------------------------------------------------------------------------------------------


def test_every_task_has_the_same_share_of_the_probe() -> None:
    stream = synthetic_stream(experiences=[[0, 1], [2, 3], [4, 5]], test_per_class=20)
    ids = probe_ids(stream, 12)
    assert [sum(int(i) in t.test.tolist() for i in ids) for t in stream.tasks] == [4, 4, 4]
    assert len(ids.unique()) == 12
    assert sorted(stream.test.targets[ids].unique().tolist()) == list(range(6))
    assert len(probe_ids(stream)) == 120
    assert len(probe_ids(stream, 2)) == 2


def test_the_order_of_the_probe_does_not_matter() -> None:
    network = Network(lambda: RESNET.build((1, 8, 8)))
    x = torch.randn(40, 1, 8, 8)
    order = torch.randperm(40)
    (features, levels), (mixed, mixed_levels) = watch_network(network, x), watch_network(network, x[order])
    torch.testing.assert_close(features[order], mixed)
    for name, level in levels.items():
        torch.testing.assert_close(level, mixed_levels[name])
    ranks = [effective_rank(torch.linalg.svdvals(f.double())) for f in (features, mixed)]
    assert ranks[0] == pytest.approx(ranks[1], rel=1e-6)


def test_it_does_not_depend_on_the_seed() -> None:
    made = [trainer(Finetune(), seed=s).instruments.instruments for s in (0, 1)]
    probes = [next(i.ids for i in instruments if i.name == "plasticity") for instruments in made]
    assert torch.equal(*probes)


# -- units ---------------------------------------------------------------------------------------------------------------


def test_units_of_an_mlp() -> None:
    network = Network(lambda: MLP(hidden=[6, 5], layer_norm=True, dropout=0.5).build((1, 8, 8)))
    x = torch.randn(9, 1, 8, 8)
    features, levels = watch_network(network, x)
    assert list(levels) == ["layers.2", "layers.6"]
    assert network.training
    network.eval()
    layers = network.branches[0].layers
    first = layers[:4](x.flatten(1))
    np.testing.assert_allclose(levels["layers.2"], first.abs().mean(0).detach().numpy(), rtol=1e-5)
    np.testing.assert_allclose(levels["layers.6"], layers[4:](first).abs().mean(0).detach().numpy(), rtol=1e-5)
    torch.testing.assert_close(features, network.features(x))


def test_units_of_residual_blocks_are_inner_channels_and_outputs() -> None:
    network = Network(lambda: RESNET.build((3, 8, 8))).eval()
    network.add_branch()
    x = torch.randn(5, 3, 8, 8)
    _, levels = watch_network(network, x)
    blocks = [f"layer{k}.0{call}" for k in (1, 2, 3) for call in ("", ".2")]
    assert list(levels) == ["network", *blocks, "branches.1", *(f"branches.1.{b}" for b in blocks)]
    branch = network.branches[0]
    with torch.no_grad():
        stem = branch.stem(x)
        block = branch.layer1[0]
        inner, output = torch.relu(block.bn1(block.conv1(stem))), block(stem)
    for name, h in (("network", stem), ("layer1.0", inner), ("layer1.0.2", output)):
        np.testing.assert_allclose(levels[name], np.abs(h.numpy()).mean(axis=(0, 2, 3)), rtol=1e-4)


def test_units_of_a_vit_are_those_of_its_perceptrons() -> None:
    network = Network(lambda: VIT.build((1, 8, 8)))
    _, levels = watch_network(network, torch.randn(3, 1, 8, 8))
    assert {name: len(level) for name, level in levels.items()} == {"blocks.0.mlp": 48, "blocks.1.mlp": 48}


def test_silenced_units_of_a_run_are_the_dormant_share() -> None:
    network = Network(lambda: RESNET.build((1, 8, 8)))
    with torch.no_grad():
        network.branches[0].layer2[0].bn1.weight[:3] = 0
        network.branches[0].layer2[0].bn1.bias[:3] = -1
    _, levels = watch_network(network, torch.randn(6, 1, 8, 8))
    assert dormant_units(levels, 0.0)["layer2.0"] == pytest.approx(3 / 8)
    assert dormant_units(levels, 0.0)["layer1.0"] == 0


def test_dormant_units_are_those_that_redo_would_recycle() -> None:
    made = trainer(ReDo(epochs=1, every=10_000))
    made.run()
    probe = next(i for i in made.instruments.instruments if i.name == "plasticity")
    x = made.context.test_maker.test_input(made.setup.stream.test.gather(probe.ids))
    s = list(made.strategy.dormancy(x).values())
    shares = [float((values <= 0.025).double().mean()) for values in s]
    assert list(measured(made)[1]["dormant_units"].values()) == pytest.approx(shares)


def test_a_network_without_hidden_units_says_so() -> None:
    from clframe.metrics import Measured
    from clframe.metrics.measured import compute_run

    made = run(Finetune(epochs=1), MLP(hidden=[]))
    events = [{"event": k, **v} for k, v in made.recorder.events if k == "measured"]
    values, absent = compute_run(Measured.from_events(events, 2))
    for name in ("dormant_units", "dormant_units_mean", "dead_units"):
        assert "no hidden units" in absent[name]
    assert len(values["effective_rank"]) == 2


# -- ranks and weights -----------------------------------------------------------------------------------------------------


def test_ranks_are_those_of_the_probes_features() -> None:
    made = run(Finetune(epochs=1))
    network = made.strategy.network.eval()
    ids = probe_ids(made.setup.stream)
    with torch.no_grad():
        features = network.features(made.context.test_maker.test_input(made.setup.stream.test.gather(ids)))
    s = np.linalg.svd(features.numpy().astype(np.float64), compute_uv=False)
    p = s[s > 0] / s.sum()
    found = measured(made)[1]
    assert found["effective_rank"] == pytest.approx(np.exp(-(p * np.log(p)).sum()), rel=1e-6)
    assert found["stable_rank"] == pytest.approx((s**2).sum() / s[0] ** 2, rel=1e-6)


def test_distance_is_from_where_each_weight_began() -> None:
    still = run(Finetune(epochs=1), optimizer={"lr": 1e-30})
    assert [f["weight_distance"] for f in measured(still)] == [0.0, 0.0]  # new classes' rows begin where they are drawn
    moved = trainer(Finetune(epochs=2))
    start = {}
    phase = moved.instruments.phase

    def noted(experience: Any, begun: Any, stepper: Any) -> Any:
        for name, p in moved.strategy.network.named_parameters():
            known = start.get(name)
            if known is None or known.shape != p.shape:
                rows = 0 if known is None else len(known)
                start[name] = p.detach().clone() if not rows else torch.cat([known, p.detach()[rows:].clone()])
        return phase(experience, begun, stepper)

    moved.instruments.phase = noted
    moved.run()
    expected = (
        sum(float((p.detach() - start[n]).square().sum()) for n, p in moved.strategy.network.named_parameters()) ** 0.5
    )
    assert measured(moved)[1]["weight_distance"] == pytest.approx(expected, rel=1e-5)


def test_weight_magnitude_is_of_matrices_and_kernels() -> None:
    made = run(Finetune(epochs=1), RESNET)
    weights = [m.weight for m in made.strategy.network.modules() if isinstance(m, nn.Conv2d)]
    values = torch.cat([w.flatten() for w in (*weights, made.strategy.network.classifier.weight)]).detach().abs()
    found = measured(made)[1]
    assert found["weight_magnitude"] == pytest.approx(float(values.mean()), rel=1e-5)
    assert {"conv1", "layer1.0.conv1", "heads.classifier"} <= set(found["weight_magnitude_layers"])
    assert not any("bn" in name for name in found["weight_magnitude_layers"])


# -- while training --------------------------------------------------------------------------------------------------------


class Noting(Replay):
    """Writes down the accuracy of every batch's new samples from its own forward pass, and the norms of gradients."""

    def setup(self) -> None:
        super().setup()
        self.noted_: list[list[float]] = []
        self.norms_: list[list[float]] = []

    def main_loss(self, batch: Any, output: Any) -> Any:
        if self.network.training:  # not where curvature is measured
            new = slice(0, batch.num_new)
            right = (output.logits[new].argmax(1) == batch.y[new]).double().mean()
            while len(self.noted_) <= batch.experience.index:
                self.noted_.append([])
                self.norms_.append([])
            self.noted_[-1].append(float(right))
        return super().main_loss(batch, output)

    def after_backward(self, batch: Any) -> None:
        squares = sum(float(p.grad.double().square().sum()) for p in self.network.parameters() if p.grad is not None)
        self.norms_[-1].append(squares**0.5)


def test_the_pace_of_learning_is_that_of_the_training_batches() -> None:
    made = run(Noting(epochs=12, memory_size=8), measure=["online_accuracy", "steps_to_threshold", "gradient_norm"])
    strategy, found = made.strategy, measured(made)
    level = np.mean(strategy.noted_[0][-20:])
    for i in (0, 1):
        noted = strategy.noted_[i]
        assert len(noted) >= 36
        assert found[i]["online_accuracy"] == pytest.approx(np.mean(noted))
        running = np.convolve(noted, np.ones(20) / 20, "valid")
        steps = [20 + k for k, value in enumerate(running) if value >= 0.9 * level - 1e-12]
        assert found[i]["steps_to_threshold"] == (steps[0] if steps else None)
        assert found[i]["gradient_norm"] == pytest.approx(np.mean(strategy.norms_[i]), rel=1e-5)
        assert found[i]["gradient_norm_first"] == pytest.approx(strategy.norms_[i][0], rel=1e-5)
    assert found[0]["steps_to_threshold"] is not None


def test_in_the_task_setting_the_other_tasks_classes_are_no_answer() -> None:
    stream = synthetic_stream(setting="task", **TWO)
    made = run(Finetune(epochs=6), stream=stream, measure=["online_accuracy"])
    assert all(f["online_accuracy"] > 0.4 for f in measured(made))


def test_curvature_is_exact_on_a_quadratic() -> None:
    torch.manual_seed(0)
    root = torch.randn(6, 6, dtype=torch.float64)
    matrix = root @ root.T
    w = nn.Parameter(torch.randn(2, 2, dtype=torch.float64))
    b = nn.Parameter(torch.randn(2, dtype=torch.float64))
    flat = torch.cat([w.flatten(), b])
    found = hessian_eigenvalue(0.5 * flat @ matrix @ flat, [w, b])
    assert found == pytest.approx(np.linalg.eigvalsh(matrix.numpy()).max(), rel=1e-3)
    assert w.grad is None
    assert hessian_eigenvalue(flat.clone().sum(), [w, b]) == 0.0


def test_curvature_of_a_softmax_is_that_of_the_whole_hessian() -> None:
    made = run(Finetune(epochs=1), MLP(hidden=[4]), stream={"experiences": [[0, 1, 2]]}, measure=["curvature"])
    network = made.strategy.network.eval()
    (batch,) = made.context.train_maker.in_order(
        made.setup.stream.experiences[0].train, 1000, made.setup.stream.experiences[0]
    )
    names, values = zip(*network.named_parameters(), strict=True)

    def loss(*parameters: torch.Tensor) -> torch.Tensor:
        out = torch.func.functional_call(network, dict(zip(names, parameters, strict=True)), (batch.x,))
        return nn.functional.cross_entropy(out.logits, batch.y)

    blocks = torch.autograd.functional.hessian(loss, values)
    sizes = [v.numel() for v in values]
    whole = torch.cat(
        [torch.cat([blocks[i][j].reshape(m, n) for j, n in enumerate(sizes)], 1) for i, m in enumerate(sizes)]
    )
    assert measured(made)[0]["curvature"] == pytest.approx(float(np.linalg.eigvalsh(whole.numpy()).max()), rel=1e-2)


def test_a_vit_has_a_curvature() -> None:
    made = run(Finetune(epochs=1), VIT, measure=["curvature"])
    assert all(f["curvature"] > 0 for f in measured(made))


def test_a_dry_run_measures_nothing() -> None:
    setup = make_setup(Finetune(epochs=1), TWO, backbone=MLP(hidden=[4]), measure=["dormant_units", "gradient_norm"])
    made = Trainer(dataclasses.replace(setup, dry=True), MemoryRecorder())
    assert made.instruments.report(setup.stream.experiences[0]) == {}
