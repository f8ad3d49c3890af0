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
# # From an idea to a strategy of your own
#
# The idea: old exemplars should not only be trained on; their *features* should stay where they were. We write it, check that
# it keeps the contract, and see whether it helps, over seeds.

# %%
import matplotlib.pyplot as plt
import torch

import clframe

protocol = {"scenario": "split_digits", "backbone": "mlp", "epochs": 10}
# protocol = {"scenario": "split_cifar100", "backbone": "resnet32", "epochs": 70}

# %% [markdown]
# ## One loss term
#
# A strategy overrides only what makes it different from plain fine-tuning. Hyperparameters are fields: the command line, YAML and
# the record of the run follow from them. State that must survive a stopped run lives in attributes whose names end in `_`.
#
# This one composes with any other: it has no memory of its own, and adds a term for the samples that come from one.


# %%
class FeatureAnchor(clframe.Strategy):
    """Replayed samples keep the features that the network gave them before the experience.

    L = L_rest + strength · mean over replayed samples of ‖f(x) − f_old(x)‖²
    """

    strength: float = clframe.field(default=0.003, ge=0, help="Weight of the term; 0 leaves the other part alone.")

    def setup(self):
        self.old_ = None

    def extra_losses(self, batch, output):
        if self.old_ is None:
            return {}
        replayed = (batch.y < self.old_.num_classes).float()  # a weight, not an index: nothing waits for a GPU
        with torch.no_grad():
            before = self.old_.features(batch.x)
        moved = (output.features - before).square().sum(dim=1)
        return {"feature_anchor": self.strength * (replayed * moved).sum() / replayed.sum().clamp(min=1)}

    def after_experience(self, experience):
        self.old_ = self.network.frozen_copy()


# %% [markdown]
# `frozen_copy` is what teachers are made with. Registered, the strategy has a name, and composes: `replay+feature_anchor` is
# replay whose loss has one more term. Options go to the part that knows them.

# %%
clframe.register("strategy", "feature_anchor", FeatureAnchor)

run = clframe.run(
    **protocol,
    strategy={"name": "replay+feature_anchor", "memory_size": 100},
    progress=False,
)
run

# %% [markdown]
# ## Does it keep the contract?
#
# The conformance suite checks what the engine relies on: a stopped run resumes with the same bits, predicting changes nothing,
# state can be saved, the limit of what is promised by the tags, and more. For a file of your own the command is
# `clframe check my_method.py:FeatureAnchor`.

# %%
from clframe.testing import check_strategy

check_strategy(FeatureAnchor())
print("every check passed")

# %% [markdown]
# ## A limit case is a test
#
# With strength 0 the method must be plain replay, bit for bit. Such laws catch more mistakes than any accuracy.

# %%
options = {"memory_size": 100, "strength": 0.0}
zero = clframe.run(**protocol, strategy={"name": "replay+feature_anchor", **options}, progress=False)
plain = clframe.run(**protocol, strategy={"name": "replay", "memory_size": 100}, progress=False)
assert all(torch.equal(a, b) for a, b in zip(zero.model.parameters(), plain.model.parameters(), strict=True))

# %% [markdown]
# ## Does it help?
#
# One seed is an anecdote. Three are the least with which a difference can be called supported at all.

# %%
methods = {
    "replay": {"name": "replay", "memory_size": 100},
    "replay + anchor": {"name": "replay+feature_anchor", "memory_size": 100},
}
runs = {
    name: [clframe.run(**protocol, strategy=options, seed=seed, progress=False) for seed in range(3)]
    for name, options in methods.items()
}
clframe.compare([run for group in runs.values() for run in group])

# %%
figure, axes = plt.subplots(figsize=(5, 3), layout="constrained")
for name, group in runs.items():
    curves = torch.tensor([run.metric("seen_accuracy") for run in group])
    steps = range(1, curves.shape[1] + 1)
    (line,) = axes.plot(steps, 100 * curves.mean(0), marker="o", label=name)
    axes.fill_between(steps, 100 * curves.amin(0), 100 * curves.amax(0), alpha=0.2, color=line.get_color())
axes.set(xlabel="experiences", ylabel="accuracy on all classes seen [%]", xticks=list(steps))
axes.legend();

# %% [markdown]
# Whatever the table says, it says with its seeds: a difference that they don't support is written as such.
