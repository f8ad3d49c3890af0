"""Losses against NumPy and finite differences."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from clframe.losses import cross_entropy, distillation, logit_matching, mixed_cross_entropy


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
