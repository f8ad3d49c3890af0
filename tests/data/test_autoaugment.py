"""AutoAugment on batches against torchvision's operations on Pillow images and on tensors, image by image."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision.transforms import AutoAugment, AutoAugmentPolicy, InterpolationMode
from torchvision.transforms.autoaugment import _apply_op
from torchvision.transforms.functional import to_pil_image

from clframe.data.autoaugment import CIFAR10_POLICY, OPERATIONS, AutoAugmentCIFAR, magnitude_of, operate
from clframe.errors import ConfigurationError

SIGNED = {"ShearY", "TranslateX", "TranslateY", "Rotate", "Brightness", "Color", "Contrast", "Sharpness"}
BLENDS = {"Color", "Contrast", "Sharpness"}
"""One grey level off torchvision's tensors, which round luminance and blend otherwise than Pillow."""

HALVES = {"ShearY": {2, 6}, "Rotate": {6}}
"""Magnitudes outside the policy whose source points lie just between two pixels: any rounding is right."""

REFERENCE = AutoAugment(AutoAugmentPolicy.CIFAR10)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def pictures(*shape: int) -> Tensor:
    """Smooth images with noise, of differing contrast, so that each operation has something to do."""
    batch, height, width, channels = shape
    draw = torch.rand(batch, 4, 4, channels, generator=generator(1)).permute(0, 3, 1, 2)
    smooth = torch.nn.functional.interpolate(draw, size=(height, width), mode="bilinear").permute(0, 2, 3, 1)
    rough = torch.rand(shape, generator=generator(2))
    contrast = torch.linspace(0.2, 1, batch).view(-1, 1, 1, 1)
    return (255 * (0.4 * (1 - contrast) + contrast * (0.8 * smooth + 0.2 * rough))).to(torch.uint8).contiguous()


def on_pillow(image: Tensor, operation: str, magnitude: float) -> Tensor:
    """torchvision's operation on one Pillow image made of (H, W, C)."""
    picture = to_pil_image(image.permute(2, 0, 1))
    out = np.array(_apply_op(picture, operation, magnitude, InterpolationMode.NEAREST, None))
    return torch.from_numpy(out).view(image.shape)


def on_tensor(image: Tensor, operation: str, magnitude: float) -> Tensor:
    """torchvision's operation on one tensor (H, W, C)."""
    out = _apply_op(image.permute(2, 0, 1), operation, magnitude, InterpolationMode.NEAREST, None)
    return out.permute(1, 2, 0)


def assert_equals_both(images: Tensor, operation: str, magnitude: float) -> None:
    out = operate(images, operation, magnitude).int()
    pillow = (out - torch.stack([on_pillow(i, operation, magnitude) for i in images]).int()).abs()
    tensor = (out - torch.stack([on_tensor(i, operation, magnitude) for i in images]).int()).abs()
    if operation == "AutoContrast":  # Pillow's product in double precision falls just below a whole number at times
        assert pillow.max() <= 1
        assert (pillow > 0).float().mean() < 0.01
    else:
        assert pillow.max() == 0
    assert tensor.max() <= (1 if operation in BLENDS else 0)


def test_policy_is_torchvisions():
    ours = [tuple((name, p) for name, p, _ in pair) for pair in CIFAR10_POLICY]
    theirs = [tuple((name, p) for name, p, _ in pair) for pair in REFERENCE.policies]
    assert ours == theirs


@pytest.mark.parametrize("size", [(32, 32), (64, 64), (28, 45)])
def test_magnitudes_are_torchvisions(size: tuple[int, int]):
    table = REFERENCE._augmentation_space(10, size)
    for ours, theirs in zip(CIFAR10_POLICY, REFERENCE.policies, strict=True):
        for (name, _, index), (_, _, their_index) in zip(ours, theirs, strict=True):
            magnitudes, signed = table[name]
            expected = float(magnitudes[their_index]) if their_index is not None else 0.0
            assert magnitude_of(name, index, *size) == pytest.approx(expected, rel=1e-5)
            assert signed == (name in SIGNED)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("operation", OPERATIONS)
def test_operation_equals_torchvisions(operation: str, channels: int):
    images = pictures(8, 32, 28, channels)
    before = images.clone()
    for index in set(range(10)) - HALVES.get(operation, set()):
        for sign in (1, -1) if operation in SIGNED else (1,):
            assert_equals_both(images, operation, sign * magnitude_of(operation, index, 32, 28))
    assert torch.equal(images, before)


def test_magnitudes_left_out_above_are_not_in_the_policy():
    used = {(name, index) for pair in CIFAR10_POLICY for name, _, index in pair}
    assert not used & {(name, index) for name, indices in HALVES.items() for index in indices}


@pytest.mark.parametrize("operation", OPERATIONS)
def test_one_coloured_and_two_coloured_images(operation: str):
    """Contrast and histogram have corner cases there: nothing to stretch, a step of zero."""
    images = torch.full((3, 20, 20, 3), 90, dtype=torch.uint8)
    images[1, 0, 0] = 91
    images[2, :10] = 200
    assert_equals_both(images, operation, magnitude_of(operation, 7, 20, 20))


@pytest.mark.parametrize("channels", [1, 3])
def test_batch_equals_torchvision_image_by_image(channels: int):
    """The whole policy with the drawn parameters, bit for bit."""
    images = pictures(400, 20, 20, channels)
    draws = AutoAugmentCIFAR().draw(400, generator(7))
    out = AutoAugmentCIFAR()(images, generator(7))
    table = REFERENCE._augmentation_space(10, (20, 20))
    for i, image in enumerate(images):
        expected, taken = image, []
        for step, (name, p, index) in enumerate(REFERENCE.policies[int(draws.policy[i])]):
            if draws.chance[step, i] < p:
                magnitude = float(table[name][0][index]) if index is not None else 0.0
                negative = bool(draws.negative[step, i]) and name in SIGNED
                library = on_tensor if name == "AutoContrast" else on_pillow
                expected = library(expected, name, -magnitude if negative else magnitude)
                taken.append(name)
        assert torch.equal(out[i], expected), taken


def test_draws_cover_the_policy_evenly():
    draws = AutoAugmentCIFAR().draw(25000, generator())
    counts = torch.bincount(draws.policy, minlength=25).double()
    assert float(((counts - 1000) ** 2 / 1000).sum()) < 51.2  # 99.9 % quantile at 24 degrees of freedom
    assert (draws.chance.mean(1) - 0.5).abs().max() < 0.01
    assert (draws.negative.float().mean(1) - 0.5).abs().max() < 0.01


def test_a_step_of_probability_zero_is_never_taken():
    assert CIFAR10_POLICY[14][1] == ("Invert", 0.0, 0)
    images = pictures(1, 12, 12, 3).expand(3000, -1, -1, -1).contiguous()
    draws = AutoAugmentCIFAR().draw(3000, generator())
    out = AutoAugmentCIFAR()(images, generator())[(draws.policy == 14) & (draws.chance[0] >= 0.5)]
    assert len(out) > 20
    assert torch.equal(out, images[: len(out)])


@pytest.mark.parametrize("operation", OPERATIONS)
def test_operations_on_the_meta_device(operation: str):
    out = operate(torch.empty(2, 9, 7, 3, dtype=torch.uint8, device="meta"), operation, 1.0)
    assert (out.device.type, out.dtype, out.shape) == ("meta", torch.uint8, (2, 9, 7, 3))


def test_tiny_images():
    images = pictures(64, 2, 1, 3)
    assert AutoAugmentCIFAR()(images, generator()).shape == images.shape


def test_unknown_operation_is_refused():
    with pytest.raises(ConfigurationError, match="Did you mean 'Solarize'"):
        operate(pictures(1, 4, 4, 3), "Solarise", 1.0)
