"""Losses against NumPy and finite differences."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from clframe.losses import (
    binary_cross_entropy,
    binary_distillation,
    cross_entropy,
    distillation,
    logit_matching,
    mixed_cross_entropy,
    nca,
    pod_flat,
    pod_spatial,
)


def draw(seed: int, *shape: int, scale: float = 3.0) -> torch.Tensor:
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def softmax(z: np.ndarray) -> np.ndarray:
    e = np.exp(z - z.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def finite_difference(loss, logits: torch.Tensor, step: float = 1e-6) -> torch.Tensor:
    gradient = torch.zeros_like(logits)
    for index in np.ndindex(*logits.shape):
        plus, minus = logits.clone(), logits.clone()
        plus[index] += step
        minus[index] -= step
        gradient[index] = (loss(plus) - loss(minus)) / (2 * step)
    return gradient


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    count=st.integers(1, 7),
    classes=st.integers(1, 6),
    per_sample=st.booleans(),
    data=st.data(),
)
def test_cross_entropy_equals_numpy_over_the_allowed_classes(seed, count, classes, per_sample, data):
    logits = draw(seed, count, classes)
    targets = [data.draw(st.integers(-1, classes - 1)) for _ in range(count)]
    shape = (count, classes) if per_sample else (classes,)
    allowed = torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < 0.5
    for row, target in enumerate(targets):
        if target >= 0:
            allowed[(row, target) if per_sample else (target,)] = True
    losses = []
    for row, target in enumerate(targets):
        if target >= 0:
            mask = (allowed[row] if per_sample else allowed).numpy()
            p = softmax(logits[row].numpy()[mask])
            losses.append(-np.log(p[np.flatnonzero(mask).tolist().index(target)]))
    expected = np.mean(losses) if losses else 0.0
    assert cross_entropy(logits, torch.tensor(targets), allowed).item() == pytest.approx(expected, abs=1e-12)


def test_cross_entropy_without_a_mask_has_the_bits_of_pytorch():
    logits, targets = draw(0, 64, 10).float(), torch.randint(10, (64,), generator=torch.Generator().manual_seed(1))
    assert torch.equal(cross_entropy(logits, targets), torch.nn.functional.cross_entropy(logits, targets))


@pytest.mark.parametrize("allowed", [None, torch.tensor([True, False, True]), torch.zeros(4, 3, dtype=torch.bool)])
def test_a_batch_without_labels_costs_nothing_and_moves_nothing(allowed):
    logits = draw(2, 4, 3).requires_grad_()
    loss = cross_entropy(logits, torch.full((4,), -1), allowed)
    loss.backward()
    assert loss.item() == 0.0
    assert torch.equal(logits.grad, torch.zeros(4, 3, dtype=torch.float64))


def test_withheld_labels_change_neither_the_loss_nor_the_gradient_of_the_others():
    logits = draw(3, 5, 4)
    targets = torch.tensor([0, -1, 2, -1, 3])
    known = targets >= 0
    whole, part = logits.clone().requires_grad_(), logits[known].clone().requires_grad_()
    cross_entropy(whole, targets).backward()
    cross_entropy(part, targets[known]).backward()
    torch.testing.assert_close(whole.grad[known], part.grad)
    assert not whole.grad[~known].any()


def test_cross_entropy_of_a_wrong_and_hidden_class_gives_no_gradient_to_it():
    logits = draw(4, 3, 5).requires_grad_()
    cross_entropy(logits, torch.tensor([0, 1, 1]), torch.tensor([True, True, False, False, False])).backward()
    assert not logits.grad[:, 2:].any()
    assert logits.grad[:, :2].abs().min() > 0


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6), temperature=st.floats(0.3, 8.0), scale=st.booleans())
def test_distillation_equals_numpy(seed, temperature, scale):
    student, teacher = draw(seed, 4, 5), draw(seed + 1, 4, 5)
    q, p = softmax(teacher.numpy() / temperature), softmax(student.numpy() / temperature)
    expected = -(q * np.log(p)).sum(axis=1).mean() * (temperature**2 if scale else 1.0)
    assert distillation(student, teacher, temperature, scale=scale).item() == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("scale", [False, True])
def test_gradient_of_the_distillation_equals_finite_differences(scale):
    student, teacher = draw(5, 3, 4).requires_grad_(), draw(6, 3, 4)
    distillation(student, teacher, 2.0, scale=scale).backward()
    found = finite_difference(lambda z: distillation(z, teacher, 2.0, scale=scale), student.detach())
    torch.testing.assert_close(student.grad, found, rtol=1e-6, atol=1e-9)


def test_the_factor_keeps_the_size_of_the_gradient_at_high_temperature():
    student, teacher = draw(7, 6, 5, scale=0.1), draw(8, 6, 5, scale=0.1)
    sizes = []
    for temperature in (50.0, 500.0):
        z = student.clone().requires_grad_()
        distillation(z, teacher, temperature, scale=True).backward()
        sizes.append(float(z.grad.norm()))
    assert sizes[0] == pytest.approx(sizes[1], rel=0.01)


def test_no_gradient_when_the_student_is_the_teacher_and_none_ever_into_the_teacher():
    teacher = draw(9, 4, 6).requires_grad_()
    student = teacher.detach().clone().requires_grad_()
    distillation(student, teacher, 2.0).backward()
    assert student.grad.abs().max() < 1e-15
    assert teacher.grad is None


def sigmoid(z: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-z))


def test_binary_cross_entropy_equals_numpy_over_the_allowed_classes():
    logits, targets = draw(4, 5, 4), torch.tensor([0, 3, -1, 1, 2])
    allowed = torch.rand(5, 4, generator=torch.Generator().manual_seed(0)) < 0.6
    for mask in (None, torch.tensor([True, False, True, True]), allowed):
        counted = np.broadcast_to(True if mask is None else mask.numpy(), (5, 4)) & (targets >= 0).numpy()[:, None]
        own = np.arange(4)[None] == targets.numpy()[:, None]
        p = sigmoid(logits.numpy())
        expected = -np.log(np.where(own, p, 1 - p))[counted].sum() / 4
        assert binary_cross_entropy(logits, targets, mask).item() == pytest.approx(expected, rel=1e-10)
        shown = logits.clone().requires_grad_()
        binary_cross_entropy(shown, targets, mask).backward()
        slope = finite_difference(lambda z, m=mask: binary_cross_entropy(z, targets, m).item(), logits)
        torch.testing.assert_close(shown.grad, slope, rtol=1e-6, atol=1e-8)
        assert not shown.grad.numpy()[~counted].any()


def test_a_class_that_a_multi_head_hides_has_no_binary_cross_entropy():
    logits = draw(5, 3, 4).requires_grad_()
    hidden = logits.masked_fill(torch.tensor([True, True, False, False]), -torch.inf)
    loss = binary_cross_entropy(hidden, torch.tensor([2, 3, 2]))
    assert loss.item() == pytest.approx(binary_cross_entropy(logits[:, 2:], torch.tensor([0, 1, 0])).item(), rel=1e-12)
    loss.backward()
    assert torch.isfinite(logits.grad).all()
    assert binary_cross_entropy(logits, torch.full((3,), -1)).item() == 0.0


@pytest.mark.parametrize("temperature", [1.0, 3.0])
@pytest.mark.parametrize("scale", [False, True])
def test_binary_distillation_equals_numpy(temperature, scale):
    logits, teacher = draw(6, 4, 3), draw(7, 4, 3)
    p, q = sigmoid(logits.numpy() / temperature), sigmoid(teacher.numpy() / temperature)
    expected = -(q * np.log(p) + (1 - q) * np.log(1 - p)).sum(1).mean() * (temperature**2 if scale else 1)
    assert binary_distillation(logits, teacher, temperature, scale=scale).item() == pytest.approx(expected, rel=1e-10)
    shown, taught = logits.clone().requires_grad_(), teacher.clone().requires_grad_()
    binary_distillation(shown, taught, temperature, scale=scale).backward()
    slope = finite_difference(lambda z: binary_distillation(z, teacher, temperature, scale=scale).item(), logits)
    torch.testing.assert_close(shown.grad, slope, rtol=1e-6, atol=1e-8)
    assert taught.grad is None


def nca_reference(z: np.ndarray, y: np.ndarray, margin: float, public: bool) -> float:
    """The paper's loss, and the authors' code step by step."""
    rows = []
    for row, label in zip(z, y, strict=True):
        if public:
            s = row - margin
            s = s - s.max()
            denominator = s.copy()
            denominator[label] -= s[label]
            rows.append(-(s[label] - np.log(np.exp(denominator).sum())))
        else:
            rows.append(max(0.0, -(row[label] - margin) + np.log(np.exp(np.delete(row, label)).sum())))
    return float(np.mean(rows))


@pytest.mark.parametrize("public", [False, True])
@pytest.mark.parametrize("margin", [0.0, 1.3])
def test_nca_equals_the_reference_and_its_gradient_finite_differences(public, margin):
    z, y = draw(3, 8, 5), torch.tensor([0, 1, 2, 3, 4, 4, 0, 2])
    z[0, 0] += 9  # far on the right side, where the hinge acts
    assert nca(z, y, margin, public=public).item() == pytest.approx(
        nca_reference(z.numpy(), y.numpy(), margin, public), rel=1e-10
    )
    z.requires_grad_(True)
    nca(z, y, margin, public=public).backward()
    numeric = finite_difference(lambda v: nca(v, y, margin, public=public).item(), z.detach())
    torch.testing.assert_close(z.grad, numeric, atol=1e-6, rtol=1e-5)
    assert bool(z.grad[0].any()) is public


def test_a_margin_acts_in_the_papers_loss_and_cancels_in_the_public_one():
    z, y = draw(0, 6, 4, scale=0.1), torch.tensor([0, 1, 2, 3, 1, 1])
    plain, public = nca(z, y), nca(z, y, public=True)
    assert plain.item() > 0.5
    assert nca(z, y, 0.6).item() == pytest.approx(plain.item() + 0.6)
    assert nca(z, y, 0.6, public=True).item() == public.item()


def test_nca_of_a_single_class_leaves_out_the_empty_sum():
    z = torch.tensor([[-1.0], [-3.0]], requires_grad=True)
    loss = nca(z, torch.tensor([0, 0]), 0.5)
    assert loss.item() == pytest.approx(2.5)
    loss.backward()
    assert z.grad.tolist() == [[-0.5], [-0.5]]


def pooled(h: np.ndarray) -> np.ndarray:
    a = h**2
    rows = [np.concatenate([m.sum(2).ravel(), m.sum(1).ravel()]) for m in a]
    return np.stack([r / np.linalg.norm(r) for r in rows])


def test_pod_spatial_equals_numpy_and_its_gradient_finite_differences():
    new, old = [draw(1, 3, 2, 4, 3), draw(2, 3, 5, 2, 2)], [draw(3, 3, 2, 4, 3), draw(4, 3, 5, 2, 2)]
    parts = [np.linalg.norm(pooled(a.numpy()) - pooled(b.numpy()), axis=1) for a, b in zip(new, old, strict=True)]
    assert pod_spatial(new, old).item() == pytest.approx(np.mean(parts), rel=1e-10)
    for t in (*new, *old):
        t.requires_grad_(True)
    pod_spatial(new, old).backward()
    numeric = finite_difference(lambda h: pod_spatial([new[0].detach(), h], old).item(), new[1].detach())
    torch.testing.assert_close(new[1].grad, numeric, atol=1e-6, rtol=1e-5)
    assert all(t.grad is None for t in old)


def test_pod_spatial_sees_vectors_as_pixels_and_tokens_as_a_column():
    a, b = draw(0, 3, 6), draw(1, 3, 6)
    unit = lambda v: v.square() / v.square().norm(dim=1, keepdim=True)  # noqa: E731
    assert pod_spatial([a], [b]).item() == pytest.approx((unit(a) - unit(b)).norm(dim=1).mean().item())
    x, y = draw(2, 3, 4, 6), draw(3, 3, 4, 6)
    as_maps = [t.transpose(1, 2)[..., None] for t in (x, y)]
    assert pod_spatial([x], [y]).item() == pod_spatial(as_maps[:1], as_maps[1:]).item()


def test_pod_losses_vanish_between_equals_with_a_finite_gradient():
    h = draw(0, 2, 3, 2, 2).requires_grad_(True)
    loss = pod_spatial([h], [h]) + pod_flat(h.flatten(1), h.flatten(1))
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-12)
    assert h.grad.isfinite().all()


def test_pod_flat_equals_numpy():
    f, t = draw(0, 4, 5), draw(1, 4, 5)
    cosine = (f * t).sum(1) / (f.norm(dim=1) * t.norm(dim=1))
    assert pod_flat(f, t).item() == pytest.approx((1 - cosine).mean().item(), rel=1e-10)


# ---- stored logits


def test_logit_matching_is_the_mean_squared_error_on_equal_widths():
    now, stored = draw(0, 5, 7), draw(1, 5, 7)
    assert logit_matching(now, stored).item() == pytest.approx(torch.nn.functional.mse_loss(now, stored).item())


def test_logit_matching_compares_what_is_known_on_both_sides_and_weighs_samples_alike():
    now, stored = draw(0, 4, 6).requires_grad_(), draw(1, 4, 5)
    stored[0, 2:] = torch.nan
    stored[1, :3] = -torch.inf
    hidden = torch.zeros(4, 6, dtype=torch.bool)
    hidden[1, :3] = hidden[2, 4] = hidden[3] = True

    def loss(logits):
        return logit_matching(logits.masked_fill(hidden, -torch.inf), stored)

    z, t = now.detach().numpy(), stored.numpy()
    known = [[0, 1], [3, 4], [0, 1, 2, 3]]  # and nothing for the last
    expected = sum(np.mean([(z[b, c] - t[b, c]) ** 2 for c in classes]) for b, classes in enumerate(known)) / 4
    value = loss(now)
    assert value.item() == pytest.approx(expected)
    value.backward()
    torch.testing.assert_close(now.grad, finite_difference(loss, now.detach()), rtol=1e-5, atol=1e-8)


def test_logit_matching_of_nothing_is_zero():
    assert logit_matching(torch.zeros(0, 3), torch.zeros(0, 3)).item() == 0


# ---- two labels


@pytest.mark.parametrize("masked", [False, True])
def test_mixed_cross_entropy_equals_numpy_and_finite_differences(masked):
    logits, share = draw(0, 4, 5).requires_grad_(), torch.tensor([1.0, 0.25, 0.5, 0.0], dtype=torch.float64)
    targets, others = torch.tensor([0, 1, 2, 1]), torch.tensor([2, 2, 0, 0])
    allowed = torch.tensor([True, True, True, False, False]) if masked else None
    p = softmax(logits.detach().numpy()[:, :3] if masked else logits.detach().numpy())
    expected = np.mean([-s * np.log(p[b, t]) - (1 - s) * np.log(p[b, o])
                        for b, (s, t, o) in enumerate(zip(share.tolist(), targets, others, strict=True))])  # fmt: skip

    def loss(z):
        return mixed_cross_entropy(z, targets, others, share, allowed)

    value = loss(logits)
    assert value.item() == pytest.approx(expected)
    value.backward()
    torch.testing.assert_close(logits.grad, finite_difference(loss, logits.detach()), rtol=1e-5, atol=1e-8)


def test_mixed_cross_entropy_of_whole_samples_is_cross_entropy():
    logits, targets = draw(0, 6, 4), torch.tensor([0, 1, 2, 3, 0, 1])
    whole = mixed_cross_entropy(logits, targets, targets.flip(0), torch.ones(6))
    assert whole.item() == pytest.approx(cross_entropy(logits, targets).item(), rel=1e-12)
