"""Whose mean and deviation normalise the images: the backbone's where it states them, else the data's."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import nn

from clframe.config import resolve
from clframe.errors import ConfigurationError
from clframe.launch.build import build_setup
from clframe.testing.streams import synthetic_stream
from clframe.training.context import Context

COLOUR = synthetic_stream(channels=3, size=32)


def context(backbone, stream=COLOUR) -> Context:
    config = resolve({"scenario": stream, "backbone": backbone, "device": "cpu", "augmentation": "none"})
    return Context(build_setup(config, stream))


def statistics(backbone, stream=COLOUR):
    made = context(backbone, stream)
    assert made.train_maker.to_input is made.test_maker.to_input
    return made.test_maker.to_input.mean, made.test_maker.to_input.std


@pytest.mark.parametrize(
    ("model", "mean", "std"),
    [
        ("resnet10t", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ("tf_efficientnet_lite0", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    ],
)
def test_a_timm_model_has_its_own(model, mean, std):
    assert statistics(f"timm/{model}") == (mean, std)


def test_on_grey_images_their_average_as_timm_averages_the_weights():
    mean, std = statistics("timm/resnet10t", synthetic_stream(size=32))
    assert mean == pytest.approx([0.449], abs=1e-6)
    assert std == pytest.approx([0.226], abs=1e-6)


def test_others_have_the_datas():
    assert statistics("resnet8") == (COLOUR.mean, COLOUR.std)


class Stating(nn.Module):
    """A user's module that states its statistics."""

    def __init__(self, mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6)):
        super().__init__()
        self.input_mean, self.input_std = mean, std

    def forward(self, x):
        return x.mean((2, 3))


def test_a_users_module_may_state_them_and_they_reach_the_network():
    made = context(Stating)
    images = COLOUR.test.gather(torch.arange(4))
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in ([0.1, 0.2, 0.3], [0.4, 0.5, 0.6]))
    expected = (images.permute(0, 3, 1, 2) / 255 - mean) / std
    torch.testing.assert_close(made.test_maker.test_input(images), expected)
    torch.testing.assert_close(made.network.features(made.test_maker.test_input(images)), expected.mean((2, 3)))


@pytest.mark.parametrize("name", ["resnet8", "timm/resnet10t", Stating])
def test_options_win(name):
    options = {"input_mean": [0, 0, 0], "input_std": [1, 1, 1]}
    backbone = resolve({"scenario": COLOUR, "backbone": name}).backbone.replace(**options)
    assert statistics(backbone) == ((0, 0, 0), (1, 1, 1))
    assert build_setup(resolve({"scenario": COLOUR, "backbone": backbone}), COLOUR).skeleton().input_mean == (0, 0, 0)


@pytest.mark.parametrize(
    "options",
    [
        {"input_mean": [0.5, 0.5, 0.5]},
        {"input_mean": [0.5], "input_std": [0.5]},
        {"input_mean": [0.5] * 3, "input_std": [0.5, 0.0, 0.5]},
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_computed(options):
    with pytest.raises(
        ConfigurationError, match="must state input_mean and input_std with a number for each of 3 channels"
    ):
        context({"name": "resnet8", **options})


def test_feature_vectors_are_left_as_they_are():
    stream = dataclasses.replace(COLOUR, mean=(), std=())
    assert statistics(Stating) != statistics("resnet8", stream)
