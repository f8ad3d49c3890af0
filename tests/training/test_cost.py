"""The cost account: operations of known layers, of whole runs by hand, bytes against tensors, and that it changes no bit."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional

from clframe.class_statistics import ClassStatistics
from clframe.composite import leaves
from clframe.models import backbone_config
from clframe.strategies.cumulative import Cumulative
from clframe.strategies.dark_er import DarkER
from clframe.strategies.der import DER
from clframe.strategies.ewc import EWC
from clframe.strategies.finetune import Finetune
from clframe.strategies.foster import FOSTER
from clframe.strategies.icarl import ICaRL
from clframe.strategies.joint import Joint
from clframe.strategies.layernorm_tuning import LayerNormTuning
from clframe.strategies.lwf import LwF
from clframe.strategies.replay import Replay
from clframe.strategy import DataView, Phase, Strategy
from clframe.testing import MemoryRecorder
from clframe.testing.bench import first_difference
from clframe.training.checkpoint import pack, strategy_state
from clframe.training.cost import Cost, StepCosts
from clframe.training.energy import EnergyMeter
from clframe.training.flops import FlopCounter
from clframe.training.footprint import kept_bytes, optimizer_bytes
from clframe.training.trainer import Stopped, Trainer
from tests.fakes import make_setup, make_trainer, run

TWO = {"experiences": [[0, 1], [2, 3]]}
VIT = {"patch": 4, "dim": 12, "depth": 2, "heads": 3}


def flops_of(call: Any) -> int:
    with FlopCounter() as counter:
        call()
    return counter.flops


def accounts(trainer: Trainer) -> list[dict[str, Any]]:
    return [values["values"] for kind, values in trainer.recorder.events if kind == "measured"]


# -- operations of layers ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("layer", "shape", "forward"),
    [
        (nn.Linear(5, 7), (3, 5), 2 * 3 * 5 * 7),
        (nn.Conv2d(4, 8, 3, padding=1), (2, 4, 6, 6), 2 * 2 * 8 * 36 * 4 * 9),
        (nn.Conv2d(4, 8, 3, padding=1, groups=2), (2, 4, 6, 6), 2 * 2 * 8 * 36 * 2 * 9),
        (nn.Conv2d(4, 4, 3, stride=2, groups=4), (2, 4, 7, 7), 2 * 2 * 4 * 9 * 9),
        (nn.ConvTranspose2d(4, 6, 2, stride=2), (2, 4, 5, 5), 2 * 2 * 4 * 25 * 6 * 4),
    ],
)
def test_a_layer_takes_as_much_for_each_gradient_as_forward(layer, shape, forward):
    x = torch.randn(shape, requires_grad=True)
    assert flops_of(lambda: layer(x)) == forward
    assert flops_of(lambda: layer(x).sum().backward()) == 3 * forward
    assert flops_of(lambda: layer(x.detach()).sum().backward()) == 2 * forward
    layer.requires_grad_(False)
    assert flops_of(lambda: layer(x).sum().backward()) == 2 * forward
    with torch.inference_mode():
        assert flops_of(lambda: layer(x)) == forward


def test_attention_on_the_cpu_is_counted_in_both_directions():
    q = torch.randn(2, 3, 5, 8, requires_grad=True)
    product = 2 * 2 * 3 * 5 * 5 * 8
    assert flops_of(lambda: functional.scaled_dot_product_attention(q, q, q)) == 2 * product
    # backward computes the scores again, and a gradient of each of two factors of two products
    assert flops_of(lambda: functional.scaled_dot_product_attention(q, q, q).sum().backward()) == (2 + 5) * product


def test_the_fast_path_of_a_transformer_layer_counts_what_the_plain_one_does():
    layer, x = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True), torch.randn(2, 5, 16)
    plain = flops_of(lambda: layer(x))
    layer.eval()
    with torch.no_grad():
        assert flops_of(lambda: layer(x)) == plain == 2 * 10 * 16 * (4 * 16 + 2 * 32) + 4 * 2 * 25 * 16


def test_gradients_of_single_samples_are_counted_like_those_of_a_batch():
    layer = nn.Linear(6, 3)
    values = {n: p.detach() for n, p in layer.named_parameters()}

    def loss(values, x):
        return torch.func.functional_call(layer, values, (x[None],)).square().sum()

    x = torch.randn(10, 6)
    each = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))
    assert flops_of(lambda: each(values, x)) == 2 * (2 * 10 * 6 * 3)


# -- operations of runs ------------------------------------------------------------------------------------------------


class EveryStep(Cost):
    """Counts every step, and every batch of a pass over samples."""

    def step(self, batch):
        self._costs = StepCosts()
        return super().step(batch)

    def pass_over(self, batches):
        return batches


def both(strategy: Any, **options: Any) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    found = []
    for instrument in (Cost(), EveryStep()):
        setup = make_setup(strategy(), TWO, batch_size=5, **options)
        trainer = Trainer(dataclasses.replace(setup, instruments=(instrument,)), MemoryRecorder())
        trainer.run()
        found.append(accounts(trainer))
    return found[0], found[1]


@pytest.mark.parametrize(
    "strategy",
    [
        lambda: Finetune(epochs=4),
        lambda: Replay(epochs=4, memory_size=6, form="step"),
        lambda: Replay(epochs=3, memory_size=6),
        lambda: DarkER(epochs=5, memory_size=12),
        lambda: FOSTER(epochs=3, memory_size=6),
        lambda: EWC(epochs=3) + Replay(memory_size=4),
        lambda: EWC(epochs=1, fisher="batch"),
    ],
)
def test_a_few_counted_steps_give_what_counting_all_of_them_gives(strategy):
    scaled, counted = both(strategy)
    for one, other in zip(scaled, counted, strict=True):
        for name in ("step_flops", "hook_flops", "evaluation_flops", "inference_flops", "steps", "presentations"):
            assert one[name] == other[name], name
        assert sum(one["step_flops"].values()) > 0


def test_most_steps_are_not_counted():
    counted = []

    class Watched(Cost):
        def stepped(self, batch, terms):
            counted.append(self._counting)
            super().stepped(batch, terms)

    setup = make_setup(Finetune(epochs=10), TWO, batch_size=5)  # 12 samples: 5, 5, 2
    trainer = Trainer(dataclasses.replace(setup, instruments=(Watched(),)), MemoryRecorder())
    trainer.run()
    assert len(counted) == 60
    assert sum(counted) == 2 * 2 * 2  # two of each shape in each experience


class PassesOver(Finetune):
    """Looks at its samples after an experience, `left` after so many batches, and remembers which it was watched at."""

    left, how = 100, "break"

    def after_experience(self, experience):
        self.watched = []
        for number, batch in enumerate(self.run.batches(experience.train, 2)):
            self.watched.append(counting())
            self.network(batch.x)
            if number == self.left:
                if self.how == "break":
                    break
                raise RuntimeError
        self.watched.append(counting())


def counting() -> bool:
    return isinstance(torch.utils._python_dispatch._get_current_dispatch_mode(), FlopCounter)


def test_of_a_pass_over_samples_two_batches_are_counted():
    setup = make_setup(PassesOver(), TWO)  # 12 samples: 6 batches
    Trainer(dataclasses.replace(setup, instruments=(Cost(),)), MemoryRecorder()).run()
    assert setup.strategy.watched == [True, True, False, False, False, False, True]


def test_a_pass_that_is_left_early_costs_what_it_computed_and_what_follows_is_counted():
    def spent(left: int) -> int:
        setup = make_setup(PassesOver(), TWO)
        setup.strategy.left = left
        trainer = Trainer(dataclasses.replace(setup, instruments=(Cost(),)), MemoryRecorder())
        trainer.run()
        assert setup.strategy.watched[-1]
        return accounts(trainer)[0]["hook_flops"]["after"]

    assert spent(100) == 6 * spent(0)
    assert spent(3) == 4 * spent(0)


@pytest.mark.parametrize("left", [0, 4])
def test_an_error_within_a_pass_leaves_no_counter_behind(left):
    setup = make_setup(PassesOver(), TWO)
    setup.strategy.left, setup.strategy.how = left, "raise"
    with pytest.raises(RuntimeError):
        Trainer(dataclasses.replace(setup, instruments=(Cost(),)), MemoryRecorder()).run()
    assert torch.utils._python_dispatch._get_current_dispatch_mode() is None


def test_a_step_that_presents_more_than_was_known_is_scaled_once_and_then_counted():
    costs = StepCosts()
    costs.counted((5, 3), 5, 100)
    assert not costs.settled((5, 3))
    costs.counted((5, 3), 5, 100)
    assert costs.settled((5, 3))
    assert costs.expected((5, 3), 10) == 200
    assert not costs.settled((5, 3))
    assert StepCosts(costs.known).known == costs.known


class TwoPhases(Strategy):
    """Trains the whole network on all samples, then the head on exemplars of class 0, with some work in between."""

    def phases(self, experience):
        head = list(self.network.classifier.parameters())
        first = experience.train[:3]
        return [
            Phase(name="all", data=DataView(experience.train), epochs=2, on_end=self.between),
            Phase(name="head", data=DataView(first), epochs=5, parameters=[_group(head)]),
        ]

    def between(self):
        torch.randn(3, 4) @ torch.randn(4, 5)


def _group(parameters):
    from clframe.strategy import ParameterGroup

    return ParameterGroup(parameters)


def test_two_phases_worked_by_hand():
    trainer = run(TwoPhases(), {**TWO, "train_per_class": 5}, batch_size=5)
    backbone, head = trainer.strategy.network.branches[0], trainer.strategy.network.classifier
    sample = torch.zeros(1, 1, 8, 8)
    layers = flops_of(lambda: backbone(sample.requires_grad_()).sum().backward()) // 3
    for seen, account in zip((2, 4), accounts(trainer), strict=True):
        first = flops_of(lambda: backbone(torch.zeros(1, 1, 8, 8)).sum().backward())  # no gradient of the image
        top = 2 * head.in_features * seen
        assert account["step_flops"] == {"all": 20 * (first + 3 * top), "head": 15 * (layers + 2 * top)}
        assert account["hook_flops"] == {"end": 2 * 3 * 4 * 5}
        assert account["steps"] == 2 * 2 + 5
        assert account["presentations"] == 20 + 15
        assert account["inference_flops"] == layers + top
        assert account["evaluation_flops"] == 3 * seen * (layers + top)


def test_presentations_and_steps_are_the_trainers():
    trainer = run(DarkER(epochs=3, memory_size=8), TWO, batch_size=5)
    found = accounts(trainer)
    for name in ("steps", "presentations"):
        assert sum(a[name] for a in found) == trainer.counters[name]


def test_scoring_is_counted_apart():
    shared = {"experiences": [[0, 1], [0, 1]], "setting": "domain"}
    without, with_ = (accounts(run(Finetune(epochs=1), shared, evaluate_future=v)) for v in (False, True))
    assert with_[0]["evaluation_flops"] > without[0]["evaluation_flops"]
    assert with_[0]["step_flops"] == without[0]["step_flops"]


# -- bytes -------------------------------------------------------------------------------------------------------------


def size(*tensors: torch.Tensor) -> int:
    return sum(t.numel() * t.element_size() for t in tensors)


def test_bytes_by_purpose_are_those_of_the_tensors():
    strategy = Replay(epochs=1, memory_size=8) + LwF() + EWC()
    trainer = run(strategy, TWO)
    last, network = accounts(trainer)[-1], trainer.strategy.network
    _, lwf, ewc = leaves(trainer.strategy)
    assert last["deployed_bytes"] == size(*network.parameters(), *network.buffers())
    assert lwf.teacher_ is not None
    assert last["training_only_bytes"] == size(*lwf.teacher_.parameters(), *lwf.teacher_.buffers())
    assert last["exemplar_bytes"] == 8 * (64 + 8)
    assert last["statistics_bytes"] >= size(*ewc.fisher_.values(), *ewc.anchor_.values())
    assert last["optimizer_bytes"] == 4 * sum(p.numel() for p in network.parameters())
    assert [a["data_bytes"] for a in accounts(trainer)] == [12 * 64, 24 * 64]


def test_a_sample_counts_once_however_often_it_comes():
    stream = make_setup(Finetune(), TWO).stream
    first, second = stream.experiences
    again = torch.cat([second.train, first.train[:5], second.train[:3]])
    repeating = dataclasses.replace(stream, experiences=(first, dataclasses.replace(second, train=again)))
    trainer = run(Finetune(epochs=1), repeating)
    assert [a["data_bytes"] for a in accounts(trainer)] == [12 * 64, 24 * 64]


def test_bytes_of_every_kind_of_state():
    class Keeps(Finetune):
        def setup(self):
            self.teacher_ = self.network.frozen_copy()
            self.again_ = self.teacher_
            self.statistics_ = ClassStatistics("diagonal")
            self.statistics_.update(torch.randn(4, 3), torch.tensor([0, 0, 1, 1]))
            self.table_ = {"a": [torch.zeros(2, 3), torch.zeros(4, dtype=torch.uint8)], "b": (torch.zeros(5).double(),)}
            self.ours_ = next(self.network.parameters())
            self._hidden_ = torch.zeros(1000)
            self.plain = torch.zeros(1000)

    trainer = make_trainer(Keeps(epochs=1), TWO)
    trainer.strategy.setup()
    network = trainer.strategy.network
    model = size(*network.parameters(), *network.buffers())
    found = kept_bytes(trainer.strategy, 64)
    statistics = trainer.strategy.statistics_.bytes + 24 + 4 + 40
    assert found == {"deployed": model, "training_only": model, "exemplars": 0, "statistics": statistics}


@pytest.mark.parametrize("strategy", [Joint, Cumulative])
def test_a_method_that_keeps_all_data_is_charged_for_it(strategy):
    found = accounts(run(strategy(epochs=1), TWO))
    assert [a["exemplar_bytes"] for a in found] == [12 * 72, 24 * 72]
    assert [a["statistics_bytes"] for a in found] == [0, 0]


def test_state_of_an_optimiser_is_what_it_holds():
    weight = nn.Parameter(torch.zeros(3, 4))
    optimizer = torch.optim.Adam([weight])
    assert optimizer_bytes(optimizer) == 0
    weight.sum().backward()
    optimizer.step()
    assert optimizer_bytes(optimizer) == 2 * 48 + 4  # two moments, and a count of steps


def test_seconds_and_memory_are_measured():
    for account in accounts(run(Finetune(epochs=3), TWO)):
        assert set(account["wall_seconds"]) == set(account["cpu_seconds"]) == {"steps", "hooks", "evaluation"}
        assert account["wall_seconds"]["steps"] > 0
        assert account["peak_memory_bytes"] > 50 * 2**20


# -- resume and purity -------------------------------------------------------------------------------------------------


def timeless(account: dict[str, Any]) -> dict[str, Any]:
    measured_anew = ("wall_seconds", "cpu_seconds", "peak_memory_bytes", "energy_joules")
    return {name: value for name, value in account.items() if name not in measured_anew}


@pytest.mark.parametrize("stop_after", [1, 2, 3, 5, 7, 8, 11])
@pytest.mark.parametrize("strategy", [FOSTER, DarkER, TwoPhases])
def test_the_account_of_a_resumed_run_is_that_of_an_uninterrupted_one(strategy, stop_after):
    def made():
        return strategy() if strategy is TwoPhases else strategy(epochs=2, memory_size=6)

    whole = run(made(), TWO, batch_size=5)
    stopped = make_trainer(made(), TWO, batch_size=5, stop_after=stop_after)
    with pytest.raises(Stopped):
        stopped.run()
    goes_on = run(made(), TWO, batch_size=5, state=stopped.recorder.latest())
    found = {e["experience"]: e["values"] for r in (stopped, goes_on) for k, e in r.recorder.events if k == "measured"}
    assert [timeless(found[i]) for i in (1, 2)] == [timeless(a) for a in accounts(whole)]


class Busy(Finetune):
    """Computes something to make its phases, for their late parts, and after its sixth step."""

    def setup(self):
        self.steps_ = 0

    def phases(self, experience):
        torch.randn(3, 4) @ torch.randn(4, 5)
        return [Phase(name="train", data=lambda: self.late(experience), epochs=4)]

    def late(self, experience):
        torch.randn(6, 4) @ torch.randn(4, 5)
        return DataView(experience.train)

    def after_step(self, batch):
        self.steps_ += 1
        if self.steps_ == 6:
            torch.randn(100, 100) @ torch.randn(100, 100)


@pytest.mark.parametrize("stop_after", [1, 3, 5, 7, 15])
def test_what_a_resume_does_again_is_booked_once(stop_after):
    options = {"batch_size": 4}  # three steps an epoch
    whole = accounts(run(Busy(), TWO, **options))
    assert [a["hook_flops"] for a in whole] == [{"phases": 2 * 60, "start": 2 * 120}] * 2
    stopped = run(Busy(), TWO, stop_after=stop_after, **options)
    goes_on = run(Busy(), TWO, state=stopped.recorder.latest(), **options)
    found = {e["experience"]: e["values"] for r in (stopped, goes_on) for k, e in r.recorder.events if k == "measured"}
    assert [timeless(found[i]) for i in (1, 2)] == [timeless(a) for a in whole]


@pytest.mark.parametrize(
    ("strategy", "backbone"),
    [
        (lambda: Finetune(epochs=2), ("vit_tiny", VIT)),
        (lambda: EWC(epochs=2), ("vit_tiny", VIT)),
        (lambda: ICaRL(epochs=2, memory_size=6), ("vit_tiny", VIT)),
        (lambda: FOSTER(epochs=2, memory_size=6), ("vit_tiny", VIT)),
        (lambda: LayerNormTuning(epochs=2), ("vit_tiny", VIT)),
        (lambda: DER(epochs=2, memory_size=6, masks=True), ("resnet8", {})),
    ],
)
@pytest.mark.filterwarnings("ignore:There is a performance drop")  # of vmap over attention, with and without measuring
def test_measuring_cost_changes_no_bit(strategy, backbone, tmp_path):
    name, options = backbone
    if name == "vit_tiny":  # LayerNorm tuning wants weights from a file
        weights = backbone_config(name, options).build((1, 8, 8)).state_dict()
        save_file(weights, tmp_path / "w.safetensors")
        options = {**options, "weights": str(tmp_path / "w.safetensors")}
    left = []
    for measure in ("none", "cost"):
        trainer = run(strategy(), TWO, backbone=backbone_config(name, options), batch_size=5, measure=measure)
        assert bool(accounts(trainer)) == (measure == "cost")
        states = [strategy_state(s) for s in leaves(trainer.strategy)]
        kept = {
            str(k): {n: torch.as_tensor(c) for n, c in columns.items()} for k, columns in trainer.recorder.kept.items()
        }
        left.append({"network": pack(trainer.strategy.network), "state": states, "predictions": kept})
    assert first_difference(*left) is None


# -- energy ------------------------------------------------------------------------------------------------------------


def test_energy_of_processor_packages_is_read_over_a_counters_end(tmp_path):
    package = tmp_path / "intel-rapl:0"
    package.mkdir()
    (package / "max_energy_range_uj").write_text("10000000\n")

    def shows(joules: float) -> None:
        (package / "energy_uj").write_text(f"{int(joules * 1e6)}\n")

    shows(4)
    meter = EnergyMeter(tmp_path)
    meter.begin(torch.device("cpu"))
    shows(7)
    assert meter.spent() == {"energy_joules": {"intel-rapl:0": 3}}
    shows(1)
    state = meter.state_dict()
    assert state == {"intel-rapl:0": 4}
    other = EnergyMeter(tmp_path)
    other.begin(torch.device("cpu"))
    other.load_state_dict(state)
    shows(2)
    assert other.spent() == {"energy_joules": {"intel-rapl:0": 5}}


def test_without_counters_no_energy_is_told(tmp_path):
    meter = EnergyMeter(tmp_path)
    meter.begin(torch.device("cpu"))
    assert meter.spent() == {}
