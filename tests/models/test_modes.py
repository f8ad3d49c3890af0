"""Eval mode for a while: every module gets its own mode back."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from clframe.models import eval_mode


def mixed() -> nn.Sequential:
    """A tree of which some parts are in eval mode: a leaf under a parent that trains, and the other way round."""
    net = nn.Sequential(
        nn.Linear(2, 3), nn.Sequential(nn.BatchNorm1d(3), nn.Dropout(0.5)), nn.Sequential(nn.Dropout(0.5))
    )
    net[1][0].eval()
    net[2].training = False
    return net


def modes(net: nn.Module) -> dict[str, bool]:
    return {name: module.training for name, module in net.named_modules()}


def test_every_module_gets_its_own_mode_back() -> None:
    net = mixed()
    before = modes(net)
    assert before == {"": True, "0": True, "1": True, "1.0": False, "1.1": True, "2": False, "2.0": True}
    with eval_mode(net):
        assert not any(modes(net).values())
    assert modes(net) == before


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_also_when_the_body_raises(error: type[BaseException]) -> None:
    net = mixed()
    before = modes(net)
    with pytest.raises(error), eval_mode(net):
        raise error
    assert modes(net) == before


def test_what_the_body_changes_doesnt_stay() -> None:
    net = mixed()
    before = modes(net)
    with eval_mode(net):
        net.train()
    assert modes(net) == before


@pytest.mark.parametrize("outer", [nn.Module.train, nn.Module.eval])
def test_it_may_be_entered_again(outer: Callable[[nn.Module], nn.Module]) -> None:
    net = outer(mixed())
    before = modes(net)
    with eval_mode(net):
        with eval_mode(net):
            pass
        assert not any(modes(net).values())
        assert torch.equal(net[1](torch.ones(4, 3)), net[1](torch.ones(4, 3)))
    assert modes(net) == before
