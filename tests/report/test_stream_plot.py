"""Pictures of streams: what is counted, and that every kind of stream can be drawn."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from clframe.data import DataRoot
from clframe.report.stream_plot import plot_stream, stream_counts
from clframe.report.style import to_png
from clframe.scenarios.split import SplitDigits
from clframe.stream import Retrieval
from clframe.testing.streams import synthetic_stream


class Shift:
    def __init__(self, by: int) -> None:
        self.by = by

    def __call__(self, images):
        return images + self.by

    def spec(self):
        return {"name": "shift", "by": self.by}


def test_samples_are_counted_by_class_and_experience():
    stream = SplitDigits(train_per_class=7, order="seed:3").build(DataRoot.resolve())
    what, counts = stream_counts(stream)
    assert what == "class"
    expected = np.zeros((10, 5), dtype=int)
    for i in range(5):
        expected[2 * i : 2 * i + 2, i] = 7
    np.testing.assert_array_equal(counts, expected)


def test_where_there_are_domains_they_are_counted():
    stream = synthetic_stream(setting="domain", experiences=[[0, 1], [0, 1]])
    owner = torch.zeros(len(stream.train), dtype=torch.int64)
    owner[stream.experiences[1].train] = 1
    train = dataclasses.replace(stream.train, domains=owner, transforms=(Shift(0), Shift(1)))
    what, counts = stream_counts(dataclasses.replace(stream, train=train))
    assert what == "domain"
    np.testing.assert_array_equal(counts, np.diag([len(e.train) for e in stream.experiences]))


def test_a_gallery_is_told():
    stream = synthetic_stream()
    assert "gallery" not in plot_stream(stream).axes[0].get_title()
    shown = Retrieval(stream.test, torch.tensor([0, 1, 2]), torch.tensor([4, 5]), torch.tensor([[0, 0]]))
    title = plot_stream(dataclasses.replace(stream, retrieval=shown)).axes[0].get_title()
    assert title.split("\n")[1] == "after each: 2 queries search a gallery of 3"


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"setting": "domain", "experiences": [[0, 1], [0, 1]]},
        {"unlabelled_per_class": 3, "pool_per_class": 4, "query_budget": 2, "forget_per_experience": 2},
        {"score": "squared_error", "experiences": [[0, 1], [0, 1]]},
    ],
    ids=["class", "domain", "all sets", "regression"],
)
def test_every_kind_of_stream_can_be_drawn(options):
    stream = synthetic_stream(**options)
    figure = plot_stream(stream)
    upper, lower = figure.axes[:2]
    heights = sum(bar.get_height() for group in lower.containers for bar in group)
    kinds = ("train", "unlabelled", "pool", "valid", "forget")
    assert heights == sum(len(getattr(e, k)) for e in stream.experiences for k in kinds)
    assert upper.get_ylabel() in ("class", "domain")
    assert to_png(figure).startswith(b"\x89PNG")
