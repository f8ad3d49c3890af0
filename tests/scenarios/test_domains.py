"""Permuted and rotated streams: every domain shows what it should, in all three settings."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import clframe
from clframe.data import Arrays, DataRoot
from clframe.data.corruptions import CORRUPTIONS, Corruption
from clframe.data.domains import Identity, Permutation, Rotation
from clframe.errors import ConfigurationError
from clframe.scenarios.corrupted import Corrupted
from clframe.scenarios.permuted import Permuted
from clframe.scenarios.rotated import Rotated
from clframe.scenarios.time_ordered import TimeOrdered

SMALL = {"train_per_class": 6, "test_per_class": 3, "experiences": 3}


def built(cls, **options):
    return cls(**{**SMALL, **options}).build(DataRoot.resolve())


def test_a_permutation_moves_pixels_with_all_their_channels():
    images = torch.arange(2 * 3 * 2 * 3, dtype=torch.uint8).view(2, 3, 2, 3)
    order = torch.tensor([5, 0, 1, 4, 2, 3])
    moved = Permutation(order)(images)
    np.testing.assert_array_equal(moved.reshape(2, 6, 3).numpy(), images.reshape(2, 6, 3).numpy()[:, order.numpy()])
    features = torch.randn(4, 6)
    assert torch.equal(Permutation(order)(features), features[:, order])


@pytest.mark.parametrize("degrees", [0, 90, 180, 270, 360])
def test_right_angles_equal_numpy(degrees):
    images = torch.randint(0, 256, (3, 8, 8, 3), dtype=torch.uint8)
    expected = np.rot90(images.numpy(), degrees // 90, axes=(1, 2))
    np.testing.assert_array_equal(Rotation(degrees)(images).numpy(), expected)


def test_permuted_domains_are_different_permutations_of_the_same_images():
    stream = built(Permuted)
    views = [stream.train.gather(e.train) for e in stream.experiences]
    for view in views[1:]:
        assert not torch.equal(view, views[0])
        assert torch.equal(view.flatten(1).sort(1).values, views[0].flatten(1).sort(1).values)
    assert built(Permuted).fingerprint == stream.fingerprint
    assert built(Permuted, domain_seed=1).fingerprint != stream.fingerprint
    first = built(Permuted, first=False)
    assert isinstance(first.train.transforms[0], Identity)
    assert torch.equal(first.train.gather(first.experiences[1].train), views[1])


def test_growing_the_stream_keeps_its_first_domains():
    short, long = built(Permuted), built(Permuted, experiences=5)
    for a, b in zip(short.experiences, long.experiences, strict=False):
        assert torch.equal(short.train.gather(a.train), long.train.gather(b.train))


@pytest.mark.parametrize("setting", ["domain", "task", "class"])
def test_settings(setting):
    stream = built(Rotated, setting=setting, classes=4)
    for i, (experience, task) in enumerate(zip(stream.experiences, stream.tasks, strict=True)):
        first = 0 if setting == "domain" else 4 * i
        assert experience.classes == task.classes == tuple(range(first, first + 4))
        assert experience.num_seen_classes == first + 4
        assert torch.bincount(stream.train.targets[experience.train]).tolist()[first:] == [6] * 4
        assert torch.bincount(stream.test.targets[task.test]).tolist()[first:] == [3] * 4
        assert (experience.task_id, task.task_id) == ((i, i) if setting == "task" else (None, None))
        assert set(stream.train.domains[experience.train].tolist()) == {i}
    assert stream.num_classes == (4 if setting == "domain" else 12)


def test_shares_partition_the_images_and_keep_classes_balanced():
    stream = built(Permuted, images="shares", train_per_class=7)
    rows = [stream.train.rows[e.train] for e in stream.experiences]
    joined = torch.cat(rows)
    assert len(joined.unique()) == len(joined) == 70
    for e in stream.experiences:
        counts = torch.bincount(stream.train.targets[e.train]).tolist()
        assert set(counts) <= {2, 3}
    with pytest.raises(ConfigurationError, match="at least 8 training images of the class"):
        built(Permuted, images="shares", train_per_class=7, experiences=8)


def test_validation_samples_are_never_trained_on():
    stream = built(Rotated, valid_per_class=2)
    for e in stream.experiences:
        trained, held = set(stream.train.rows[e.train].tolist()), set(stream.train.rows[e.valid].tolist())
        assert len(held) == 20
        assert not trained & held
    assert torch.equal(stream.tasks[1].valid, stream.experiences[1].valid)


def test_angles():
    assert Rotated(experiences=4).angles() == [0, 45, 90, 135]
    assert Rotated(experiences=3, degrees=90.0).angles() == [0, 30, 60]
    assert Rotated(experiences=2, degrees=[10.0, -5.0]).angles() == [10, -5]
    drawn = Rotated(experiences=50, degrees=None).angles()
    assert len(set(drawn)) == 50
    assert all(0 <= a < 180 for a in drawn)
    with pytest.raises(ConfigurationError, match="one angle for each of 3 experiences, received 2"):
        built(Rotated, degrees=[10.0, -5.0])


# ---- corruptions


def test_every_experience_shows_its_corruption_the_same_in_each_epoch():
    stream = built(Corrupted)
    clean = built(Rotated, degrees=0.0)
    for e, plain, name in zip(stream.experiences, clean.experiences, CORRUPTIONS, strict=False):
        shown = stream.train.gather(e.train)
        assert torch.equal(shown, Corruption(name, 3)(clean.train.gather(plain.train)))
        assert torch.equal(shown[[5, 3]], stream.train.gather(e.train[[5, 3]]))
    assert stream.fingerprint[:16] == "89900737f0f70851"
    assert built(Corrupted, domain_seed=1).fingerprint != stream.fingerprint


def test_one_corruption_of_rising_severity():
    stream = built(Corrupted, corruptions=["fog"], severity=[0, 2, 5])
    assert [t.spec() for t in stream.train.transforms] == [
        {"name": "identity"},
        {"name": "corruption", "corruption": "fog", "severity": 2, "seed": 0},
        {"name": "corruption", "corruption": "fog", "severity": 5, "seed": 0},
    ]


def test_corruptions_that_make_no_sense_are_refused():
    with pytest.raises(ConfigurationError, match=r"received 'fogg'\. Did you mean 'fog'\?"):
        built(Corrupted, corruptions=["fogg"])
    with pytest.raises(ConfigurationError, match=r"scenario.severity: expected one value, or one for each of 3 exp"):
        built(Corrupted, severity=[1, 2])
    with pytest.raises(ConfigurationError, match="16 experiences, received 14"):
        built(Corrupted, experiences=16)
    with pytest.raises(ConfigurationError, match="saturate can't be applied to images of 1 channels"):
        built(Corrupted, corruptions=["saturate"])
    x, y = np.zeros((4, 5), dtype=np.float32), np.arange(4)
    features = Arrays(x_train=x, y_train=y, x_test=x, y_test=y).open(DataRoot.resolve())
    with pytest.raises(ConfigurationError, match="corruptions expect images, received features of length 5"):
        Corrupted().cut(features)


# ---- time


def test_drift_grows_and_every_step_has_images_of_its_own():
    stream = built(TimeOrdered, train_per_class=7)
    assert [t.spec()["degrees"] for t in stream.train.transforms] == [0, 45, 90]
    rows = torch.cat([stream.train.rows[e.train] for e in stream.experiences])
    assert len(rows.unique()) == len(rows) == 70
    assert all(torch.equal(stream.test.rows[t.test], stream.test.rows[stream.tasks[0].test]) for t in stream.tasks)
    assert stream.fingerprint[:16] == "8824558a405809fd"
    fog = built(TimeOrdered, drift="fog", domain_seed=2)
    assert [t.spec().get("severity", 0) for t in fog.train.transforms] == [0, 1, 2]
    assert [t.spec() for t in built(TimeOrdered, experiences=1).train.transforms] == [
        {"name": "rotation", "degrees": 0}
    ]


def test_drifts_that_make_no_sense_are_refused():
    with pytest.raises(ConfigurationError, match="at most 6 for a corruption"):
        built(TimeOrdered, drift="fog", experiences=7)
    with pytest.raises(ConfigurationError, match=r"scenario\.drift: expected one of .* Did you mean 'rotation'"):
        built(TimeOrdered, drift="rotatoin")


def test_every_model_is_scored_on_all_steps_at_one_budget(tmp_path):
    scenario = {"name": "time_ordered", "experiences": 3, "train_per_class": 9, "test_per_class": 3}
    options = {"steps_per_experience": 6, "evaluate_future": True, "epochs": 2, "progress": False}
    for strategy in ("finetune", "cumulative"):
        made = clframe.run(scenario=scenario, strategy=strategy, run_dir=tmp_path / strategy, **options)
        assert made.result["counters"]["steps"] == 18
        assert np.isfinite(made.matrix()[1:]).all()  # row 0 has no class yet
        assert made.matrix().shape[1] == 3
