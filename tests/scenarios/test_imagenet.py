"""ImageNet and its subsets: which classes, in which order, through which transforms, stored or streamed."""

from __future__ import annotations

import dataclasses
import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import clframe
from clframe.config import resolve
from clframe.data import DataRoot
from clframe.errors import ConfigurationError, DataError
from clframe.launch.build import build_setup
from clframe.scenarios.imagenet import ImageNet100, ImageNetSubset
from clframe.scenarios.split import Split, SplitDigits, SplitTinyImageNet
from clframe.training.context import Context

LIST = ImageNet100().class_list()
EXTRA = ["n00000001", "n02011460x", "n99999999"]
"""Classes of the tree that are not in the list, before, between and after those that are."""


def jpeg(draws: np.random.RandomState) -> bytes:
    """An image of noise, of some size."""
    height, width = draws.randint(12, 30, 2)
    buffer = io.BytesIO()
    Image.fromarray(draws.randint(0, 256, (height, width, 3), np.uint8)).save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder with a complete layout: `imagenet/train/WNID/*.JPEG` and `imagenet/val/WNID/*.JPEG`."""
    root, draws = tmp_path_factory.mktemp("data"), np.random.RandomState(0)
    for split, count in (("train", 3), ("val", 1)):
        for wnid in [*LIST, *EXTRA]:
            folder = root / "imagenet" / split / wnid
            folder.mkdir(parents=True)
            for k in range(count):
                (folder / f"{wnid}_{k}.JPEG").write_bytes(jpeg(draws))
    return root


@pytest.fixture
def root(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> DataRoot:
    monkeypatch.setenv("CLFRAME_CACHE", str(tmp_path / "cache"))
    return DataRoot(folders=(data,), download_folder=data)


SMALL = {"size": 12, "crop": 8}


def test_imagenet100_takes_its_list_from_a_complete_tree_in_the_literatures_order(root):
    stream = ImageNet100(**SMALL).build(root)
    order = np.random.RandomState(1993).permutation(100).tolist()
    assert stream.class_names == tuple(LIST[k] for k in order)
    assert stream.class_order == tuple(order)
    assert [(len(e.classes), len(e.train)) for e in stream.experiences] == [(10, 30)] * 10
    assert stream.shape == (3, 12, 12)
    assert len(stream.train) == 300, "the other classes were read too"
    assert stream.mean == pytest.approx((0.485, 0.456, 0.406))


@pytest.mark.parametrize("increment", [1, 5, 10, 25])
def test_half_of_the_classes_first_with_any_increment(root, increment):
    stream = ImageNet100(base=50, increment=increment, **SMALL).build(root)
    assert [len(e.classes) for e in stream.experiences] == [50, *[increment] * (50 // increment)]


def test_a_whole_tree_or_the_first_so_many_or_ones_own_list(root, data, tmp_path):
    whole = ImageNetSubset(experiences=1, **SMALL).build(root)
    assert sorted(whole.class_names) == sorted([*LIST, *EXTRA])
    first = ImageNetSubset(classes=2, increment=1, order="natural", source=str(data / "imagenet"), **SMALL).build(root)
    assert first.class_names == (EXTRA[0], LIST[0])
    mine = tmp_path / "mine.txt"
    mine.write_text(f"# three of them\n{EXTRA[2]}\n\n{LIST[7]}  \n{EXTRA[0]}\n")
    listed = ImageNet100(classes=str(mine), order="natural", increment=1, **SMALL).build(root)
    assert listed.class_names == (EXTRA[2], LIST[7], EXTRA[0])
    assert len(listed.train) == 9


def test_a_tree_of_the_subset_alone_is_the_same_stream(root, data, tmp_path):
    for split in ("train", "val"):
        (tmp_path / "imagenet100" / split).mkdir(parents=True)
        for wnid in LIST:
            (tmp_path / "imagenet100" / split / wnid).symlink_to(data / "imagenet" / split / wnid)
    alone = ImageNet100(**SMALL).build(DataRoot(folders=(tmp_path,), download_folder=tmp_path))
    assert alone.fingerprint == ImageNet100(**SMALL).build(root).fingerprint


def test_streamed_and_stored_images_are_the_same_stream(root):
    stored, streamed = (ImageNet100(mode=mode, **SMALL).build(root) for mode in ("store", "stream"))
    assert type(stored.train.images) is not type(streamed.train.images)
    facts = [dataclasses.replace(s, data_fingerprint="").fingerprint for s in (stored, streamed)]
    assert facts[0] == facts[1]
    assert streamed.data_fingerprint.startswith("files-")
    for name in ("train", "test"):
        tables = [getattr(s, name) for s in (stored, streamed)]
        ids = torch.arange(len(tables[0]))
        assert torch.equal(*(t.gather(ids) for t in tables))


def test_runs_on_both_end_alike(root, tmp_path):
    results = []
    for mode in ("store", "stream"):
        run = clframe.run(
            scenario={"name": "imagenet100", "mode": mode, "classes": 10, "increment": 5, **SMALL},
            strategy={"name": "replay", "memory_size": 10},
            backbone={"name": "mlp", "hidden": [8]},
            epochs=1,
            device="cpu",
            data_root=root.folders[0],
            run_dir=tmp_path / mode,
            progress=False,
        )
        results.append(run.result["values"])
    assert results[0] == results[1]


def test_training_crops_at_random_and_testing_takes_the_centre(root):
    stream = ImageNet100(**SMALL).build(root)
    assert stream.augmentation == [{"name": "random_resized_crop", "size": 8}, "horizontal_flip"]
    assert stream.test_transform == [{"name": "center_crop", "size": 8}]
    setup = build_setup(resolve({"scenario": stream, "backbone": "mlp", "device": "cpu"}), stream)
    context = Context(setup)
    images = stream.test.gather(torch.arange(4))
    mean, std = (torch.tensor(v) for v in (stream.mean, stream.std))
    expected = (images[:, 2:10, 2:10].float() / 255 - mean) / std
    assert torch.allclose(context.test_maker.test_input(images), expected.permute(0, 3, 1, 2), atol=1e-5)
    assert setup.augmentation.output_shape(stream.shape) == (3, 8, 8)


def test_images_of_many_sizes_are_fitted_as_torchvision_fits_them(root, data):
    from torchvision.transforms import v2

    stream = ImageNet100(order="natural", **SMALL).build(root)
    fit = v2.Compose([v2.Resize(12), v2.CenterCrop(12)])
    for k in (0, 57):
        image = Image.open(data / "imagenet" / "val" / LIST[k] / f"{LIST[k]}_0.JPEG")
        assert torch.equal(stream.test.gather(torch.tensor([k]))[0], torch.from_numpy(np.array(fit(image))))


def test_what_is_no_folder_is_fitted_by_the_test_transform(root):
    stream = ImageNetSubset(source="digits", increment=2, size=10, crop=6).build(root)
    assert stream.test_transform == [{"name": "resize", "size": 10}, {"name": "center_crop", "size": 6}]
    setup = build_setup(resolve({"scenario": stream, "backbone": "mlp", "device": "cpu"}), stream)
    assert Context(setup).test_maker.test_input(stream.test.gather(torch.arange(3))).shape == (3, 1, 6, 6)


def test_tiny_imagenet_states_its_own_augmentation(source):
    stream = SplitTinyImageNet().cut(source(classes=20))
    assert (stream.augmentation, stream.test_transform) == ("crop_flip", "none")


def test_classes_can_be_named_for_any_source(tmp_path):
    (tmp_path / "mine.txt").write_text("7\n1\n3\n")
    stream = SplitDigits(classes=str(tmp_path / "mine.txt"), experiences=3).build(DataRoot.resolve())
    assert stream.class_names == ("7", "1", "3")
    assert stream.class_order == (7, 1, 3)
    given = {"name": "split_digits", "classes": "4"}
    assert resolve({"scenario": given}).scenario.classes == 4
    record = resolve({"scenario": {**given, "classes": str(tmp_path / "mine.txt")}}).record
    assert record["scenario"]["classes"] == ["7", "1", "3"]
    assert resolve({"scenario": "imagenet100"}).record["scenario"]["classes"] == "imagenet100"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"crop": 16, "size": 12}, r"scenario\.crop: expected at most the 12 pixels .* received 16"),
        ({"classes": "absent.txt", **SMALL}, r"scenario\.classes: .* absent\.txt can't be read"),
        ({"classes": 1000, **SMALL}, r"at least the 1000 classes that are asked for in .*imagenet, received 103"),
    ],
)
def test_what_makes_no_sense_is_refused(root, options, said):
    with pytest.raises((ConfigurationError, DataError), match=said):
        ImageNet100(**options).build(root)


@pytest.mark.parametrize(
    ("text", "said"),
    [("\n# none\n", "received none"), ("3\n4\n3\n", "all different"), ("3\neigth\n", "received 'eigth'")],
)
def test_a_list_of_classes_that_is_wrong_is_refused(tmp_path, text, said):
    (tmp_path / "mine.txt").write_text(text)
    with pytest.raises(ConfigurationError, match=said):
        Split(source="digits", classes=str(tmp_path / "mine.txt")).build(DataRoot.resolve())


def test_a_tree_that_lacks_a_listed_class_is_refused(root, tmp_path):
    (tmp_path / "mine.txt").write_text(f"{LIST[0]}\nn11111111\n")
    with pytest.raises(DataError, match=r"Expected the 2 classes .* received 103 classes without n11111111\."):
        ImageNet100(classes=str(tmp_path / "mine.txt"), **SMALL).build(root)


def test_the_name_and_the_list_are_known(root, tmp_path):
    assert len(LIST) == 100 == len(set(LIST))
    assert sorted(LIST) == LIST
    with pytest.raises(
        DataError, match=r"'imagenet' was not found .* put imagenet\.zip or imagenet into the data root"
    ):
        ImageNet100().build(DataRoot(folders=(tmp_path,), download_folder=tmp_path))
