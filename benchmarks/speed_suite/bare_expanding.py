"""Bare PyTorch loops of DER and FOSTER: exactly the forward and backward passes that their papers' equations need."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional

from clframe.stream import Experience
from speed_suite.bare import Loop, Model
from speed_suite.jobs import BALANCED_LR, BETAS, DER_TEMPERATURE, TEMPERATURE


def der(loop: Loop) -> None:
    """DER without masks (Yan et al. 2021): a new extractor beside frozen ones, then the classifier on balanced data."""
    model, memory = loop.model, torch.empty(0, dtype=torch.int64)
    for experience in loop.stream.experiences:
        model.grow(experience.num_seen_classes)
        own = torch.tensor(experience.classes)
        if experience.index > 0:
            model.freeze_and_copy()
            width = model.width * len(model.branches)
            model.heads["classifier"] = nn.Linear(width, experience.num_seen_classes)
            model.heads["auxiliary"] = nn.Linear(model.width, len(own) + 1)
        data = torch.cat([experience.train, memory])
        loop.random.enter("phases", experience.index)
        balanced = equally_many(loop, data) if experience.index > 0 else data
        loop.start(f"{experience.index} train", model)
        model.train()
        optimizer = loop.sgd(model.parameters())
        for _, ids in loop.epochs(experience, 0, data):
            x, y = loop.batch(ids)
            features = model.features(x)
            loss = functional.cross_entropy(model.heads["classifier"](features), y)
            if experience.index > 0:
                mine = y[:, None] == own
                labels = (mine * torch.arange(1, len(own) + 1)).sum(1)
                loss = loss + functional.cross_entropy(model.heads["auxiliary"](features[:, -model.width :]), labels)
            loop.step(optimizer, loss)
        if experience.index > 0:
            balance(loop, experience, balanced)
            del model.heads["auxiliary"]
        model.eval()
        memory = exemplars(loop, memory, experience, model)
        loop.score(experience, model)


def balance(loop: Loop, experience: Experience, ids: Tensor) -> None:
    """Train the classifier afresh on equally many samples of every class, on frozen features."""
    model = loop.model
    head = model.heads["classifier"]
    head.reset_parameters()  # type: ignore[operator]
    loop.start(f"{experience.index} balanced", model)
    model.eval()
    optimizer = loop.sgd(head.parameters(), BALANCED_LR)
    for epoch, part in loop.epochs(experience, 1, ids):
        optimizer.param_groups[0]["lr"] = BALANCED_LR * (0.1 if epoch >= loop.job.epochs / 2 else 1)
        x, y = loop.batch(part)
        with torch.no_grad():
            features = model.features(x)
        loop.step(optimizer, functional.cross_entropy(head(features) / DER_TEMPERATURE, y))


def equally_many(loop: Loop, ids: Tensor) -> Tensor:
    """Draw as many samples of every class as the smallest has."""
    order = ids[torch.randperm(len(ids), generator=loop.random("balanced"))]
    labels = loop.targets[order]
    count = int(torch.bincount(labels).min())
    return torch.cat([order[labels == c][:count] for c in range(int(labels.max()) + 1)])


def foster(loop: Loop) -> None:
    """FOSTER (Wang et al. 2022): a second branch fits what the old one misses, then one student learns both."""
    model, memory = loop.model, torch.empty(0, dtype=torch.int64)
    for experience in loop.stream.experiences:
        data = torch.cat([experience.train, memory])
        if experience.index == 0:
            model.grow(experience.num_seen_classes)
            loop.start("0 train", model)
            model.train()
            optimizer = loop.sgd(model.parameters())
            for _, ids in loop.epochs(experience, 0, data):
                x, y = loop.batch(ids)
                loop.step(optimizer, functional.cross_entropy(model(x), y))
            model.eval()
            memory = exemplars(loop, memory, experience, model)
            loop.score(experience, model)
            continue
        counts = torch.bincount(loop.targets[data], minlength=experience.num_seen_classes)
        student = copy.deepcopy(model)
        student.grow(experience.num_seen_classes)
        boost(loop, experience, data, effective(counts, BETAS[0]))
        compress(loop, experience, data, effective(counts, BETAS[1]), student)
        memory = exemplars(loop, memory, experience, loop.model)
        loop.score(experience, student, loop.model)
        loop.model = model = student


def effective(counts: Tensor, beta: float) -> Tensor:
    """Return class weights (1 − β) / (1 − β^n), of mean 1."""
    weights = (1 - beta) / (1 - beta ** counts.double())
    return (weights / weights.mean()).float()


def boost(loop: Loop, experience: Experience, ids: Tensor, weights: Tensor) -> None:
    """Train the second branch: logits alignment, feature enhancement, distillation."""
    model, num_old, num_seen = loop.model, loop.model.num_classes, experience.num_seen_classes
    old_head = model.heads["classifier"].requires_grad_(False)
    head = nn.Linear(2 * model.width, num_seen)
    with torch.no_grad():
        head.weight[:num_old, : model.width] = old_head.weight
        head.bias[:num_old] = old_head.bias  # type: ignore[index]
    model.freeze_and_copy()
    enhancement = nn.Linear(model.width, num_seen)
    model.heads.update({"classifier": head, "old": old_head, "enhancement": enhancement})
    model.num_classes = num_seen
    loop.start(f"{experience.index} boost", model)
    model.train()
    optimizer = loop.sgd(model.parameters())
    for _, part in loop.epochs(experience, 0, ids):
        x, y = loop.batch(part)
        features = model.features(x)
        logits = head(features)
        with torch.no_grad():
            target = functional.softmax(old_head(features[:, : model.width]) / TEMPERATURE, 1)
        kept = -(target * functional.log_softmax(logits[:, :num_old] / TEMPERATURE, 1)).sum(1).mean()
        enhanced = enhancement(features[:, model.width :])
        loss = functional.cross_entropy(logits / weights, y) + functional.cross_entropy(enhanced, y) + kept
        loop.step(optimizer, loss)
    model.eval()


def compress(loop: Loop, experience: Experience, ids: Tensor, weights: Tensor, student: Model) -> None:
    """Train the student by balanced distillation alone."""
    loop.start(f"{experience.index} compress", student)
    student.train()
    optimizer = loop.sgd(student.parameters(), decay=0.0)
    for _, part in loop.epochs(experience, 1, ids):
        x, _ = loop.batch(part)
        with torch.no_grad():
            target = weights * functional.softmax(loop.model(x) / TEMPERATURE, 1)
            target = target / target.sum(1, keepdim=True)
        loop.step(optimizer, -(target * functional.log_softmax(student(x) / TEMPERATURE, 1)).sum(1).mean())
    student.eval()


@torch.no_grad()
def exemplars(loop: Loop, memory: Tensor, experience: Experience, model: Model) -> Tensor:
    """Keep the first ⌊size / classes⌋ of every class, new ones ranked by herding (iCaRL, Rebuffi et al. 2017, Alg. 4)."""
    quota = loop.job.memory // experience.num_seen_classes
    features = torch.cat([model.features(loop.plain(ids)) for ids in experience.train.split(512)])
    new, old = loop.targets[experience.train], loop.targets[memory]
    kept = [memory[old == c][:quota] for c in old.unique()]  # type: ignore[no-untyped-call]
    kept += [experience.train[new == c][herding(features[new == c], quota)] for c in experience.classes]
    return torch.cat(kept)


def herding(features: Tensor, count: int) -> Tensor:
    """Rank the first `count` samples (N, D) so that their mean follows the class mean."""
    unit = functional.normalize(features.double(), dim=1)
    mean, total = unit.mean(0), torch.zeros(unit.shape[1], dtype=torch.float64)
    left, chosen = torch.ones(len(unit), dtype=torch.bool), []
    for k in range(1, min(count, len(unit)) + 1):
        distance = (mean - (total + unit) / k).norm(dim=1)
        chosen.append(int(distance.masked_fill(~left, torch.inf).argmin()))
        left[chosen[-1]] = False
        total += unit[chosen[-1]]
    return torch.tensor(chosen)
