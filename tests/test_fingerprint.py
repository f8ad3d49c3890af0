"""What makes another fingerprint, and what doesn't."""

from __future__ import annotations

import copy
import functools
import os
import subprocess
import sys
import types

import numpy as np
import pytest
import torch
from torch import nn

from clframe.fingerprint import fingerprint
from clframe.models import build_backbone

SHAPE = (3, 16, 16)


def backbone(name: str = "resnet8", **options):
    torch.manual_seed(0)
    return build_backbone(name, options, SHAPE)


def test_equal_networks_have_one_whatever_their_modes_device_layout_and_flags():
    first, second = backbone(), copy.deepcopy(backbone())
    second.train().requires_grad_(False).to(memory_format=torch.channels_last)
    assert fingerprint(first) == fingerprint(second) == fingerprint(backbone())
    assert len(fingerprint(first)) == 40


CHANGES = {
    "weight": lambda net: nn.init.zeros_(next(net.parameters())[0, 0]),
    "one bit": lambda net: next(net.parameters()).data.view(torch.int32)[0, 0, 0].bitwise_xor_(1),
    "statistics": lambda net: next(b for n, b in net.named_buffers() if n.endswith("mean")).add_(1e-6),
    "setting": lambda net: setattr(net, "resize", 64),
    "nested setting": lambda net: setattr(next(m for m in net.modules() if isinstance(m, nn.BatchNorm2d)), "eps", 1e-3),
    "hook": lambda net: net.register_forward_hook(lambda module, given, out: 2 * out),
    "type": lambda net: net.to(torch.float64),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_what_computes_something_else_has_another(change):
    net = backbone()
    with torch.no_grad():
        change(net)
    assert fingerprint(net) not in (None, fingerprint(backbone()))


def test_architectures_of_equal_tensors_differ():
    def chain(*more):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(3, 3), *more)

    found = [
        fingerprint(chain(*m)) for m in ([], [nn.ReLU()], [nn.Tanh()], [nn.ReLU(), nn.ReLU()], [nn.LeakyReLU(0.3)])
    ]
    assert len(set(found)) == 5


SOURCE = """
import torch
{helpers}
SCALE = {scale}
def halve(x):
    return x / {half}
class Net(torch.nn.Module):
    '''{words}'''
    factor = {factor}
    def forward(self, x):
        return helpers.shift(halve(x)) * SCALE * self.factor + {plus}
"""


def made_of(monkeypatch, **changes):
    """A module class as a user's file defines it, with a helper in another file."""
    values = {
        "helpers": "import own_helpers as helpers",
        "scale": 1.0,
        "half": 2.0,
        "factor": 3,
        "plus": 0,
        "words": "a",
    }
    shift = changes.pop("shift", 1)
    for name, text in {
        "own_helpers": f"def shift(x):\n    return x + {shift}\n",
        "own_net": SOURCE.format(**{**values, **changes}),
    }.items():
        module = types.ModuleType(name)
        monkeypatch.setitem(sys.modules, name, module)
        exec(compile(text, f"{name}.py", "exec"), module.__dict__)
    return sys.modules["own_net"].Net()


def test_edited_code_makes_another_one_and_edited_words_may_not(monkeypatch):
    base = fingerprint(made_of(monkeypatch))
    assert base == fingerprint(made_of(monkeypatch, words="b"))
    changes = [{"scale": 2.0}, {"half": 3.0}, {"factor": 4}, {"plus": 1}, {"shift": 2}]
    found = [fingerprint(made_of(monkeypatch, **c)) for c in changes]
    assert None not in found
    assert len({base, *found}) == 6


def test_functions_differ_by_what_they_close_over_and_by_their_defaults():
    def maker(k, d=1):
        def function(x, default=d):
            return x * k + default

        return function

    found = [
        fingerprint(f) for f in (maker(1), maker(2), maker(1, 2), functools.partial(maker(1), 3), maker(1).__call__)
    ]
    assert fingerprint(maker(1)) == found[0]
    assert len(set(found)) == 5


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ([1, 2], [2, 1]), ([1, 2], (1, 2)), (["ab"], ["a", "b"]), (1, 1.0), (True, 1), ("1", 1), (None, "None"),
        (np.zeros(2), np.zeros(3)), (torch.zeros(2, 1), torch.zeros(1, 2)), (torch.float32, torch.float64), ({"a": 1}, {"a": 2}),
    ],
)  # fmt: skip
def test_plain_values(a, b):
    assert None not in (fingerprint(a), fingerprint(b))
    assert fingerprint(a) != fingerprint(b)
    assert fingerprint(a) == fingerprint(copy.deepcopy(a))
    assert fingerprint({1, 2, "x"}) == fingerprint({"x", 2, 1})


def test_what_cannot_be_told_has_none(tmp_path):
    net = nn.Linear(2, 2)
    net.noise = torch.Generator()
    with (tmp_path / "f").open("w") as file:
        assert fingerprint(file) is None
    assert fingerprint(net) is None
    assert fingerprint(nn.Linear(2, 2, device="meta")) is None
    assert fingerprint(nn.LazyLinear(2)) is None


def test_what_holds_itself_ends():
    loop: list = [1]
    loop.append(loop)
    net = nn.Linear(1, 1)
    net.around = {"net": [net.register_buffer]}
    assert fingerprint(loop) is not None
    assert fingerprint(net) is not None


def test_it_is_the_same_in_every_process():
    code = (
        "import torch; from clframe.fingerprint import fingerprint; from clframe.models import build_backbone\n"
        "torch.manual_seed(0); net = build_backbone('vit_tiny', {'patch': 4, 'dim': 12, 'depth': 1}, (3, 16, 16))\n"
        "print(fingerprint(net))"
    )
    given = {**os.environ, "PYTHONHASHSEED": "77"}
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=given, check=True).stdout
    assert other.strip() == fingerprint(backbone("vit_tiny", patch=4, dim=12, depth=1))
