"""The stream of compatible representations: gallery, queries and pairs are one fixed cut that no experience touches."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import clframe
from clframe.data import DataRoot
from clframe.errors import ConfigurationError
from clframe.scenarios.compatibility import Compatibility
from clframe.scenarios.split import Split
from clframe.stream import Stream


def built(**options) -> Stream:
    return Compatibility(**options).build(DataRoot.resolve())


def identities(stream: Stream):
    shown = stream.retrieval
    assert shown is not None
    return shown.table.targets[shown.queries], shown.table.targets[shown.gallery]


def test_golden_fingerprint_and_seed():
    stream = built()
    assert stream.fingerprint[:16] == "d6ffc95d43f26132"
    assert built(stream_seed=1).fingerprint != stream.fingerprint


def test_held_out_classes_are_never_learnt_and_the_rest_is_the_split_stream():
    stream, plain = built(order="seed:3"), Split(source="digits", order="seed:3", experiences=5)
    whole = plain.build(DataRoot.resolve())
    assert stream.class_order == whole.class_order[:8]
    for mine, theirs in zip(stream.experiences, whole.experiences, strict=False):
        assert torch.equal(mine.train, theirs.train)
    queries, gallery = identities(stream)
    assert set(queries.tolist()) == set(gallery.tolist()) == {8, 9}
    assert torch.equal(
        torch.cat([stream.retrieval.gallery, stream.retrieval.queries]).sort().values, whole.tasks[4].test
    )


def test_the_cut_depends_on_no_class_order():
    first, second = built(held_out=0, experiences=5), built(held_out=0, experiences=5, order="seed:7")
    for name in ("gallery", "queries"):
        a, b = (getattr(s.retrieval, name).sort().values for s in (first, second))
        assert torch.equal(a, b)


@settings(derandomize=True, deadline=None, max_examples=30)
@given(st.integers(20, 4000), st.floats(0.05, 0.95), st.integers(2, 9), st.integers(0, 3))
def test_pairs_are_balanced_never_twice_and_of_every_kind(pairs, share, held_out, seed):
    stream = built(
        pairs=pairs, gallery_share=share, held_out=held_out, increment=10, stream_seed=seed, test_per_class=9
    )
    shown, (queries, gallery) = stream.retrieval, identities(stream)
    assert not set(shown.gallery.tolist()) & set(shown.queries.tolist())
    per_identity = torch.bincount(gallery)[-held_out:]
    assert (per_identity == min(max(1, round(9 * share)), 8)).all()
    same = queries[shown.pairs[:, 0]] == gallery[shown.pairs[:, 1]]
    assert same[::2].all()
    assert not same[1::2].any()
    assert len({tuple(p) for p in shown.pairs.tolist()}) == len(shown.pairs)
    most = sum(int((queries == c).sum() * (gallery == c).sum()) for c in queries.unique())
    assert len(shown.pairs) == 2 * min(pairs // 2, most, len(queries) * len(gallery) - most)


def test_all_pairs_can_be_drawn():
    """With as many as there are, every query meets every gallery image of its own identity."""
    stream = built(pairs=10**6, test_per_class=4)
    shown, (queries, gallery) = stream.retrieval, identities(stream)
    drawn = {tuple(p) for p in shown.pairs[::2].tolist()}
    assert drawn == {(q, g) for q in range(4) for g in range(4) if queries[q] == gallery[g]}


def test_another_data_set_makes_the_gallery_and_is_brought_to_shape(tmp_path):
    for split, count in (("train", 2), ("test", 4)):
        for value, name in enumerate(("dark", "light")):
            folder = tmp_path / "shades" / split / name
            folder.mkdir(parents=True)
            for k in range(count):
                Image.fromarray(np.full((12, 12), 100 * value + k, np.uint8)).save(folder / f"{k}.png")
    shades = {"source": str(tmp_path / "shades"), "experiences": 2}
    stream = built(gallery_source="digits", test_per_class=3, **shades)
    assert (stream.num_classes, stream.shape) == (2, (3, 12, 12))
    shown, (queries, gallery) = stream.retrieval, identities(stream)
    assert (set(queries.tolist()), len(queries) + len(gallery)) == (set(range(10)), 30)
    images = shown.table.gather(torch.cat([shown.gallery, shown.queries]))
    assert images.shape == (30, 12, 12, 3)
    assert (images[..., 0] == images[..., 2]).all()
    digits = clframe.open_scenario("split_digits").test.gather(shown.gallery).float()
    assert (images[: len(gallery)].float().mean(dim=(1, 2, 3)) - digits.mean(dim=(1, 2, 3))).abs().max() < 12
    assert shown.data_fingerprint
    assert stream.fingerprint != built(held_out=0, **shades).fingerprint


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"setting": "task"}, "compatibility expects class, received 'task'"),
        ({"held_out": 1}, "at least 2 classes to tell apart, received 1"),
        ({"held_out": 10}, "expected fewer than the 10 classes, received 10"),
        ({"held_out": 2, "gallery_source": "digits"}, "expected 0 beside a gallery_source"),
        ({"test_per_class": 1}, "has 1 test images"),
        ({"held_out": 0, "classes": 1, "experiences": 1}, "at least 2 identities"),
        ({"gallery_source": "digit", "experiences": 5}, "'digit'"),
    ],
)
def test_what_makes_no_gallery_is_refused_in_a_sentence(options, words):
    with pytest.raises(ConfigurationError, match=words):
        built(**options)


def test_it_is_found_by_name():
    assert clframe.open_scenario("compatibility").retrieval is not None
