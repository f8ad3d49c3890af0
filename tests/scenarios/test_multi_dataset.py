"""Several data sets: joined readers, labels in the three settings, sizes and channels."""

from __future__ import annotations

import pytest
import torch

import clframe
from clframe.data import MemoryReader
from clframe.data.joined import JoinedReader
from clframe.errors import ConfigurationError, DataError

USER = """
import numpy as np
from clframe.data import Arrays, ImageSource

class Colours(ImageSource):
    def open(self, root, download=False):
        rng = np.random.default_rng(0)
        return Arrays(
            x_train=rng.integers(0, 256, (30, 6, 6, 3), dtype=np.uint8), y_train=np.arange(30) % 3,
            x_test=rng.integers(0, 256, (9, 6, 6, 3), dtype=np.uint8), y_test=np.arange(9) % 3, name="colours",
        ).open(root)
"""


def images(count: int, size: int, channels: int, fill: int = 0) -> MemoryReader:
    return MemoryReader(torch.full((count, size, size, channels), fill, dtype=torch.uint8))


def test_rows_of_several_readers_in_any_order():
    parts = [MemoryReader(torch.randint(0, 256, (n, 4, 4, 3), dtype=torch.uint8)) for n in (3, 1, 5)]
    joined = JoinedReader(parts, (3, 4, 4))
    whole = torch.cat([p.tensor for p in parts])
    ids = torch.tensor([8, 0, 3, 3, 2, 4])
    assert len(joined) == 9
    assert torch.equal(joined.gather(ids), whole[ids])
    assert torch.equal(torch.cat(list(joined.batches([ids[:2], ids[2:]]))), whole[ids])
    joined.gather(ids).zero_()
    assert torch.equal(joined.gather(ids), whole[ids])


def test_sizes_and_channels_are_brought_together():
    joined = JoinedReader([images(2, 4, 1, 7), images(2, 8, 3, 200)], (3, 8, 8))
    out = joined.gather(torch.tensor([0, 3]))
    assert out.shape == (2, 8, 8, 3)
    assert (out[0] == 7).all()
    assert (out[1] == 200).all()
    with pytest.raises(DataError, match="Expected images of 1 or 1 channels to join, received inputs of shape"):
        JoinedReader([images(2, 4, 3)], (1, 4, 4))


def test_resizing_equals_pillows_to_a_grey_level():
    import numpy as np
    from PIL import Image

    picture = torch.randint(0, 256, (1, 16, 16, 3), dtype=torch.uint8)
    ours = JoinedReader([MemoryReader(picture)], (3, 7, 7)).gather(torch.tensor([0]))[0].numpy().astype(int)
    theirs = np.asarray(Image.fromarray(picture[0].numpy()).resize((7, 7), Image.Resampling.BILINEAR)).astype(int)
    assert abs(ours - theirs).max() <= 1


@pytest.fixture
def user(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(USER)
    return f"{file}:Colours"


@pytest.mark.parametrize("setting", ["task", "class"])
def test_every_data_set_has_classes_of_its_own(user, setting):
    stream = clframe.open_scenario("multi_dataset", sources=["digits", user], setting=setting, test_per_class=2)
    assert [e.classes for e in stream.experiences] == [tuple(range(10)), (10, 11, 12)]
    assert stream.shape == (3, 8, 8)
    assert torch.bincount(stream.test.targets[torch.cat([t.test for t in stream.tasks])]).tolist() == [2] * 13
    assert (stream.train.task_ids is None) == (setting == "class")
    assert len(set(stream.class_names)) == 13


def test_shared_labels_need_equally_many_classes(user):
    stream = clframe.open_scenario("multi_dataset", sources=["digits", "digits"], setting="domain")
    assert [e.classes for e in stream.experiences] == [tuple(range(10))] * 2
    with pytest.raises(ConfigurationError, match=r"need equally many classes, received \[10, 3\]"):
        clframe.open_scenario("multi_dataset", sources=["digits", user], setting="domain")


def test_a_head_per_data_set_is_trained(user, tmp_path):
    scenario = {"name": "multi_dataset", "sources": ["digits", user], "train_per_class": 20}
    run = clframe.run(scenario=scenario, head="multi", epochs=5, run_dir=tmp_path / "run", progress=False)
    assert run.metric("learning_accuracy") > 0.3
