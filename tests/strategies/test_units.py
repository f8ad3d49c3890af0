"""What every method keeps that gives single units new weights: ReDo and continual backprop."""

from __future__ import annotations

import pytest

from clframe.errors import ConfigurationError
from clframe.models.mlp import MLP
from clframe.strategies.continual_backprop import ContinualBackprop
from clframe.strategies.der import DER
from clframe.strategies.redo import ReDo
from clframe.testing.streams import TinyBackbone

NET = MLP(hidden=[12, 10])
METHODS = {"redo": ReDo(every=2, threshold=0.6), "continual_backprop": ContinualBackprop(rate=0.1, maturity=2)}
"""With which several units are replaced within a few steps."""
AVERAGES = {"sgd": ["momentum_buffer"], "adam": ["exp_avg", "exp_avg_sq"]}

methods = pytest.mark.parametrize("name", METHODS)
optimizers = pytest.mark.parametrize("optimizer", AVERAGES)


@methods
@optimizers
def test_the_optimisers_averages_of_replaced_units_are_zero(make, name, optimizer):
    trial = make(METHODS[name], optimizer={"name": optimizer, "lr": 0.01}, backbone=NET)
    context, seen = trial.trainer.context, []
    inner = trial.strategy.replace_units

    def watched(chosen):
        inner(chosen)
        layers, state = trial.strategy.network.branches[0].layers, context.optimizer.state
        if "gates.0" in chosen:
            index = chosen["gates.0"]
            others = [i for i in range(12) if i not in index.tolist()]
            for average in AVERAGES[optimizer]:
                assert not state[layers[0].weight][average][index].any()
                assert not state[layers[0].bias][average][index].any()
                assert not state[layers[2].weight][average][:, index].any()
                assert state[layers[0].weight][average][others].any()
            seen.append(len(index))

    trial.strategy.replace_units = watched
    trial.run()
    assert seen
    assert context.optimizer is None


@methods
@optimizers
@pytest.mark.parametrize("stop_after", [3, 8])
def test_it_resumes(resumes, name, optimizer, stop_after):
    resumes(METHODS[name], stop_after, backbone=NET, optimizer={"name": optimizer, "lr": 0.01})


@methods
def test_what_it_cannot_serve_is_refused(make, name):
    method = METHODS[name]
    for backbone in (MLP(layer_norm=True), TinyBackbone()):
        with pytest.raises(ConfigurationError, match="channels which no shortcut joins"):
            make(method, backbone=backbone)
    with pytest.raises(ConfigurationError, match="adds branches"):
        make(method + DER(memory_size=6), backbone=MLP())
