"""What a run is built of: input size, and what images pass through."""

from __future__ import annotations

import dataclasses

import pytest
import torch

import clframe
from clframe.config import resolve
from clframe.errors import ConfigurationError
from clframe.launch.build import build_setup
from clframe.scenarios.split import SplitDigits
from clframe.stream import Stream
from clframe.training.context import Context


def digits(**changes) -> Stream:
    stream = SplitDigits(train_per_class=4, test_per_class=2).build(clframe.data.DataRoot.resolve())
    return dataclasses.replace(stream, **changes)


RESIZE = [{"name": "resize", "size": 16}]


def test_the_scenario_states_what_test_images_pass_through_and_the_backbone_gets_their_size():
    stream = digits(augmentation=RESIZE, test_transform=RESIZE)
    setup = build_setup(resolve({"scenario": stream, "backbone": "resnet8"}), stream)
    context = Context(setup)
    assert context.test_maker.test_input(stream.test.gather(torch.arange(3))).shape == (3, 1, 16, 16)
    assert setup.described()["test_transform"][0]["size"] == 16


def test_the_run_may_state_it_too_and_a_saved_run_keeps_it(tmp_path):
    options = {"augmentation": RESIZE, "test_transform": RESIZE, "epochs": 1, "backbone": "resnet8"}
    scenario = {"name": "split_digits", "train_per_class": 4, "test_per_class": 2}
    run = clframe.run(scenario=scenario, run_dir=tmp_path / "run", progress=False, **options)
    images = digits().test.gather(torch.arange(4))
    assert len(clframe.load(run.path).predict(images)) == 4


def test_training_and_test_images_of_different_sizes_are_refused():
    stream = digits(augmentation=RESIZE)
    with pytest.raises(ConfigurationError, match=r"one size, received 16×16 and 8×8 pixels: set test_transform"):
        build_setup(resolve({"scenario": stream, "backbone": "resnet8"}), stream)


@pytest.mark.parametrize(
    ("given", "named"),
    [("crop_flip", "random_crop"), ([{"name": "center_crop", "size": 6}, "horizontal_flip"], "horizontal_flip")],
)
def test_a_test_transform_that_draws_is_refused(given, named):
    stream = digits(augmentation=[{"name": "center_crop", "size": 6}])
    config = resolve({"scenario": stream, "backbone": "resnet8", "test_transform": given})
    with pytest.raises(ConfigurationError, match=f"draw nothing.*received {named}"):
        build_setup(config, stream)
