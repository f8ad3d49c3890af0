"""Batched augmentation against Pillow and torchvision, applied image by image with the same drawn parameters."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torchvision.transforms.functional as VF
from PIL import Image, ImageEnhance
from torch import Tensor
from torchvision.transforms import v2

from clframe.data.augment import (
    PRESETS,
    Augmentation,
    BrightnessJitter,
    CenterCrop,
    CutMix,
    Cutout,
    HorizontalFlip,
    Pipeline,
    RandomCrop,
    RandomResizedCrop,
    Resize,
    ToInput,
    build_augmentation,
    standard,
    to_input,
)
from clframe.data.autoaugment import AutoAugmentCIFAR
from clframe.errors import ConfigurationError

RANDOM: list[Augmentation] = [
    RandomCrop(),
    RandomCrop(padding=0, size=5),
    RandomCrop(padding=2, size=11),
    HorizontalFlip(),
    BrightnessJitter(),
    Cutout(length=6),
    RandomResizedCrop(size=8),
    RandomResizedCrop(size=8, antialias=False),
    AutoAugmentCIFAR(),
]
EVERY = [*RANDOM, Resize(size=7), CenterCrop(size=9), CenterCrop(size=20)]
SHAPES = [(64, 12, 12, 3), (9, 11, 13, 3), (9, 13, 11, 1), (1, 11, 12, 3)]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def noise(*shape: int, seed: int = 1) -> Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator(seed))


def planes(image: Tensor) -> Tensor:
    return image.permute(2, 0, 1)


def chi_square(values: Tensor, cells: int) -> float:
    counts = torch.bincount(values, minlength=cells).double()
    assert len(counts) == cells
    expected = len(values) / cells
    return float(((counts - expected) ** 2 / expected).sum())


# Laws of every transform


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("transform", EVERY, ids=repr)
def test_same_seed_gives_same_bits_in_new_memory(transform: Augmentation, shape: tuple[int, ...]):
    images = noise(*shape)
    before = images.clone()
    first, second = transform(images, generator(3)), transform(images, generator(3))
    assert first.dtype == torch.uint8
    assert first.is_contiguous()
    assert first.untyped_storage().data_ptr() != images.untyped_storage().data_ptr()
    assert torch.equal(first, second)
    assert torch.equal(images, before)


@pytest.mark.parametrize("transform", EVERY, ids=repr)
@pytest.mark.parametrize("make", [lambda x: x[2:5], lambda x: x.permute(0, 2, 1, 3), lambda x: x[:, 1:, ::2]])
def test_memory_layout_of_the_input_makes_no_difference(transform: Augmentation, make):
    view = make(noise(8, 12, 14, 3))
    assert torch.equal(
        transform(view, generator()), transform(view.clone(memory_format=torch.contiguous_format), generator())
    )


@pytest.mark.parametrize("transform", EVERY, ids=repr)
def test_draws_depend_on_neither_content_nor_device(transform: Augmentation):
    states = []
    for images in (
        noise(16, 12, 12, 3),
        torch.zeros(16, 12, 12, 3, dtype=torch.uint8),
        noise(16, 12, 12, 3).to("meta"),
    ):
        source = generator(5)
        transform(images, source)
        states.append(source.get_state())
    assert all(torch.equal(states[0], s) for s in states)


@pytest.mark.parametrize("transform", EVERY, ids=repr)
def test_no_draw_from_the_global_generator(transform: Augmentation):
    before = torch.get_rng_state()
    transform(noise(4, 12, 12, 3), generator())
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("transform", EVERY, ids=repr)
def test_meta_device_stays_on_it_with_the_same_shape(transform: Augmentation, shape: tuple[int, ...]):
    out = transform(torch.empty(shape, dtype=torch.uint8, device="meta"), generator())
    assert out.device.type == "meta"
    assert out.dtype == torch.uint8
    assert out.shape == transform(noise(*shape), generator()).shape


@pytest.mark.parametrize("transform", RANDOM, ids=repr)
def test_each_image_draws_its_own(transform: Augmentation):
    same = noise(1, 12, 12, 3).expand(32, -1, -1, -1).contiguous()
    distinct = len(transform(same, generator()).flatten(1).unique(dim=0))
    assert distinct == 2 if isinstance(transform, HorizontalFlip) else distinct >= 10


@pytest.mark.parametrize("transform", [v2.RandomCrop(12, padding=4), v2.RandomHorizontalFlip()], ids=repr)
def test_torchvision_draws_once_per_batch(transform):
    """The reason for this module; should it fail one day, torchvision could be used instead."""
    same = noise(1, 3, 12, 12).expand(32, -1, -1, -1)
    assert len(transform(same).flatten(1).unique(dim=0)) == 1


@pytest.mark.parametrize("transform", RANDOM, ids=repr)
def test_an_image_is_treated_alone(transform: Augmentation):
    """Another image in the batch changes nothing for its neighbours."""
    images = noise(8, 12, 12, 3)
    changed = images.clone()
    changed[3] = 255 - changed[3]
    keep = [i for i in range(8) if i != 3]
    assert torch.equal(transform(images, generator())[keep], transform(changed, generator())[keep])


# Equality to an independent reference


@pytest.mark.parametrize("transform", [RandomCrop(), RandomCrop(padding=0, size=5), RandomCrop(padding=2, size=11)])
@pytest.mark.parametrize("shape", SHAPES)
def test_crop_equals_torchvision(transform: RandomCrop, shape: tuple[int, ...]):
    images = noise(*shape)
    top, left = transform.draw(shape, generator())
    height, width = (transform.size or shape[1], transform.size or shape[2])
    for image, out, i, j in zip(images, transform(images, generator()), top.tolist(), left.tolist(), strict=True):
        expected = VF.crop(VF.pad(planes(image), [transform.padding]), i, j, height, width)
        assert torch.equal(planes(out), expected)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("p", [0.0, 0.5, 1.0])
def test_flip_equals_torchvision(p: float, shape: tuple[int, ...]):
    images = noise(*shape)
    flipped = HorizontalFlip(p=p).draw(len(images), generator())
    out = HorizontalFlip(p=p)(images, generator())
    for image, got, flip in zip(images, out, flipped.tolist(), strict=True):
        assert torch.equal(planes(got), VF.hflip(planes(image)) if flip else planes(image))


@pytest.mark.parametrize("strength", [63 / 255, 1.0])
def test_brightness_equals_pillow_and_torchvision(strength: float):
    images = noise(32, 16, 16, 3)
    transform = BrightnessJitter(strength=strength)
    factors = transform.draw(32, generator()).tolist()
    for image, out, factor in zip(images, transform(images, generator()), factors, strict=True):
        pillow = ImageEnhance.Brightness(Image.fromarray(image.numpy())).enhance(factor)
        assert torch.equal(out, torch.from_numpy(np.array(pillow)))
        assert torch.equal(planes(out), VF.adjust_brightness(planes(image), factor))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("length", [1, 5, 6, 40])
def test_cutout_equals_a_loop(length: int, shape: tuple[int, ...]):
    """The authors' code: a mask of ones with [y - length // 2, y + length // 2) set to 0, clipped."""
    images = noise(*shape)
    corners = Cutout(length=length).draw(shape, generator()).T.tolist()
    for image, out, (top, left) in zip(images, Cutout(length=length)(images, generator()), corners, strict=True):
        expected = image.numpy().copy()
        y, x = top + length // 2, left + length // 2
        assert 0 <= y < shape[1]
        assert 0 <= x < shape[2]
        expected[max(y - length // 2, 0) : y + length // 2, max(x - length // 2, 0) : x + length // 2] = 0
        assert np.array_equal(out.numpy(), expected)


@pytest.mark.parametrize("antialias", [True, False])
@pytest.mark.parametrize(("size", "shape"), [(8, (32, 30, 40, 3)), (32, (32, 16, 12, 1)), (17, (32, 24, 24, 3))])
def test_random_resized_crop_equals_torchvision(size: int, shape: tuple[int, ...], antialias: bool):
    images = noise(*shape)
    transform = RandomResizedCrop(size=size, antialias=antialias)
    boxes = transform.draw(shape, generator()).T.tolist()
    for image, out, (i, j, h, w) in zip(images, transform(images, generator()), boxes, strict=True):
        expected = VF.resized_crop(planes(image).float(), i, j, h, w, [size, size], antialias=antialias).round()
        assert (planes(out) - expected).abs().max() <= 1


def test_random_resized_crop_of_the_whole_image_changes_nothing():
    images = noise(4, 10, 10, 3)
    assert torch.equal(RandomResizedCrop(size=10, scale=(1.0, 1.0), ratio=(1.0, 1.0))(images, generator()), images)


@pytest.mark.parametrize("shape", [(3, 20, 31, 3), (3, 31, 20, 1), (1, 9, 9, 3)])
@pytest.mark.parametrize("size", [7, 16, 33])
def test_resize_and_center_crop_equal_torchvision(size: int, shape: tuple[int, ...]):
    images = noise(*shape)
    resized, cropped = Resize(size=size)(images), CenterCrop(size=size)(images)
    expected = VF.resize(images.permute(0, 3, 1, 2).float(), [size], antialias=True).round().permute(0, 2, 3, 1)
    assert resized.shape == expected.shape
    assert (resized - expected).abs().max() <= 1
    assert torch.equal(cropped, VF.center_crop(images.permute(0, 3, 1, 2), [size]).permute(0, 2, 3, 1))


# Statistics of the draws, on a fixed seed; limits are the 99.9 % quantiles


def test_flip_rate():
    rate = HorizontalFlip(p=0.3).draw(20000, generator()).float().mean().item()
    assert abs(rate - 0.3) < 3.3 * (0.3 * 0.7 / 20000) ** 0.5


def test_crop_offsets_are_uniform_and_independent():
    top, left = RandomCrop().draw((40500, 32, 32, 3), generator())
    assert chi_square(top * 9 + left, 81) < 124.8  # 80 degrees of freedom


def test_cutout_centres_are_uniform():
    top, left = Cutout(length=16).draw((25600, 16, 16, 3), generator()) + 8
    assert chi_square(top * 16 + left, 256) < 330.5  # 255 degrees of freedom


def test_brightness_factors_are_uniform():
    factors = BrightnessJitter(strength=0.25).draw(20000, generator())
    assert factors.min() >= 0.75
    assert factors.max() <= 1.25
    assert chi_square(((factors - 0.75) * 40).long().clamp(max=19), 20) < 43.8  # 19 degrees of freedom


@pytest.mark.parametrize(("shape", "ratio"), [((4000, 32, 32, 3), (3 / 4, 4 / 3)), ((4000, 40, 24, 3), (0.5, 1.2))])
def test_random_resized_crop_boxes_follow_torchvisions(shape: tuple[int, ...], ratio: tuple[float, float]):
    """Same mean and spread of each box value as torchvision's own draws, within 5 standard errors."""
    ours = RandomResizedCrop(size=8, ratio=ratio).draw(shape, generator()).T.double()
    assert (ours >= 0).all()
    assert (ours[:, 0] + ours[:, 2] <= shape[1]).all()
    assert (ours[:, 1] + ours[:, 3] <= shape[2]).all()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        image, scale = torch.empty(3, *shape[1:3]), [0.08, 1.0]
        reference = v2.RandomResizedCrop(8, scale=scale, ratio=ratio)
        drawn = [reference.make_params([image]) for _ in range(shape[0])]
    theirs = torch.tensor([[d["top"], d["left"], d["height"], d["width"]] for d in drawn]).double()
    error = theirs.std(0) * (2 / shape[0]) ** 0.5
    assert ((ours.mean(0) - theirs.mean(0)).abs() < 5 * error).all()
    assert ((ours.std(0) - theirs.std(0)).abs() < 5 * error).all()


def test_random_resized_crop_falls_back_to_the_centre():
    """No square of the whole area fits into 8 × 16; torchvision then takes the central box of allowed ratio."""
    boxes = RandomResizedCrop(size=4, scale=(1.0, 1.0), ratio=(1.0, 1.0)).draw((5, 8, 16, 3), generator())
    assert boxes.T.tolist() == [[0, 4, 8, 8]] * 5


# To the model's input


@pytest.mark.parametrize("shape", [(5, 32, 32, 3), (3, 7, 9, 1), (1, 5, 4, 3), (2, 6, 6, 4)])
def test_to_input_normalises_into_channels_last(shape: tuple[int, ...]):
    images = noise(*shape)
    mean, std = (0.5071, 0.4867, 0.4408, 0.3)[: shape[3]], (0.2675, 0.2565, 0.2761, 0.4)[: shape[3]]
    out = ToInput(mean, std)(images)
    exact = (images.double() / 255 - torch.tensor(mean, dtype=torch.float64)) / torch.tensor(std, dtype=torch.float64)
    assert out.dtype == torch.float32
    assert out.shape == (shape[0], shape[3], shape[1], shape[2])
    assert out.is_contiguous(memory_format=torch.channels_last)
    assert (out.double() - exact.permute(0, 3, 1, 2)).abs().max() < 1e-6
    assert torch.equal(to_input(images, mean, std), out)
    assert torch.equal(ToInput(mean, std)(images, torch.bfloat16), out.bfloat16())


def test_to_input_works_for_a_second_width_and_device():
    convert = ToInput((0.2,), (0.5,))
    for width in (6, 9, 6):
        assert torch.equal(convert(noise(2, 4, width, 1)), to_input(noise(2, 4, width, 1), (0.2,), (0.5,)))
    out = convert(torch.empty(2, 4, 6, 1, dtype=torch.uint8, device="meta"))
    assert (out.device.type, out.shape) == ("meta", (2, 1, 4, 6))


def test_to_input_passes_features():
    features = torch.randn(4, 10)
    assert ToInput((0.5,), (0.5,))(features) is features


def test_to_input_refuses_the_wrong_number_of_channels():
    with pytest.raises(ConfigurationError, match="each of 3 channels, received 1 and 1"):
        ToInput((0.5,), (0.5,))(noise(2, 4, 4, 3))


# Pipelines and presets


def test_pipeline_applies_in_order():
    images = noise(6, 12, 12, 3)
    source = generator(2)
    step_by_step = Cutout()(HorizontalFlip()(RandomCrop()(images, source), source), source)
    assert torch.equal(Pipeline((RandomCrop(), HorizontalFlip(), Cutout()))(images, generator(2)), step_by_step)


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("shape", [(3, 32, 32), (3, 64, 64), (3, 96, 96), (1, 28, 28), (1, 8, 8)])
def test_presets_keep_the_shape_and_round_trip(name: str, shape: tuple[int, int, int]):
    pipeline = build_augmentation(name, shape)
    assert pipeline.output_shape(shape) == shape
    again = build_augmentation(pipeline.to_spec(), shape)
    assert again.to_spec() == pipeline.to_spec()
    images = noise(4, shape[1], shape[2], shape[0])
    assert torch.equal(again(images, generator()), pipeline(images, generator()))


def names(pipeline: Pipeline) -> list[str]:
    return [t["name"] for t in pipeline.to_spec()]


@pytest.mark.parametrize(
    ("name", "shape", "expected"),
    [
        ("standard", (3, 32, 32), ["random_crop", "horizontal_flip"]),
        ("standard", (3, 64, 64), ["random_crop", "horizontal_flip"]),
        ("standard", (3, 224, 224), ["random_resized_crop", "horizontal_flip"]),
        ("standard", (1, 28, 28), []),
        ("standard", (1, 8, 8), []),
        ("standard", (64,), []),
        ("none", (3, 32, 32), []),
        ("crop_flip_jitter", (3, 32, 32), ["random_crop", "horizontal_flip", "brightness_jitter"]),
        ("autoaugment_cutout", (3, 32, 32), ["random_crop", "horizontal_flip", "autoaugment_cifar", "cutout"]),
    ],
)
def test_what_the_presets_hold(name: str, shape: tuple[int, ...], expected: list[str]):
    assert names(standard(name, shape)) == expected


def test_no_transform_passes_features_and_images_as_they_are():
    for batch in (torch.randn(4, 10), noise(4, 5, 5, 1)):
        assert Pipeline()(batch, generator()) is batch
    assert build_augmentation("standard", (10,)).output_shape((10,)) == (10,)


def test_an_empty_batch_passes():
    assert standard("autoaugment_cutout", (3, 32, 32))(noise(0, 32, 32, 3), generator()).shape == (0, 32, 32, 3)


def test_lists_of_names_fields_and_objects():
    spec = ["random_crop", {"name": "cutout", "length": "8"}, HorizontalFlip(p=0.1)]
    pipeline = build_augmentation(spec, (3, 32, 32))
    assert list(pipeline.transforms) == [RandomCrop(), Cutout(length=8), HorizontalFlip(p=0.1)]
    assert build_augmentation([{"name": "resize", "size": 40}], (3, 32, 64)).output_shape((3, 32, 64)) == (3, 40, 80)


def test_a_users_own_transform_by_path(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(
        "from clframe.data.augment import Augmentation\n"
        "class Negative(Augmentation):\n"
        "    def __call__(self, images, generator):\n"
        "        return 255 - images\n"
    )
    pipeline = build_augmentation([f"{file}:Negative"], (3, 8, 8))
    images = noise(2, 8, 8, 3)
    assert torch.equal(pipeline(images, generator()), 255 - images)
    assert names(build_augmentation(pipeline.to_spec(), (3, 8, 8))) == [f"{file.resolve()}:Negative"]


@pytest.mark.parametrize(
    ("spec", "shape", "message"),
    [
        ("crop_flp", (3, 32, 32), "Did you mean 'crop_flip'"),
        (["random_crap"], (3, 32, 32), "Did you mean 'random_crop'"),
        ("xyzzy", (3, 32, 32), "Known: none, standard"),
        ([{"name": "cutout", "lenght": 3}], (3, 32, 32), "Did you mean 'length'"),
        ([{"name": "cutout", "length": 0}], (3, 32, 32), "augmentation.cutout.length"),
        ([Cutout(length=0)], (3, 32, 32), "augmentation.cutout.length"),
        ([{"length": 3}], (3, 32, 32), "add its name"),
        (["clframe.data.augment:Pipeline"], (3, 32, 32), "subclass of Augmentation"),
        (["random_resized_crop"], (3, 32, 32), "size must be given"),
        ([{"name": "random_resized_crop", "size": 8, "scale": [1, 0.5]}], (3, 32, 32), "put them in order"),
        ([{"name": "random_crop", "size": 41}], (3, 32, 32), "no larger than the padded image"),
        ("autoaugment_cutout", (2, 32, 32), "1 or 3 channels"),
        ("crop_flip", (64,), "use the augmentation 'none' for features"),
    ],
)
def test_bad_requests_are_refused_before_any_image(spec, shape: tuple[int, ...], message: str):
    with pytest.raises(ConfigurationError, match=message):
        build_augmentation(spec, shape)


def test_float_images_are_refused():
    with pytest.raises(ConfigurationError, match="Expected uint8 images"):
        standard("crop_flip", (3, 32, 32))(torch.rand(2, 32, 32, 3), generator())


# ---- CutMix


@pytest.mark.parametrize("shape", [(64, 3, 12, 12), (33, 1, 9, 14), (1, 3, 8, 8)])
def test_cutmix_equals_a_loop_and_its_shares_are_what_remains(shape: tuple[int, ...]):
    x = torch.arange(float(np.prod(shape))).view(shape).to(memory_format=torch.channels_last)
    before = x.clone()
    mixed = CutMix(alpha=1.0, p=0.7)(x, generator(3))
    partner, boxes = CutMix(alpha=1.0, p=0.7).draw(shape, generator(3))
    assert torch.equal(mixed.partner, partner)
    for row in range(shape[0]):
        top, bottom, left, right = boxes[:, row].tolist()
        expected = x[row].clone()
        if int(partner[row]) != row:
            expected[:, top:bottom, left:right] = x[int(partner[row]), :, top:bottom, left:right]
        assert torch.equal(mixed.x[row], expected)
        own = (mixed.x[row] == x[row]).float().mean()
        assert mixed.share[row].item() == pytest.approx(own.item(), abs=1e-6)
    assert torch.equal(x, before)


def test_cutmix_boxes_follow_the_paper():
    _, boxes = CutMix(alpha=1.0, p=1.0).draw((20000, 3, 64, 64), generator())
    height, width = boxes[1] - boxes[0], boxes[3] - boxes[2]
    assert boxes.min() >= 0
    assert boxes.max() <= 64
    inner = (boxes[0] > 0) & (boxes[1] < 64) & (boxes[2] > 0) & (boxes[3] < 64)
    assert torch.equal(height[inner], width[inner])  # the sides of the image's shape, where the border cuts nothing off
    # E over λ ~ U(0, 1) and a uniform centre of (side cut off at the border)², by simulation
    draws = np.random.default_rng(0)
    side = 64 * np.sqrt(1 - draws.uniform(size=200000))
    centre = draws.uniform(0, 64, size=(2, 200000))
    area = np.prod([np.minimum(c + side / 2, 64) - np.maximum(c - side / 2, 0) for c in centre], axis=0)
    assert (height.clamp(min=0) * width.clamp(min=0)).double().mean().item() == pytest.approx(area.mean(), rel=0.04)


def test_cutmix_mixes_as_often_as_asked_and_draws_partners_alike():
    mixed = CutMix(p=0.3)(torch.zeros(20000, 1, 32, 32), generator())
    assert (mixed.share < 1).double().mean().item() == pytest.approx(0.3, abs=0.02)
    assert torch.equal(mixed.partner[mixed.share == 1], (mixed.share == 1).nonzero().flatten())
    none = CutMix(p=0.0)(torch.randn(8, 1, 4, 4), generator())
    assert (none.share == 1).all()
    narrow = CutMix(alpha=100.0, p=1.0).draw((5000, 3, 64, 64), generator())[1]
    inner = (narrow[0] > 0) & (narrow[1] < 64)
    assert (narrow[1] - narrow[0])[inner].double().mean().item() == pytest.approx(64 * 0.5**0.5, abs=3)  # λ near 1/2


def test_cutmix_pairs_within_a_group():
    groups = torch.randint(3, (50,), generator=generator(1))
    mixed = CutMix(p=1.0)(torch.randn(50, 1, 8, 8), generator(), groups)
    assert torch.equal(groups[mixed.partner], groups)
    changed = mixed.share < 1
    assert changed.sum() > 25
    assert len(mixed.partner[changed].unique()) == changed.sum()


def test_cutmix_stays_on_its_device_and_draws_nothing_from_the_global_generator():
    state = torch.get_rng_state(), np.random.get_state()[1].copy()
    mixed = CutMix()(torch.empty(6, 3, 8, 8, device="meta"), generator())
    assert mixed.x.is_meta
    assert mixed.share.is_meta
    assert mixed.partner.device.type == "cpu"
    assert torch.equal(torch.get_rng_state(), state[0])
    assert (np.random.get_state()[1] == state[1]).all()
