"""Common corruptions: each equals another library's road or a plain loop, and an image's noise is its own."""

from __future__ import annotations

import hashlib
import io

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.colors import hsv_to_rgb, rgb_to_hsv
from PIL import Image
from scipy import ndimage, stats

from clframe.data import corruptions
from clframe.data.corruptions import CORRUPTIONS, Corruption
from clframe.errors import ConfigurationError

GOLDEN = {
    "gaussian_noise": "7baa1ee24e64",
    "shot_noise": "da5d7e255bb2",
    "impulse_noise": "8b7e3c3dea70",
    "defocus_blur": "5c9ed04bcc27",
    "motion_blur": "e3c51d285b68",
    "zoom_blur": "7a07a23eaeae",
    "fog": "1255847cd46f",
    "brightness": "4184d518c1e6",
    "contrast": "f1cb0a22df70",
    "elastic_transform": "1907238954ac",
    "pixelate": "f6710c321547",
    "speckle_noise": "6e6bc5a0eb48",
    "gaussian_blur": "4bf956b84a95",
    "saturate": "171053077b32",
}


def photos(count: int = 6, height: int = 32, width: int = 32, channels: int = 3) -> torch.Tensor:
    """Smooth images with black, white and grey places."""
    draw = np.random.default_rng(0)
    rough = draw.uniform(-0.3, 1.3, (count, channels, 5, 5))
    smooth = ndimage.zoom(rough, (1, 1, height / 5, width / 5), order=1).clip(0, 1)
    images = np.round(smooth * 255).astype(np.uint8).transpose(0, 2, 3, 1)
    images[:, :2, :2], images[:, 2:3, :2], images[:, :2, 2:3] = 0, 255, 90
    return torch.from_numpy(np.ascontiguousarray(images))


def corrupted(name: str, severity: int, images: torch.Tensor, seed: int = 0) -> np.ndarray:
    return Corruption(name, severity, seed)(images).numpy()


def same(found: np.ndarray, expected: np.ndarray, slack: float = 0.501) -> None:
    """`expected` holds values in [0, 1]; the corruption rounded to grey levels."""
    assert np.abs(found - expected.clip(0, 1) * 255).max() <= slack


SEVERITIES = pytest.mark.parametrize("severity", [1, 2, 3, 4, 5])


# ---- what holds for all of them


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_an_image_looks_the_same_in_every_batch_and_the_input_stays(name, monkeypatch):
    images = photos(7)
    kept = images.clone()
    for severity in (1, 5):
        whole = Corruption(name, severity)(images)
        assert torch.equal(images, kept)
        assert whole.dtype == torch.uint8
        assert whole.shape == images.shape
        assert whole.is_contiguous()
        alone = torch.cat([Corruption(name, severity)(images[i : i + 1]) for i in range(7)])
        assert torch.equal(alone, whole)
        order = torch.tensor([4, 4, 0, 6, 2])
        assert torch.equal(Corruption(name, severity)(images[order]), whole[order])
        assert not torch.equal(whole, images)
        monkeypatch.setattr(corruptions, "_CHUNK", 2 * images[0].numel())
        assert torch.equal(Corruption(name, severity)(images), whole)
    assert Corruption(name, 1)(images[:0]).shape == (0, 32, 32, 3)


DRAWN = ["gaussian_noise", "shot_noise", "impulse_noise", "motion_blur", "fog", "elastic_transform", "speckle_noise"]


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_the_seed_moves_what_is_drawn_and_nothing_else(name):
    first, second = (corrupted(name, 4, photos(), seed) for seed in (0, 1))
    assert (first != second).any() == (name in DRAWN)
    assert Corruption(name, 4, 1).spec() == {"name": "corruption", "corruption": name, "severity": 4, "seed": 1}


@pytest.mark.parametrize("name", GOLDEN)
def test_golden_bytes(name):
    """But for `jpeg_compression`, whose bits are libjpeg's."""
    found = b"".join(corrupted(name, s, photos(2)).tobytes() for s in range(1, 6))
    assert hashlib.sha256(found).hexdigest()[:12] == GOLDEN[name]


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(sorted(CORRUPTIONS)),
    st.integers(1, 5),
    st.integers(1, 40),
    st.integers(1, 40),
    st.sampled_from([1, 3]),
    st.integers(0, 255),
)
def test_any_size_and_any_level(name, severity, height, width, channels, level):
    if name == "saturate" and channels == 1:
        return
    images = torch.full((2, height, width, channels), level, dtype=torch.uint8)
    images[1, : height // 2] = 255 - level
    with np.errstate(divide="raise", invalid="raise", over="raise"):
        found = Corruption(name, severity)(images)
    assert found.shape == images.shape
    if "blur" in name or name in ("elastic_transform", "pixelate", "contrast", "zoom_blur"):
        assert (found[0] == level).all()  # nothing to blur or to move


def test_what_makes_no_sense_is_refused():
    with pytest.raises(ConfigurationError, match="saturate expects colour images, received 1 channels"):
        Corruption("saturate", 1)(photos(channels=1))
    with pytest.raises(ConfigurationError, match="a severity from 1 to 5 of gaussian_noise"):
        Corruption("fog", 6)(photos())
    with pytest.raises(ConfigurationError, match=r"expects images \(B, H, W, C\), received \(3, 8\)"):
        Corruption("fog", 1)(torch.zeros(3, 8))


# ---- noise


def test_draws_are_uniform_normal_and_independent_of_each_other():
    images = photos(60, 8, 8).numpy()
    draws = corruptions._Draws(images, "salt")
    u, z = draws.uniform("a", 501), draws.normal("b", 501)
    assert stats.kstest(u.ravel(), "uniform").pvalue > 0.001
    assert stats.kstest(z.ravel(), "norm").pvalue > 0.001
    assert abs(np.corrcoef(u.ravel(), draws.uniform("c", 501).ravel())[0, 1]) < 0.03
    assert np.abs(np.corrcoef(z)[np.triu_indices(60, 1)]).max() < 0.25  # between images
    assert abs(np.corrcoef(z[:, :-1].ravel(), z[:, 1:].ravel())[0, 1]) < 0.03  # between neighbours
    one = images[:1].copy()
    one[0, 0, 0, 0] ^= 1
    assert not np.array_equal(corruptions._Draws(one, "salt").uniform("a", 9), u[:1, :9])


GREY = torch.full((1, 120, 120, 3), 102, dtype=torch.uint8)  # 0.4


@SEVERITIES
def test_the_noise_has_the_stated_strength(severity):
    k = severity - 1
    flat = GREY / 255
    for name, scale in [
        ("gaussian_noise", [0.04, 0.06, 0.08, 0.09, 0.10][k]),
        ("speckle_noise", 0.4 * [0.06, 0.1, 0.12, 0.16, 0.2][k]),
        ("shot_noise", (0.4 / [500, 250, 100, 75, 50][k]) ** 0.5),
    ]:
        noise = corrupted(name, severity, GREY) / 255 - flat.numpy()
        assert noise.std() == pytest.approx(scale, rel=0.02), name
        assert abs(noise.mean()) < 4 * scale / noise.size**0.5 + 1e-4, name
    impulse = corrupted("impulse_noise", severity, GREY)
    share = [0.01, 0.02, 0.03, 0.05, 0.07][k]
    for value in (0, 255):
        assert (impulse == value).mean() == pytest.approx(share / 2, abs=5 * (share / 2 / impulse.size) ** 0.5)
    assert set(np.unique(impulse)) == {0, 102, 255}


def test_shot_noise_is_the_quantile_of_a_poisson_distribution():
    images = torch.arange(256, dtype=torch.uint8).view(1, 16, 16, 1)
    for severity, photons in [(1, 500), (5, 50)]:
        u = corruptions._Draws(images.numpy(), f"shot_noise/{severity}/0").uniform("noise", 16, 16, 1)
        counts = stats.poisson.ppf(u, images.numpy() * (photons / 255))
        same(corrupted("shot_noise", severity, images), counts / photons)


# ---- blur


@SEVERITIES
@pytest.mark.parametrize("size", [(32, 32), (20, 29), (64, 80)])
def test_blurs_equal_scipy(severity, size):
    k, images = severity - 1, photos(2, *size)
    unit, values = max(1, min(size) / 32), images.numpy() / 255
    sigma = unit * [0.4, 0.6, 0.7, 0.8, 1][k]
    blurred = ndimage.gaussian_filter(values, (0, sigma, sigma, 0), mode="nearest", truncate=4)
    same(corrupted("gaussian_blur", severity, images), blurred)
    radius, soft = np.array([(0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1)][k]) * unit
    y, x = np.mgrid[-8:9, -8:9]
    disc = (x**2 + y**2 <= radius**2).astype(float)
    kernel = ndimage.gaussian_filter(disc / disc.sum(), soft, radius=round(unit), mode="constant")
    expected = ndimage.correlate(values, kernel[None, :, :, None], mode="mirror")
    same(corrupted("defocus_blur", severity, images), expected)


@SEVERITIES
@pytest.mark.parametrize("size", [(32, 32), (21, 21)])
def test_zoom_blur_equals_scipy(severity, size):
    images = photos(2, *size)
    factors = np.arange(1, [1.06, 1.11, 1.16, 1.21, 1.26][severity - 1], 0.01)
    for image, found in zip(images.numpy() / 255, corrupted("zoom_blur", severity, images), strict=True):
        total = image.copy()
        for factor in factors:
            side = len(image)
            cut = int(np.ceil(side / factor))
            top = (side - cut) // 2
            large = ndimage.zoom(image[top : top + cut, top : top + cut], (factor, factor, 1), order=1)
            trim = (len(large) - side) // 2
            total += large[trim : trim + side, trim : trim + side]
        same(found, total / (len(factors) + 1))


@pytest.mark.parametrize("severity", [1, 5])
def test_motion_blur_averages_along_a_line_of_its_own(severity):
    images = photos(3, 32, 40)
    radius, sigma = [(6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5)][severity - 1]
    draws = corruptions._Draws(images.numpy(), f"motion_blur/{severity}/0")
    angles = draws.uniform("angle").ravel() * np.pi / 2 - np.pi / 4
    assert len(set(angles)) == 3
    weights = np.exp(-(np.arange(2 * radius + 1) ** 2) / (2 * sigma**2))
    for image, angle, found in zip(
        images.numpy() / 255, angles, corrupted("motion_blur", severity, images), strict=True
    ):
        expected = np.zeros_like(image)
        for y, x in np.ndindex(32, 40):
            for i, weight in enumerate(weights / weights.sum()):
                down, right = (int(np.ceil(i * f(angle) - 0.5)) for f in (np.sin, np.cos))
                expected[y, x] += weight * image[min(max(y + down, 0), 31), min(x + right, 39)]
        same(found, expected)


# ---- weather


def test_the_fog_map_is_a_diamond_square_map():
    images = photos(2, 16, 16).numpy()
    draws, size, decay = corruptions._Draws(images, "salt"), 16, 2.5
    found = corruptions._plasma(13, decay, draws)
    for b in range(2):
        heights, step, wibble = np.zeros((size, size)), size, 100.0
        while step > 1:
            half = step // 2
            noise = wibble**2 * (2 * draws.uniform(f"plasma {step}", 3, size // step, size // step)[b] - 1)
            cells = [(i, j) for i in range(0, size, step) for j in range(0, size, step)]
            for i, j in cells:
                corners = [heights[(i + a) % size, (j + c) % size] for a in (0, step) for c in (0, step)]
                heights[i + half, j + half] = sum(corners) / 4 + noise[0, i // step, j // step]
            for i, j in cells:
                for y, x, which in ((i, j + half, 1), (i + half, j, 2)):
                    around = [(y - half, x), (y + half, x), (y, x - half), (y, x + half)]
                    mean = sum(heights[p % size, q % size] for p, q in around) / 4
                    heights[y, x] = mean + noise[which, i // step, j // step]
            step, wibble = half, wibble / decay
        heights -= heights.min()
        np.testing.assert_allclose(found[b], heights / heights.max(), atol=1e-12)


@SEVERITIES
def test_fog_lightens_and_keeps_the_brightest_value_as_the_limit(severity):
    images = photos(2)
    strength, decay = [(0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75)][severity - 1]
    fog = corruptions._plasma(32, decay, corruptions._Draws(images.numpy(), f"fog/{severity}/0"))[..., None]
    values = images.numpy() / 255
    top = values.max((1, 2, 3))[:, None, None, None]
    same(corrupted("fog", severity, images), (values + strength * fog) * top / (top + strength))


@SEVERITIES
def test_colours_equal_matplotlib(severity):
    images, k = photos(), severity - 1
    values = images.numpy() / 255
    hsv = rgb_to_hsv(values)
    hsv[..., 2] = (hsv[..., 2] + [0.05, 0.1, 0.15, 0.2, 0.3][k]).clip(0, 1)
    same(corrupted("brightness", severity, images), hsv_to_rgb(hsv))
    hsv = rgb_to_hsv(values)
    factor, added = [(0.3, 0), (0.1, 0), (1.5, 0), (2, 0.1), (2.5, 0.2)][k]
    hsv[..., 1] = (hsv[..., 1] * factor + added).clip(0, 1)
    same(corrupted("saturate", severity, images), hsv_to_rgb(hsv))
    means = values.mean((1, 2), keepdims=True)
    same(corrupted("contrast", severity, images), (values - means) * [0.75, 0.5, 0.4, 0.3, 0.15][k] + means)


# ---- digital


@SEVERITIES
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [(32, 32), (8, 8), (28, 45)])
def test_pixelate_and_jpeg_equal_pillow(severity, channels, size):
    images = photos(2, *size, channels)
    share, quality = [(0.95, 80), (0.9, 65), (0.85, 58), (0.75, 50), (0.65, 40)][severity - 1]
    height, width = size
    for image, coarse, pressed in zip(
        images.numpy(),
        corrupted("pixelate", severity, images),
        corrupted("jpeg_compression", severity, images),
        strict=True,
    ):
        picture = Image.fromarray(image.squeeze())
        small = picture.resize((int(width * share), int(height * share)), Image.Resampling.BOX)
        large = small.resize((width, height), Image.Resampling.BOX)
        np.testing.assert_array_equal(coarse, np.asarray(large).reshape(image.shape))
        buffer = io.BytesIO()
        picture.save(buffer, "JPEG", quality=quality)
        np.testing.assert_array_equal(pressed, np.asarray(Image.open(buffer)).reshape(image.shape))


@SEVERITIES
@pytest.mark.parametrize("size", [(32, 32), (24, 30)])
def test_elastic_transform_equals_scipy(severity, size):
    images = photos(2, *size)
    height, width = size
    side = min(size)
    shift, smooth, corner = (
        side * np.array([(0, 0, 0.08), (0.05, 0.2, 0.07), (0.08, 0.06, 0.06), (0.1, 0.04, 0.05), (0.1, 0.03, 0.03)])
    )[severity - 1]
    draws = corruptions._Draws(images.numpy(), f"elastic_transform/{severity}/0")
    jitter, field = draws.uniform("corners", 3, 2), draws.uniform("field", height, width, 2)
    third, middle = side // 3, np.array([width // 2, height // 2])
    points = middle + np.array([[third, third], [third, -third], [-third, -third]])
    y, x = np.mgrid[:height, :width].astype(float)
    for b, found in enumerate(corrupted("elastic_transform", severity, images)):
        moved = points + corner * (2 * jitter[b] - 1)
        forward = np.linalg.solve(np.c_[points, np.ones(3)], moved).T  # (2, 3): where a place goes
        back = np.linalg.inv(np.r_[forward, [[0, 0, 1]]])
        sources = np.einsum("ij,jhw->ihw", back, np.stack([x, y, np.ones_like(x)]))
        places = sources[1], sources[0]
        warped = [
            ndimage.map_coordinates(c, places, order=1, mode="mirror") for c in images[b].permute(2, 0, 1) / 255.0
        ]
        move = [
            shift * ndimage.gaussian_filter(2 * field[b, ..., i] - 1, smooth, mode="reflect", truncate=3)
            if smooth
            else np.zeros(size)
            for i in (0, 1)
        ]
        bent = [ndimage.map_coordinates(c, (y + move[1], x + move[0]), order=1, mode="reflect") for c in warped]
        same(found, np.stack(bent, axis=2), 0.51)
