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
# # Forgetting, plasticity and representation of three methods
#
# A low accuracy at the end has three possible causes: the classifier forgot, the features were overwritten, or the network
# never learnt the new task well. They ask for different remedies, and one number can't tell them apart.

# %%
import clframe

protocol = {"scenario": "split_digits", "backbone": "resnet8", "epochs": 5, "keep_models": True}
# protocol = {"scenario": "split_cifar100", "backbone": "resnet32", "epochs": 70, "keep_models": True}

methods = {
    "finetune": {"name": "finetune"},
    "replay": {"name": "replay", "memory_size": 100},
    "der": {"name": "der", "memory_size": 100, "balanced_epochs": 5},
}
runs = {
    (name, seed): clframe.run(**protocol, strategy=options, seed=seed, progress=False)
    for name, options in methods.items()
    for seed in range(3)
}
comparison = clframe.compare(list(runs.values()))
comparison

# %% [markdown]
# ## Forgetting against plasticity
#
# To the right: how well each task was learnt when it came. Downwards: how little of it was lost afterwards.

# %%
comparison.plot_tradeoff()

# %% [markdown]
# ## What the extractor learnt
#
# `keep_models` kept the network after every experience. One linear probe is fitted on each of them, on the training images of *all*
# classes: what could a perfect classifier stage read from these features? Its accuracy per task is the probe matrix.

# %%
reports = {name: runs[name, 0].representation(progress=False) for name in methods}
reports["finetune"].plot_probe_matrix()

# %%
reports["der"].plot_probe_matrix()

# %% [markdown]
# Fine-tuning's features say much more than its classifier: most of what it forgot sits in the last layer, the rest in the features.
# Replay and DER keep features from which nearly everything can be read; what they lack is a better classifier stage.

# %%
for name, report in reports.items():
    final = runs[name, 0].metric("final_accuracy")
    print(f"{name:10} accuracy {100 * final:5.1f} %, a probe on the same features {100 * report.probe_accuracy[-1]:5.1f} %")

# %% [markdown]
# ## Which layers moved
#
# CKA compares what a layer says about the images of the first task now and right after that task: 1 is the same up to a
# rotation. DER's first branch is frozen, and stays.

# %%
reports["finetune"].plot_cka()

# %%
reports["replay"].plot_drift()
