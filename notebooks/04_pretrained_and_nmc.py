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
# # Pretrained models and the nearest class mean
#
# Before a method for pretrained networks is believed, it has to beat two things that hardly train: a classifier on frozen features,
# and the nearest class mean (NMC). Here a small network is pretrained on four digits, and then meets the other six.

# %%
import time

import clframe

data, backbone = "split_digits", {"name": "resnet8"}
base, new = [0, 1, 2, 3], [4, 5, 6, 7, 8, 9]
# data, backbone, base, new = "split_cifar100", {"name": "resnet32"}, list(range(40)), list(range(40, 100))

# %% [markdown]
# ## Pretraining
#
# The file says where it comes from: data, classes, recipe, seed, accuracy. A run on classes that the weights have seen warns.

# %%
provenance = clframe.pretrain(
    out="base.safetensors",
    scenario={"name": data, "classes": base},
    backbone=backbone,
    epochs=10,
    progress=False,
)
print(f"{100 * provenance['accuracy']:.1f} % on the test images of its {len(provenance['classes'])} classes")

# %% [markdown]
# ## Four ways to use it
#
# Six classes come two at a time. Fine-tuning changes every weight; the linear probe trains a classifier on frozen features; NMC
# trains nothing at all; SimpleCIL is NMC with cosine prototypes.

# %%
protocol = {
    "scenario": {"name": data, "classes": new, "experiences": 3},
    "backbone": {**backbone, "weights": "base.safetensors"},
    "epochs": 20,
}
runs = {}
for name in ("finetune", "linear_probe", "nmc", "simplecil"):
    started = time.process_time()
    runs[name] = clframe.run(**protocol, strategy=name, progress=False)
    print(f"{name:14} {100 * runs[name].metric('final_accuracy'):5.1f} %   {time.process_time() - started:5.1f} s of CPU")

# %%
runs["nmc"].plot_matrix()

# %% [markdown]
# ## What NMC promises
#
# Class means don't depend on the order in which the classes came. The final accuracy is the same for every order:

# %%
for order in (new, new[::-1]):
    scenario = {"name": data, "classes": new, "experiences": 3, "order": order}
    run = clframe.run(**{**protocol, "scenario": scenario}, strategy="nmc", progress=False)
    print(order, run.metric("final_accuracy"))

# %% [markdown]
# Features of a frozen network are computed once and kept on disk, under a name made of the weights, the preprocessing and the precision.
# A stream of features is a stream as any other: hundreds of runs on it take seconds.
