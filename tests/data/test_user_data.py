"""Arrays, map-style data sets and the user's own file."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from PIL import Image

from clframe.data import Arrays, MapDataset, UserData
from clframe.errors import ConfigurationError, DataError

RGB = np.random.RandomState(0).randint(0, 256, (6, 4, 5, 3), np.uint8)
LABELS = np.array([0, 1, 2, 0, 1, 2])


class Pairs:
    def __init__(self, images, targets=LABELS, classes=None):
        self.images, self.targets = images, targets
        if classes:
            self.classes = classes

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        return self.images[index], self.targets[index]


def arrays(x, y=LABELS, **options):
    return Arrays(x_train=x, y_train=y, x_test=x[:3], y_test=y[:3], **options)


def train_images(data):
    return data.train.images.gather(torch.arange(len(data.train)))


@pytest.mark.parametrize(
    ("given", "layout"),
    [
        (RGB, "NHWC"),
        (torch.from_numpy(RGB), "NHWC"),
        (RGB.transpose(0, 3, 1, 2), "NCHW"),
        (torch.from_numpy(RGB).permute(0, 3, 1, 2), "NCHW"),
    ],
    ids=["array", "tensor", "array NCHW", "tensor NCHW"],
)
def test_arrays_in_any_layout_open_to_the_same(root, given, layout):
    data = arrays(given, layout=layout).open(root)
    assert torch.equal(train_images(data), torch.from_numpy(RGB))
    assert data.fingerprint == arrays(RGB).open(root).fingerprint
    assert (data.shape, data.class_names) == ((3, 4, 5), ("0", "1", "2"))
    np.testing.assert_allclose(data.mean, (RGB / 255).mean((0, 1, 2)), atol=1e-6)


def test_grey_arrays_and_features(root):
    grey = arrays(RGB[..., 0]).open(root)
    assert grey.shape == (1, 4, 5)
    assert torch.equal(train_images(grey)[..., 0], torch.from_numpy(RGB[..., 0].copy()))
    features = arrays(np.random.RandomState(0).randn(6, 7)).open(root)
    assert (features.shape, features.train.images.dtype, features.mean) == ((7,), torch.float32, ())


def test_arrays_are_not_copied_but_what_is_gathered_is(root):
    own = RGB.copy()
    data = arrays(own).open(root)
    assert data.train.images.tensor.data_ptr() == torch.from_numpy(own).data_ptr()
    train_images(data).zero_()
    np.testing.assert_array_equal(own, RGB)


def test_read_only_arrays_are_taken_silently(root):
    own = RGB.copy()
    own.flags.writeable = False
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(train_images(arrays(own).open(root)), torch.from_numpy(RGB))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x_train": RGB / 255.0}, "x_train as uint8 images .*float64"),
        ({"x_train": RGB[0, 0, 0]}, "x_train as uint8"),
        ({"y_train": LABELS[:4]}, "4 targets for 6 images"),
        ({"y_train": LABELS - 1}, "y_train as class indices"),
        ({"y_train": LABELS + 0.5}, "y_train as class indices"),
        ({"x_test": RGB[:3, :, :2]}, "one shape per sample"),
        ({"x_test": RGB[:0], "y_test": LABELS[:0]}, "at least one sample in x_test"),
        ({"class_names": ("a", "b")}, "below the 2 class names, received 2"),
        ({"mean": (0.5,)}, "mean with a value for each of 3 channels"),
    ],
)
def test_bad_arrays_are_refused_in_a_sentence(root, change, message):
    with pytest.raises(DataError, match=message):
        arrays(RGB).replace(**change).open(root)


def test_constructing_arrays_looks_at_nothing():
    assert repr(Arrays(x_train=None, y_train=None, x_test=None, y_test=None)) == "Arrays(name='arrays')"


PIL_IMAGES = [Image.fromarray(image) for image in RGB]
TENSORS = list(torch.from_numpy(RGB).permute(0, 3, 1, 2))


@pytest.mark.parametrize(
    "images",
    [PIL_IMAGES, list(RGB), TENSORS, [t.float() / 255 for t in TENSORS], list(RGB / 255.0)],
    ids=["PIL", "array", "tensor", "float tensor", "float array"],
)
def test_a_walk_gives_the_pixels(root, images):
    targets = [torch.tensor(1), np.int64(0), 2, 0, 1, 2]
    data = MapDataset(train=Pairs(images, targets), test=Pairs(images[:2])).open(root)
    assert torch.equal(train_images(data), torch.from_numpy(RGB))
    assert data.train.targets.tolist() == [1, 0, 2, 0, 1, 2]
    assert data.class_names == ("0", "1", "2")


def test_a_walk_keeps_grey_features_and_names(root):
    grey = MapDataset(
        train=Pairs([i.convert("L") for i in PIL_IMAGES], classes=list("xyz")), test=Pairs(list(RGB[:, :, :, 0]))
    )
    opened = grey.open(root)
    assert (opened.shape, opened.class_names) == ((1, 4, 5), ("x", "y", "z"))
    vectors = list(np.random.RandomState(1).randn(6, 9))
    features = MapDataset(train=Pairs(vectors), test=Pairs(vectors)).open(root)
    assert features.shape == (9,)
    np.testing.assert_array_equal(train_images(features).numpy(), np.stack(vectors).astype(np.float32))


def test_equal_images_of_other_class_names_are_kept_apart(root):
    for names in (list("xyz"), list("uvw")):
        source = MapDataset(train=Pairs(list(RGB), classes=names), test=Pairs(list(RGB)))
        assert source.open(root).class_names == tuple(names)


def test_a_walk_fits_odd_sizes(root):
    images = [PIL_IMAGES[0].resize((7, 9)), *PIL_IMAGES[1:]]
    with pytest.raises(
        DataError, match=r"\(4, 5, 3\) as item 1 of the train data set Pairs after \(9, 7, 3\); give a size"
    ):
        MapDataset(train=Pairs(images), test=Pairs(images)).open(root)
    assert MapDataset(train=Pairs(images), test=Pairs(images), size=4).open(root).shape == (3, 4, 4)


def test_sizes_mean_the_same_for_arrays_and_pictures(root):
    opened = [MapDataset(train=Pairs(x), test=Pairs(x), size=3).open(root) for x in (PIL_IMAGES, list(RGB), TENSORS)]
    assert len({data.fingerprint for data in opened}) == 1


def test_cache_as_walks_once(root):
    MapDataset(train=Pairs(list(RGB)), test=Pairs(list(RGB)), cache_as="mine").open(root)
    again = MapDataset(train=None, test=None, cache_as="mine").open(root)
    assert torch.equal(train_images(again), torch.from_numpy(RGB))


@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        (iter(()), "to have __len__ and __getitem__"),
        (list(RGB), r"Expected \(image, target\) as item 0"),
        (
            Pairs(list(RGB), ["cat"] * 6),
            "class index ≥ 0 as the target of item 0 of the train data set Pairs, received 'cat'",
        ),
        (Pairs(list(RGB), [0, 1, -1, 0, 0, 0]), "target of item 2"),
        (Pairs([t.float() - 3 for t in TENSORS]), "leave normalisation to clframe"),
        (Pairs(list(RGB), LABELS[:4]), "item 4 .* raised IndexError"),
    ],
)
def test_bad_data_sets_are_refused_in_a_sentence(root, own_cache, dataset, message):
    with pytest.raises(DataError, match=message):
        MapDataset(train=dataset, test=Pairs(list(RGB))).open(root)
    assert not list((own_cache / "stores").glob("*.tmp"))


USER_FILE = '''
import numpy as np
from clframe.data import Arrays

class Mine:
    """Constant images: all 7 for training, all 9 for the test."""
    def __init__(self, train):
        self.value = 7 if train else 9
    def __len__(self):
        return 4
    def __getitem__(self, index):
        return np.full((2, 2, 3), self.value, np.uint8), index % 2

def function(train: bool):
    return Mine(train)

def nothing(train):
    return None

def broken(train):
    raise RuntimeError("no such disk")

def no_train():
    return Mine(True)

number = 3
x = np.zeros((4, 2, 2, 3), np.uint8)
source = Arrays(x_train=x, y_train=np.arange(4), x_test=x, y_test=np.arange(4))
'''


@pytest.fixture
def user_file(tmp_path):
    path = tmp_path / "my_data.py"
    path.write_text(USER_FILE)
    return path


@pytest.mark.parametrize("name", ["Mine", "function"])
def test_a_users_class_or_function_by_its_file(root, user_file, name):
    data = UserData(path=f"{user_file}:{name}").open(root)
    assert (train_images(data) == 7).all()
    assert (data.test.images.gather(torch.arange(4)) == 9).all()
    assert (data.name, data.class_names) == (name, ("0", "1"))


def test_a_users_source_by_its_file(root, user_file):
    assert UserData(path=f"{user_file}:source").open(root).class_names == ("0", "1", "2", "3")


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("nothing", DataError, "train data set to have __len__ .* received NoneType"),
        ("broken", DataError, r"called with \(train=True\), but it raised RuntimeError: no such disk"),
        ("no_train", DataError, "raised TypeError"),
        ("number", DataError, "takes train=True or train=False, received int"),
        ("Nine", ConfigurationError, "has nothing named 'Nine'. Did you mean 'Mine'"),
    ],
)
def test_what_a_users_file_gets_wrong_is_said(root, user_file, name, error, message):
    with pytest.raises(error, match=message):
        UserData(path=f"{user_file}:{name}").open(root)
