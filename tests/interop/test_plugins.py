"""Avalanche's plugins as a strategy: it keeps the contract, resumes to the bit, and refuses what can't be hosted."""

from __future__ import annotations

import configparser
import importlib.util
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

import clframe
from clframe.composite import Composite
from clframe.errors import ConfigurationError
from clframe.interop.avalanche import AvalanchePlugins
from clframe.interop.avalanche.known import HOSTED, REFUSED
from clframe.interop.avalanche.library import require
from clframe.memory import ExemplarMemory
from clframe.models.mlp import MLP
from clframe.strategies.replay import Replay
from clframe.strategy import Batch
from clframe.testing import Bench, parametrize_with_checks, synthetic_stream
from clframe.testing.bench import first_difference
from tests.fakes import make_trainer, run

EWC = {"name": "EWCPlugin", "ewc_lambda": 1.0}
REPLAY = {"name": "ReplayPlugin", "mem_size": 8}
AGEM = {"name": "AGEMPlugin", "patterns_per_experience": 4, "sample_size": 4}
ARGUMENTS: dict[str, dict[str, Any]] = {
    "AGEMPlugin": AGEM,
    "CWRStarPlugin": {},
    "EWCPlugin": EWC,
    "FromScratchTrainingPlugin": {},
    "GDumbPlugin": {"mem_size": 6},
    "GEMPlugin": {"patterns_per_experience": 4, "memory_strength": 0.5},
    "LwFPlugin": {},
    "MASPlugin": {},
    "MIRPlugin": {"batch_size_mem": 2, "mem_size": 8, "subsample": 6},
    "RARPlugin": {"batch_size_mem": 3, "mem_size": 8},
    "RWalkPlugin": {"delta_t": 2},
    "ReplayPlugin": REPLAY,
    "SynapticIntelligencePlugin": {"si_lambda": 1.0},
}


def hosting(*names: str, **options: Any) -> AvalanchePlugins:
    return AvalanchePlugins(plugins=[{**ARGUMENTS[n], "name": n} for n in names], **options)


# -- the contract ---------------------------------------------------------------------------------------------------------


@parametrize_with_checks([hosting("ReplayPlugin", "EWCPlugin", "LwFPlugin", "AGEMPlugin")])
def test_contract(subject: Any, check: Any) -> None:
    """Global generators too: plugins draw from them, each under a seed of its own, and they are put back."""
    check(subject)


KEPT = [n for n in HOSTED if n not in ("SynapticIntelligencePlugin", "EWCPlugin", "LwFPlugin", "AGEMPlugin")]


@pytest.mark.parametrize("name", KEPT)
def test_what_a_plugin_keeps_survives_a_checkpoint(name: str) -> None:
    """Networks, buffers, importances, open loaders: stopped anywhere and resumed, a run ends in the same bits."""
    if name == "GEMPlugin" and importlib.util.find_spec("quadprog") is None:
        pytest.skip("needs the solver quadprog: pip install 'clframe[quadprog]'")
    bench = Bench(hosting(name))
    for steps in (bench.usual.steps // 2, bench.usual.steps - 1):
        stopped = bench.train(stop_after=steps)
        resumed = bench.train(state=stopped.recorder.latest())
        assert first_difference(bench.usual.state, resumed.state) is None


@pytest.mark.parametrize(
    "names", [("AGEMPlugin", "MIRPlugin", "MASPlugin", "RWalkPlugin", "LwFPlugin"), ("GDumbPlugin", "CWRStarPlugin")]
)
def test_a_state_is_restored_to_the_very_values_that_were_packed(names: tuple[str, ...]) -> None:
    """All attributes of all plugins, packed again after a resume, are the same."""
    bench = Bench(hosting(*names))
    for steps in (5, 9):
        saved = bench.train(stop_after=steps).recorder.latest()
        resumed = make_trainer(bench.strategy, bench.stream(), batch_size=4, backbone=bench.backbone, state=saved)
        experience = resumed.setup.stream.experiences[resumed.position.experience]
        resumed.context.experience = experience
        resumed.strategy.phases(experience)  # makes the host anew
        again = resumed.state()["strategies"]
        assert first_difference(saved["strategies"], again) is None
        assert len(str(again)) > 1000


def test_a_plugin_whose_state_needs_pickling_trains_but_says_on_resuming_that_it_cannot(tmp_path: Path) -> None:
    class Odd(AvalanchePlugins):
        """With a plugin of one's own that holds an object."""

        def make_plugins(self, model: Any) -> list[Any]:
            plugin = require("avalanche.core").SupervisedPlugin()
            plugin.helper = Path("somewhere")
            return [plugin]

    trainer = make_trainer(Odd(epochs=2), stop_after=4)
    with pytest.raises(clframe.training.trainer.Stopped):
        trainer.run()
    saved = trainer.recorder.latest()  # type: ignore[attr-defined]
    resumed = make_trainer(Odd(epochs=2), state=saved)
    with pytest.raises(
        ConfigurationError, match=r"can't be resumed, .*can't hold SupervisedPlugin\.helper, a PosixPath"
    ):
        resumed.run()
    assert resumed.counters["steps"] == saved["counters"]["steps"]


def test_two_runs_of_one_object_share_nothing() -> None:
    """Avalanche's own plugin objects carry what they learnt into the next run."""
    strategy = hosting("ReplayPlugin", "EWCPlugin")
    first, second = (run(strategy, backbone=MLP(hidden=[8])) for _ in range(2))
    a, b = (t.strategy.network.state_dict() for t in (first, second))
    assert first_difference(dict(a), dict(b)) is None


# -- what a run is told ---------------------------------------------------------------------------------------------------


def trained(strategy: Any, **options: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return run(strategy, options.pop("stream", None), backbone=MLP(hidden=[8]), **options)


def test_samples_that_plugins_keep_are_known_as_exemplars() -> None:
    trainer = trained(hosting("ReplayPlugin", epochs=1))
    memory = trainer.strategy.memory_
    assert isinstance(memory, ExemplarMemory)
    buffer = trainer.strategy.host.plugins[0].storage_policy.buffer
    assert sorted(buffer.sample_ids) == memory.ids.tolist()
    assert len(memory) == 8
    assert torch.equal(trainer.strategy.exemplars(), memory.ids)
    assert memory.bytes == 8 * (64 + 8)
    assert not len(trained(hosting("EWCPlugin", epochs=1)).strategy.memory_)


def test_replayed_samples_count_as_presented() -> None:
    """Beside the loss (MIR looks at `subsample` ones), and in the loader's batches."""
    plain = trained(hosting("EWCPlugin", epochs=1)).counters
    replay = trained(hosting("ReplayPlugin", epochs=1), batch_size=6).counters
    agem = trained(hosting("AGEMPlugin", epochs=1)).counters
    assert plain["presentations"] == 36
    assert replay["presentations"] == 12 + 2 * (12 + 8)  # two experiences in which the buffer goes through once
    assert agem["presentations"] == 36 + 3 * 4 + 3 * 4  # three steps, four samples of the buffers each


def test_batches_of_a_plugins_own_loader_are_augmented_as_others() -> None:
    seen: list[Batch] = []

    class Watching(AvalanchePlugins):
        """Looks at the batches."""

        def loss_terms(self, batch: Batch) -> dict[str, Any]:
            seen.append(batch)
            return super().loss_terms(batch)

    trained(Watching(plugins=[REPLAY], epochs=1), augmentation="crop_flip")
    batch = seen[-1]
    table = trained(hosting("EWCPlugin", epochs=1)).setup.stream.train
    plain = (table.gather(batch.ids).float() / 255 - 0.5) / 0.25
    assert len(batch.ids) > 4
    assert torch.equal(batch.y, table.targets[batch.ids])
    assert not torch.allclose(batch.x, plain.permute(0, 3, 1, 2))


@pytest.mark.parametrize("other", ["crt", "tau_norm", "ewc"])
def test_it_composes_with_other_strategies(other: str) -> None:
    """A classifier stage finds the exemplars that a plugin keeps; another's loss terms stand beside the plugins'."""
    part = clframe.registry.load("strategy", other)()
    trainer = trained(Composite(parts=[hosting("ReplayPlugin", "LwFPlugin", epochs=1), part]))
    events = trainer.recorder.events  # type: ignore[attr-defined]
    phases = [e["phase"] for kind, e in events if kind == "epoch" and e["experience"] == 3]
    assert list(dict.fromkeys(phases)) == (["train", "crt"] if other == "crt" else ["train"])
    assert trainer.strategy.parts[0].host.clock.train_exp_counter == 3
    assert trainer.strategy.parts[0].host.clock.train_iterations == 9
    terms = [e["terms"] for kind, e in events if kind == "epoch" and e["phase"] == "train"]
    assert all({"classification", "plugins"} <= set(t) for t in terms)
    assert terms[0]["plugins"] == 0
    assert terms[2]["plugins"] > 0
    assert len(terms[2]) == (3 if other == "ewc" else 2)


def test_a_multi_head_is_trained_within_the_task() -> None:
    stream = synthetic_stream(setting="task")
    for names in (("EWCPlugin",), ("LwFPlugin",), ("AGEMPlugin",), ("ReplayPlugin",)):
        trainer = trained(hosting(*names, epochs=2), stream=stream, head={"name": "multi"})
        assert len(trainer.strategy.network.classifier.tasks) == 3


# -- what is refused ------------------------------------------------------------------------------------------------------


def test_every_plugin_of_avalanches_is_hosted_or_refused_with_its_reason() -> None:
    module = require("avalanche.training.plugins")
    base = require("avalanche.core").BasePlugin
    plugins = {n for n, v in vars(module).items() if isinstance(v, type) and issubclass(v, base)}
    plugins -= {"SupervisedPlugin", "BasePlugin", "BaseSGDPlugin"}
    assert plugins <= set(HOSTED) | set(REFUSED)
    assert set(HOSTED) <= plugins
    assert not set(HOSTED) & set(REFUSED)
    assert set(ARGUMENTS) == set(HOSTED)


REFUSALS: list[tuple[list[Any], str]] = [
    (["BiCPlugin"], r"BiCPlugin can't run in Avalanche 0\.6\.0 \(.*read-only\): use clframe's bic\.$"),
    (["GSS_greedyPlugin"], r"use clframe's replay with form=step"),
    (["ICaRL"], r"ICaRL is no plugin: .*run_avalanche.*, or use clframe's icarl\.$"),
    (["CoPEPlugin"], r"run it with run_avalanche\.$"),
    (["EvaluationPlugin"], r"isn't needed"),
    (["SynapticIntelligencePlugin"], r"no effect on the CPU in Avalanche 0\.6\.0, .*: use clframe's si, or a GPU\.$"),
    (["EWC"], r"received 'EWC'\. Did you mean 'EWCPlugin'\?"),
    ([{"name": "EWCPlugin"}], r"EWCPlugin refuses its arguments \(.*'ewc_lambda'\)\.$"),
    ([{"name": "EWCPlugin", "ewc_lamda": 1}], r"EWCPlugin has no argument 'ewc_lamda'\. Did you mean 'ewc_lambda'\?"),
    ([{"name": "ReplayPlugin", "x": 1}], r"It takes: mem_size, batch_size, batch_size_mem, "),
    ([{"name": "EWCPlugin", "ewc_lambda": 1, "mode": "online"}], r"refuses its arguments \(You need to set"),
    ([7], r"expected names, or mappings of a name and arguments, received 7"),
    ([], r"expected at least one of AGEMPlugin, "),
]


@pytest.mark.parametrize(("plugins", "message"), REFUSALS, ids=lambda v: str(v)[:40])
def test_what_cannot_be_hosted_is_refused_before_anything_is_computed(
    plugins: list[Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigurationError, match=message) as caught:
        clframe.run(strategy=AvalanchePlugins(plugins=plugins), run_dir=tmp_path / "run", progress=False)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_a_plugin_without_its_solver_names_the_extra_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Avalanche itself asks for solvers by a spelling that older pips don't match, and GEM fails where it is first solved."""
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *more: None if name == "quadprog" else found(name, *more)
    )
    with pytest.raises(ConfigurationError, match=r"GEMPlugin needs the package quadprog, .*'clframe\[quadprog\]'\.$"):
        run(hosting("GEMPlugin"))
    settings = configparser.ConfigParser()
    settings.read(Path(__file__).parents[2] / "setup.cfg")
    extras = settings["options.extras_require"]
    for needed in {known.needs for known in HOSTED.values() if known.needs}:
        assert extras[needed].split() == [line for line in extras["dev"].split() if line.startswith(needed)]


def test_what_does_not_fit_the_stream_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="EWCPlugin must be told where a task ends"):
        run(hosting("EWCPlugin"), {"boundaries": False})
    with pytest.raises(ConfigurationError, match="RARPlugin gives its model no task labels"):
        run(hosting("RARPlugin"), {"setting": "task"})
    with pytest.raises(ConfigurationError, match=r"loss_over: .* expected auto or seen"):
        run(hosting("EWCPlugin", loss_over="experience"))
    with pytest.raises(ConfigurationError, match="can't be composed"):
        run(Composite(parts=[hosting("EWCPlugin"), Replay(memory_size=8)]))


def test_a_plugin_that_changes_evaluation_or_stops_training_is_refused() -> None:
    core = require("avalanche.core")

    class Scores(core.SupervisedPlugin):  # type: ignore[misc]
        def after_eval_forward(self, strategy: Any, **_: Any) -> None:
            strategy.mb_output = strategy.mb_output * 2

    class Stops(core.SupervisedPlugin):  # type: ignore[misc]
        def after_training_iteration(self, strategy: Any, **_: Any) -> None:
            strategy.stop_training()

    def mine(plugin: Any) -> AvalanchePlugins:
        return type("Mine", (AvalanchePlugins,), {"make_plugins": lambda self, model: [plugin()], "__doc__": "Mine."})(
            epochs=1
        )

    with pytest.raises(ConfigurationError, match=r"Scores takes part in Avalanche's evaluation \(after_eval_forward\)"):
        run(mine(Scores))
    with pytest.raises(clframe.ClframeError, match="asked to stop training early"):
        run(mine(Stops))


def test_the_command_line_and_a_configuration_file_name_plugins(tmp_path: Path, capsys: Any) -> None:
    from clframe.cli import main

    run_dir = tmp_path / "run"
    plugins = "[{name: EWCPlugin, ewc_lambda: 0.4}, {name: ReplayPlugin, mem_size: 20}]"
    name = "clframe.interop.avalanche:AvalanchePlugins"
    arguments = ["--strategy", name, "--strategy.plugins", plugins, "--epochs", "1", "--quiet"]
    assert main(["run", *arguments, "--run-dir", str(run_dir)]) == 0
    first = clframe.load(run_dir)
    assert first.config["strategy"]["plugins"][1] == {"name": "ReplayPlugin", "mem_size": 20}
    assert main(["run", "--config", str(run_dir / "config.yaml"), "--run-dir", str(tmp_path / "again"), "--quiet"]) == 0
    again = clframe.load(tmp_path / "again")
    assert again.metric("final_accuracy") == first.metric("final_accuracy")
    assert torch.equal(again.model.classifier.weight, first.model.classifier.weight)
    capsys.readouterr()
