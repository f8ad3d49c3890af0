"""Which of Avalanche's plugins can be part of a clframe run, and why the others can't."""

from __future__ import annotations

from dataclasses import dataclass

from clframe.errors import ConfigurationError, did_you_mean

__all__ = ["HOSTED", "REFUSED", "Hosted", "hosted"]


@dataclass(frozen=True)
class Hosted:
    """What is to be known of a plugin that can be hosted.

    Attributes:
        like: clframe's own strategy of that kind; empty where there is none.
        note: Where it differs from what its name says, in a few words.
        boundaries: Whether it must be told where a task ends.
        loader: Whether it brings a loader of its own, which `before_training_exp` makes of its buffer and draws nothing for.
        tasks: Whether it passes task labels on to the model.
        needs: A solver that it can't do without, also the name of clframe's extra that installs it.
        idle_on_cpu: Whether it has no effect on the CPU.
    """

    like: str = ""
    note: str = ""
    boundaries: bool = True
    loader: bool = False
    tasks: bool = True
    needs: str = ""
    idle_on_cpu: bool = False


HOSTED: dict[str, Hosted] = {
    "AGEMPlugin": Hosted("agem", "a fixed number of samples of every experience"),
    "CWRStarPlugin": Hosted("", "trains only the classifier from the second experience on"),
    "EWCPlugin": Hosted("ewc", "importance of the batch's mean gradient: it depends on the batch size"),
    "FromScratchTrainingPlugin": Hosted("shrink_perturb", "a classifier that grew keeps its rows"),
    "GDumbPlugin": Hosted("gdumb"),
    "GEMPlugin": Hosted("", "keeps copies of its samples", needs="quadprog"),
    "LwFPlugin": Hosted("lwf"),
    "MASPlugin": Hosted("mas"),
    "MIRPlugin": Hosted("", "plain step at the first parameter group's rate", boundaries=False),
    "RARPlugin": Hosted("", "its adversarial images are clamped to [0, 1]", boundaries=False, loader=True, tasks=False),
    "RWalkPlugin": Hosted("", "trains in eval mode; delta_t must be at most the steps of an experience"),
    "ReplayPlugin": Hosted("replay", boundaries=False, loader=True),
    "SynapticIntelligencePlugin": Hosted("si", "importance clipped at 0.001", idle_on_cpu=True),
}
"""By class name, as in `avalanche.training.plugins`."""

_WHOLE = "is no plugin: run it as a whole with clframe.interop.avalanche.run_avalanche"
_OWN_METRICS = "isn't needed: clframe keeps every prediction and computes the metrics of them"
_CLASSIFIER = "needs a model with an eval_classifier of Avalanche's: run it with run_avalanche, or use clframe's nmc"

REFUSED: dict[str, str] = {
    "BiCPlugin": "can't run in Avalanche 0.6.0 (it assigns to experience.dataset, which is read-only): use clframe's bic",
    "CoPEPlugin": "takes the model's last layer apart and stops training early, which a growing network and clframe's trainer "
    "don't allow: run it with run_avalanche",
    "EarlyStoppingPlugin": "stops training early, which clframe's trainer doesn't do: choose the number of epochs",
    "EvaluationPlugin": _OWN_METRICS,
    "FeatureDistillationPlugin": "overwrites model.features, and its form mse can't run: use clframe's featkd",
    "GSS_greedyPlugin": "fails in Avalanche 0.6.0 as long as its buffer holds less than a batch: use clframe's replay with "
    "form=step and policy=reservoir or class_balanced",
    "GenerativeReplayPlugin": "trains a second Avalanche strategy on images of 28x28 pixels: run it with run_avalanche",
    "LFLPlugin": "needs a model derived from avalanche.models.base_model.BaseModel: use clframe's featkd",
    "LRSchedulerPlugin": "isn't needed: set optimizer.schedule",
    "TrainGeneratorAfterExpPlugin": "belongs to generative replay: run that with run_avalanche",
    **dict.fromkeys(("CurrentDataNCMUpdate", "MemoryNCMUpdate", "NCMOracle"), _CLASSIFIER),
    **dict.fromkeys(("CurrentDataFeCAMUpdate", "MemoryFeCAMUpdate", "FeCAMOracle"), _CLASSIFIER),
    "ICaRL": f"{_WHOLE} (it needs a classic benchmark of Avalanche's), or use clframe's icarl",
    "DER": f"{_WHOLE}, or use clframe's dark_er",
    "ER_ACE": f"{_WHOLE}, or use clframe's er_ace",
    "JointTraining": f"{_WHOLE}, or use clframe's joint",
    "Cumulative": f"{_WHOLE}, or use clframe's cumulative",
    **dict.fromkeys(("ER_AML", "SCR", "MER", "StreamingLDA", "LaMAML", "FeatureReplay", "LearningToPrompt"), _WHOLE),
}
"""By class name, the rest of a sentence."""


def hosted(name: str) -> Hosted:
    """Return what is known of a plugin.

    Raises:
        ConfigurationError: It can't be hosted, or there is no such plugin.
    """
    if name in HOSTED:
        return HOSTED[name]
    for refused in (name, f"{name}Plugin"):
        if refused in REFUSED:
            raise ConfigurationError(f"strategy.plugins: {name} {REFUSED[refused]}.")
    hint = did_you_mean(f"{name.removesuffix('Plugin')}Plugin", HOSTED) or f" There are: {', '.join(HOSTED)}."
    raise ConfigurationError(
        f"strategy.plugins: expected plugins of avalanche.training.plugins that can be hosted, received {name!r}.{hint} For one "
        "of your own, override make_plugins."
    )
