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
# # A first run and its metrics
#
# A model learns the ten digits in five experiences, two digits at a time. What does it keep? Everything here takes seconds on
# a laptop and downloads nothing. The next cell switches the whole notebook to CIFAR-100.

# %%
import clframe

protocol = {"scenario": "split_digits", "backbone": "mlp", "epochs": 10}
# protocol = {"scenario": "split_cifar100", "backbone": "resnet32", "epochs": 70}  # with the data at hand, and a GPU

# %% [markdown]
# ## The stream
#
# A scenario cuts a data set into experiences. Nothing is trained to look at it.

# %%
stream = clframe.open_scenario(protocol["scenario"])
clframe.plot_stream(stream)

# %% [markdown]
# ## Fine-tuning forgets
#
# `clframe.run` trains, scores every test image of the classes seen after each experience, and keeps everything in a run
# directory. A run shows itself.

# %%
finetune = clframe.run(**protocol, strategy="finetune", progress=False)
finetune

# %% [markdown]
# The accuracy matrix says when what was forgotten: row *i* is the model after *i* experiences, column *j* the test images of
# task *j*. Only the diagonal and what is left of it has been seen.

# %%
finetune.plot_matrix()

# %% [markdown]
# ## A memory helps
#
# Replay mixes a few stored images of every past class into each batch.

# %%
replay = clframe.run(**protocol, strategy={"name": "replay", "memory_size": 100}, progress=False)
replay.plot_matrix()

# %%
replay.plot_curve()

# %% [markdown]
# ## Every metric by its full name
#
# There is no metric called *forgetting*: several definitions are in use, and they differ. `clframe describe metric NAME` gives the
# formula and its source; `docs/metrics.md` lists all of them.

# %%
for name in ("final_accuracy", "average_incremental_accuracy", "forgetting_max", "forgetting_first", "learning_accuracy"):
    print(f"{name:30} fine-tuning {finetune.metric(name):7.3f}   replay {replay.metric(name):7.3f}")

# %% [markdown]
# A prediction is made among a set of classes. Among *all* classes seen (`global`) fine-tuning knows the last two digits and
# little else; told which pair a digit belongs to (`local`), it still tells many apart. Both numbers come from one run.

# %%
for restriction in ("global", "local"):
    print(restriction, round(finetune.metric("final_accuracy", restriction=restriction), 3))

# %% [markdown]
# What a run can't give is absent with a reason, never zero:

# %%
finetune.report.absent["intransigence"]

# %% [markdown]
# ## Where the mistakes are
#
# Class-incremental accuracy is the product of finding the right task and telling its classes apart. Forgetting here is
# almost all about the first factor.

# %%
for run in (finetune, replay):
    task, within = run.metric("task_identification")[-1], run.metric("within_task_accuracy")[-1]
    print(f"{run.config['strategy']['name']:10} right task {task:.3f} × right class within it {within:.3f} = {task * within:.3f}")

# %% [markdown]
# ## Everything is in a directory
#
# The numbers can be computed again from the kept predictions, the model can be loaded, and a run that was stopped goes on with
# `clframe.resume`.

# %%
again = clframe.load(replay.path)
print(again)
sorted(p.name for p in again.path.iterdir())

# %%
images = stream.test.images.gather(stream.tasks[0].test[:5])
again.predict(images)
