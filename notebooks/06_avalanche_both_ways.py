# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Avalanche, both ways
#
# clframe and [Avalanche](https://avalanche.continualai.org) 0.6.0 exchange streams in both directions, and a clframe run can train with
# Avalanche's plugins. Wherever both compute the same thing, this notebook checks that they agree. On a laptop it takes half a
# minute. The next cell switches it to CIFAR-100.

# %%
import warnings

import torch

import clframe
from clframe.interop.avalanche import AvalanchePlugins, from_avalanche, run_avalanche, to_avalanche
from clframe.models import build_backbone

scenario, backbone, epochs = "split_digits", "mlp", 5
# scenario, backbone, epochs = "split_cifar100", "resnet32", 70  # with the data at hand, and a GPU

# %% [markdown]
# ## A clframe stream, trained by Avalanche
#
# `to_avalanche` makes a benchmark with the streams `train` and `test`. Labels, class timeline and task labels are where Avalanche's
# strategies look for them. Nothing is copied: images are read from the stream when they are asked for.

# %%
stream = clframe.open_scenario(scenario)
benchmark = to_avalanche(stream)
for experience in benchmark.train_stream:
    print(experience.current_experience, experience.classes_in_this_experience, len(experience.dataset), "samples")

# %% [markdown]
# An Avalanche strategy, as its users write it: a model, an optimiser, an evaluator, and a loop over experiences.

# %%
from avalanche.evaluation.metrics import accuracy_metrics, forgetting_metrics
from avalanche.training.plugins import EvaluationPlugin
from avalanche.training.supervised import Naive, Replay

optimizer = {"lr": 0.02, "momentum": 0.9, "weight_decay": 0.0}


def make(strategy, **options):
    """A function that makes an Avalanche strategy for a stream."""

    def made(stream):
        body = build_backbone(backbone, {}, stream.shape)
        model = torch.nn.Sequential(body, torch.nn.Linear(body.feature_dim, stream.num_classes))
        return strategy(
            model=model,
            optimizer=torch.optim.SGD(model.parameters(), **optimizer),
            criterion=torch.nn.CrossEntropyLoss(),
            train_mb_size=32,
            train_epochs=epochs,
            eval_mb_size=100,
            evaluator=EvaluationPlugin(accuracy_metrics(stream=True), forgetting_metrics(stream=True), loggers=[]),
            **options,
        )

    return made


torch.manual_seed(0)
with warnings.catch_warnings(record=True):  # Avalanche's own, of what its next version removes
    strategy = make(Replay, mem_size=100)(stream)
    for experience in benchmark.train_stream:
        strategy.train(experience)
        said = strategy.eval(benchmark.test_stream)
{name: round(value, 4) for name, value in said.items()}

# %% [markdown]
# ## The same as a clframe run
#
# `run_avalanche` leaves the training to Avalanche and keeps what the strategy predicts: every metric, figure and table of clframe follows
# from that. Where Avalanche's own metrics are the usual ones (one stream, whole evaluations, no task that returns)
# both say the same.

# %%
strategies = []


def watched(stream):
    strategies.append(make(Replay, mem_size=100)(stream))
    return strategies[-1]


run = run_avalanche(watched, scenario=scenario, run_dir="watched", progress=False)
theirs = strategies[0].evaluator.get_last_metrics()
for ours, start in [("final_accuracy", "Top1_Acc_Stream/eval"), ("forgetting_first", "StreamForgetting/eval")]:
    value = next(v for name, v in theirs.items() if name.startswith(start))
    print(f"{ours:18} clframe {run.metric(ours):.6f}   Avalanche {value:.6f}")
    assert abs(run.metric(ours) - value) < 1e-6

# %%
run.plot_matrix()

# %% [markdown]
# ## An Avalanche benchmark in clframe
#
# Here Avalanche cuts the same images by itself, with a class order of its own. `from_avalanche` takes any benchmark as a stream, and
# any strategy of clframe's runs on it.

# %%
from avalanche.benchmarks import class_incremental_benchmark
from avalanche.benchmarks.utils import concat_datasets

parts = {
    name: concat_datasets([experience.dataset for experience in split])
    for name, split in (("train", benchmark.train_stream), ("test", benchmark.test_stream))
}
theirs = class_incremental_benchmark(parts, num_experiences=len(stream.experiences), seed=7)
taken = from_avalanche(theirs)
print("class order:", taken.class_order)
clframe.plot_stream(taken)

# %%
protocol = {"backbone": backbone, "epochs": epochs, "batch_size": 32, "optimizer": optimizer, "progress": False}
replay = {"name": "replay", "memory_size": 100, "form": "step"}
clframe.run(**protocol, scenario=taken, strategy=replay)

# %% [markdown]
# There and back is the same stream, to the bit.

# %%
assert from_avalanche(to_avalanche(stream)).fingerprint == stream.fingerprint

# %% [markdown]
# ## An Avalanche plugin in a clframe run
#
# `AvalanchePlugins` calls a plugin's hooks in Avalanche's order; data, optimiser, scoring, checkpoints and resuming are clframe's. It
# is registered here under a short name for the tables. A limit case first: EWC without a penalty must be fine-tuning, bit for bit, with Avalanche's plugin as with our own.

# %%
clframe.register("strategy", "avalanche_plugins", AvalanchePlugins)
protocol["scenario"] = scenario


def hosted(*plugins):
    return {"name": "avalanche_plugins", "plugins": list(plugins)}


plain = clframe.run(**protocol, strategy="finetune")
for idle in (hosted({"name": "EWCPlugin", "ewc_lambda": 0.0}), {"name": "ewc", "strength": 0.0}):
    run = clframe.run(**protocol, strategy=idle)
    assert all(torch.equal(a, b) for a, b in zip(plain.model.parameters(), run.model.parameters(), strict=True))

# %% [markdown]
# Then replay in three ways: clframe's own, Avalanche's plugin in clframe's loop, and Avalanche's strategy in Avalanche's loop. They draw
# other random numbers, and a network whose classifier grows begins otherwise than one that has all outputs at once. So the
# numbers can't be equal; the question is whether the seeds tell them apart.

# %%
plugin = hosted({"name": "ReplayPlugin", "mem_size": 100})
runs = []
for seed in range(3):
    runs.append(clframe.run(**protocol, strategy=replay, seed=seed))
    runs.append(clframe.run(**protocol, strategy=plugin, seed=seed))
    for strategy, options in ((Replay, {"mem_size": 100}), (Naive, {})):
        runs.append(run_avalanche(make(strategy, **options), scenario=scenario, seed=seed, progress=False))
comparison = clframe.compare(runs)
comparison.table

# %%
comparison.plot_curves()

# %%
comparison.pairwise()

# %% [markdown]
# `docs/avalanche.md` lists the plugins that can be hosted, how each differs from clframe's own method of that name, and why some are
# refused.
