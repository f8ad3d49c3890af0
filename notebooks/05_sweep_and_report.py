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
# # A sweep and its report
#
# Four methods, several seeds, hyperparameters that nobody chose by looking at what counts, and a report that says which differences
# the seeds support. On a laptop it takes about a minute. The next cell switches the whole notebook to CIFAR-100.

# %%
import json
from pathlib import Path

import matplotlib.pyplot as plt

import clframe

protocol = {"scenario": "split_digits", "backbone": "mlp", "epochs": 8}
# protocol = {"scenario": "split_cifar100", "backbone": "resnet32", "epochs": 70}  # with the data at hand, and a GPU

# %% [markdown]
# ## A plan
#
# A plan is a mapping, in Python or in YAML. Every combination of its lists is a run; options are named as on the command line. Here
# the strength of EWC and of LwF is left to a *search*: it knows the first two experiences alone, holds ten training samples of every
# class out of a trial's training, and scores a trial on those. A trial sees no test sample, and no experience after the second.

# %%
strengths = [0.1, 1.0, 10.0]
plan = {
    "out": "study",
    "base": protocol,
    "strategies": ["finetune", "ewc", "lwf", {"name": "replay", "memory_size": 100}],
    "seeds": [0, 1, 2],
    "processes": 2,
    "search": {
        "experiences": 2,
        "valid_per_class": 10,
        "method": "grid",
        "space": {"strategy.strength": strengths},
    },
}
sweep = clframe.sweep(plan, progress=False)
sweep.table()

# %% [markdown]
# Every run is a directory under `study`, named by what it is. The same call again repeats nothing: what has finished is skipped, what was
# stopped goes on, what failed is tried again.

# %%
again = clframe.sweep(plan, progress=False)
assert [run.state for run in again.runs] == ["finished"] * 12

# %% [markdown]
# ## What was chosen, and what that cost
#
# Trials cost optimiser steps, and these belong to the cost of a method that has something to choose. Fine-tuning and replay had
# nothing, so there was no search for them.

# %%
sweep.search_table()

# %% [markdown]
# All trials are on record, not only the one that won. One whose training diverges has no score and counts as worse than any other.

# %%
figure, axes = plt.subplots(figsize=(5, 3), layout="constrained")
for path in sorted(Path("study/search").glob("*.json")):
    search = json.loads(path.read_text())
    values = [trial["values"]["strategy.strength"] for trial in search["trials"]]
    scores = [float("nan") if trial["score"] is None else 100 * trial["score"] for trial in search["trials"]]
    (line,) = axes.plot(values, scores, marker="o", label=search["strategy"])
    best = search["chosen"]["strategy.strength"]
    axes.plot(best, scores[values.index(best)], "o", markersize=11, fillstyle="none", color=line.get_color())
axes.set(xscale="log", xlabel="strength", ylabel="average incremental\naccuracy, validation [%]")
axes.legend();

# %% [markdown]
# The ring is what the runs over the whole stream were given; where values tie, the first. Two experiences say little about five: a value that is best early
# need not be best at the end. That is the price of not looking, and it belongs into the result, as it would in practice.
#
# ## The comparison
#
# Runs that differ in the seed alone are one row. A rank is only as good as its support: a method stands below another if the
# seeds support the difference, tested seed by seed and corrected for the number of pairs.

# %%
comparison = clframe.compare([run.directory for run in sweep.runs])
comparison.table

# %% [markdown]
# Every pair, with the interval of its difference and the verdict. *No* doesn't mean equal: more seeds may tell.

# %%
comparison.pairwise()

# %%
comparison.plot_differences()

# %%
comparison.plot_curves()

# %% [markdown]
# Another metric may rank otherwise; it is corrected for its own pairs.

# %%
comparison.pairwise("forgetting_max")

# %% [markdown]
# ## One page for all of it
#
# The page holds the tables, every figure for which the runs have numbers, the settings that differ and what the runs ran on. It needs no
# network. `clframe compare study/split_* --out report.html` makes the same one.

# %%
page = comparison.save("report.html")
text = page.read_text()
print(f"{page}: {len(text) // 1000} kB, {text.count('<svg')} figures, {text.count('<table')} tables")
assert "http://" not in text.replace("http://www.w3.org", "") and "<script src" not in text

# %% [markdown]
# For a paper, `comparison.save("table.tex")` writes the tables and `comparison.plot_curves().savefig("curves.pdf")` a figure of a
# column's width.

# %%
print(comparison.render("latex", table="leaderboard"))
