"""Hyperparameters chosen honestly: on the first experiences alone, by validation samples held out of training.

The protocol is that of Chaudhry et al., *Efficient Lifelong Learning with A-GEM* (ICLR 2019, section 2): the stream's
first experiences are for choosing, by as many passes as it takes, and no test sample is looked at. There they are left
out of the stream that counts afterwards; here the runs begin with them, as the benchmarks of the literature state.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

from clframe.config import merged, resolve
from clframe.errors import ConfigurationError, did_you_mean
from clframe.launch.proposals import Dimension, Proposer, dimension, proposer
from clframe.launch.sweep_run import SweepRun
from clframe.metrics import CATALOGUE
from clframe.spec import Configurable, field, to_dict
from clframe.tracking.files import read_json, write_json
from clframe.tracking.rundir import run_name

__all__ = ["Search", "SearchOptions", "nested"]

_FIXED = ("scenario", "seed", "init_seed", "data_seed", "first_experiences", "scored_on")
"""What a search may not touch: the problem, and how it is scored."""
_TRIALS = 20


class SearchOptions(Configurable):
    """How hyperparameters are chosen, for each combination of a plan but the seeds."""

    space: dict[str, Any] = field(help="By dotted option: a list of values, or {low, high} with log: true or a step.")
    metric: str = field(default="average_incremental_accuracy", help="What is to be best on the validation samples.")
    method: Literal["tpe", "random", "grid"] = field(
        default="tpe", help="tpe and random draw with Optuna; grid tries every combination of listed values."
    )
    trials: int | None = field(default=None, ge=1, help=f"Combinations tried; none: {_TRIALS}, and of a grid all.")
    experiences: int = field(default=3, ge=1, unit="experiences", help="The first so many are for choosing.")
    valid_per_class: int | None = field(
        default=None, ge=1, unit="samples", help="Held out of a trial's training; none: what the scenario sets aside."
    )
    batch: int = field(default=4, ge=1, help="Trials drawn at a time, knowing the scores of those before.")
    seed: int = field(default=0, ge=0, help="Of the drawing, and of the trials.")

    def checked(self) -> Self:
        """Return the same options, checked together.

        Raises:
            ConfigurationError: Every problem.
        """
        problems = [*_metric_problems(self.metric)]
        if not self.space:
            problems.append("search.space: expected options with their values, received none.")
        for option, values in self.space.items():
            if option.replace("-", "_").split(".")[0] in _FIXED:
                problems.append(f"search.space.{option}: a search can't choose what is learnt and how it is scored.")
            try:
                if isinstance(dimension(option, values), Mapping) and self.method == "grid":
                    problems.append(f"search.space.{option}: a grid needs a list of values, received {values!r}.")
            except ConfigurationError as error:
                problems.append(str(error))
        if self.method == "grid" and self.trials is not None:
            problems.append("search.trials: a grid has as many trials as combinations: leave it out.")
        if problems:
            raise ConfigurationError("\n".join(problems))
        return self


def _metric_problems(name: str) -> list[str]:
    metric = CATALOGUE.get(name)
    if metric is None:
        return [f"search.metric: there is no metric {name!r}.{did_you_mean(name, CATALOGUE)}"]
    if metric.curve or metric.of_run or metric.higher_is_better is None:
        return [f"search.metric: expected one number that can be better or worse, but {name} is none."]
    return []


def nested(option: str, value: Any) -> dict[str, Any]:
    """`optimizer.lr` and a value as a configuration."""
    found: Any = value
    for part in reversed(option.replace("-", "_").split(".")):
        found = {part: found}
    return dict(found)


@dataclass
class _Trial:
    """One combination of values.

    Attributes:
        values: By dotted option.
        run: What tries it.
        told: Whether the proposer has been told how it went.
    """

    values: dict[str, Any]
    run: SweepRun
    told: bool = False

    @property
    def settled(self) -> bool:
        """Whether it won't be run again: it has finished, or can't be trained."""
        return self.run.state == "finished" or self.run.diverged


class Search:
    """The search of one combination of a plan: asks for trials until its values are chosen.

    What was tried is told by the trials' run directories; so the same search again goes on where it was stopped. The
    proposals depend on the seed and on the scores alone, not on how many trials run at a time.

    Args:
        config: The configuration, in which the values are to be chosen.
        options: How.
        folder: For the trials' run directories and the record.

    Raises:
        ConfigurationError: A value can't be run.
    """

    def __init__(self, config: Mapping[str, Any], options: SearchOptions, folder: Path) -> None:
        self.config = dict(config)
        self.options = options
        self.folder = folder
        self.record = resolve(config).record
        self.space = {
            option: dimension(option, values) for option, values in options.space.items() if _has(self.record, option)
        }
        self.trials: list[_Trial] = []
        self.chosen: dict[str, Any] | None = None if self.space else {}
        self._proposer: Proposer | None = None
        self.file = folder / f"{run_name({**self.record, 'seed': 'search', 'search': to_dict(options)})}.json"
        self._check_values()
        if self.space and self.file.is_file():
            self._recall()

    def _check_values(self) -> None:
        problems: dict[str, None] = {}
        for option, values in self.space.items():
            for value in values if isinstance(values, list) else (values["low"], values["high"]):
                try:
                    self._run({**self._first_values(), option: value})
                except ConfigurationError as error:
                    problems.update(dict.fromkeys(str(error).split("\n")))
        if problems:
            raise ConfigurationError("\n".join(problems))

    def _first_values(self) -> dict[str, Any]:
        return {option: v[0] if isinstance(v, list) else v["low"] for option, v in self.space.items()}

    def with_values(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Return the configuration with values for the options of the space."""
        config = self.config
        for option, value in values.items():
            config = merged(config, nested(option, value))
        return config

    def _run(self, values: Mapping[str, Any]) -> SweepRun:
        """Return the run that tries some values."""
        o = self.options
        config = merged(
            self.with_values(values), {"seed": o.seed, "first_experiences": o.experiences, "scored_on": "valid"}
        )
        if o.valid_per_class is not None:
            config = merged(config, {"scenario": {"valid_per_class": o.valid_per_class}})
        if isinstance(config.get("steps_per_experience"), list):
            config["steps_per_experience"] = config["steps_per_experience"][: o.experiences]
        record = resolve(config).record
        return SweepRun(record, self.folder / run_name(record))

    # -- trials --------------------------------------------------------------------------------------------------------------

    def advance(self) -> list[SweepRun]:
        """Take in what has been scored, and return the trials to do next; none when there is nothing to wait for."""
        while self.chosen is None:
            open_ = [trial for trial in self.trials if not trial.told]
            waiting = [trial.run for trial in open_ if not trial.settled]
            if waiting:
                return list({run.directory: run for run in waiting}.values())
            for trial in open_:
                self._ask_with.tell(trial.values, self._score(trial))
                trial.told = True
            proposed = self._ask_with.ask(self.options.batch)
            self.trials += [_Trial(values, self._run(values)) for values in proposed]
            if not proposed:
                self._choose()
                break
        return []

    @property
    def _ask_with(self) -> Proposer:
        if self._proposer is None:
            o = self.options
            self._proposer = proposer(o.method, self.space, o.trials or _TRIALS, o.seed)
        return self._proposer

    def check(self) -> None:
        """Refuse a way of drawing that isn't installed.

        Raises:
            ConfigurationError: Optuna isn't there.
        """
        if self.chosen is None:
            _ = self._ask_with

    def _score(self, trial: _Trial) -> float | None:
        """The trial's score, the larger the better; None where it has none."""
        found = trial.run.number(self.options.metric)
        if found is None or not math.isfinite(found[0]):
            return None
        metric = CATALOGUE[self.options.metric]
        flipped = metric.level and not found[1]
        return found[0] if bool(metric.higher_is_better) != flipped else -found[0]

    def _choose(self) -> None:
        """Choose the best trial's values, the first of equals."""
        scores = [(trial, score) for trial in self.trials if (score := self._score(trial)) is not None]
        if scores:
            best = max(score for _, score in scores)
            self.chosen = next(dict(trial.values) for trial, score in scores if score == best)

    @property
    def failed(self) -> bool:
        """Whether all trials are done and none has a score."""
        return self.chosen is None and bool(self.trials) and all(trial.told for trial in self.trials)

    # -- the record ------------------------------------------------------------------------------------------------------------

    @property
    def cost(self) -> dict[str, float]:
        """What the search took so far: `trials` that were run, optimiser `steps`, `seconds`."""
        runs = {trial.run.directory: trial.run for trial in self.trials if trial.run.begun}
        each = [run.cost() for run in runs.values()]
        return {"trials": len(each), **{k: round(sum(c[k] for c in each), 3) for k in ("steps", "seconds")}}

    @property
    def score(self) -> float | None:
        """The chosen trial's value of the metric, on the validation samples."""
        values = [t.run.number(self.options.metric) for t in self.trials if t.values == self.chosen]
        return None if not values or values[0] is None else values[0][0]

    def keep(self) -> None:
        """Write what was tried and chosen, and what it took.

        Raises:
            RunDirectoryError: The file can't be written.
        """
        if not self.trials:
            return
        trials = [
            {
                "run": t.run.name,
                "values": t.values,
                "state": "diverged" if t.run.diverged else t.run.state,
                "score": None if (found := t.run.number(self.options.metric)) is None else found[0],
                **t.run.cost(),
            }
            for t in self.trials
        ]
        facts = {part: self.record[part]["name"] for part in ("scenario", "strategy", "backbone")}
        kept = {"schema": 1, **facts, "options": to_dict(self.options), "chosen": self.chosen, "cost": self.cost}
        write_json(self.file, {**kept, "trials": trials})

    def _recall(self) -> None:
        """Take a search that has come to its end from its record."""
        kept = read_json(self.file)
        if kept.get("chosen") is not None:
            self.chosen = kept["chosen"]
            self.trials = [_Trial(t["values"], SweepRun({}, self.folder / t["run"]), told=True) for t in kept["trials"]]


def _has(record: Mapping[str, Any], option: str) -> bool:
    """Whether a configuration has an option; those of a strategy are searched only where the strategy has them."""
    section, _, name = option.replace("-", "_").partition(".")
    if section != "strategy":
        return True
    own = record["strategy"]
    parts = [own, *(v for v in own.values() if isinstance(v, Mapping))]
    return any(name.partition(".")[0] in part for part in parts)


def unknown_options(searches: list[Search]) -> list[str]:
    """Return a sentence per option of the space that no strategy of the plan has."""
    problems = []
    for option in searches[0].options.space if searches else ():
        if not any(option in search.space for search in searches):
            first = searches[0]
            try:
                resolve(first.with_values({option: _example(first.options.space[option])}))
            except ConfigurationError as error:
                problems.append(f"search.space: {error}")
    return problems


def _example(values: Dimension | Any) -> Any:
    return values[0] if isinstance(values, list) else values["low"]
