"""Bare PyTorch loops of fine-tuning, replay and EWC: what a researcher writes by hand when speed matters.

They have the same tensors, network, batches, augmentation, memory format, threads and precision as clframe, and draw
their random numbers from generators seeded alike, so that the two give the same losses (which the tests check).
They keep no log, checkpoint, predictions or cost account: that is what is compared.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from clframe.data.augment import ToInput, build_augmentation
from clframe.models import backbone_config
from clframe.stream import Experience, Stream
from clframe.training.seeds import RandomStreams
from speed_suite.jobs import BACKBONES, DECAY, EVAL_BATCH, LR, MOMENTUM, STRENGTH, Job

Start = Callable[[str, nn.Module], None]
"""Called with a phase's place and the network when a phase begins, so that a test can give both sides the same weights."""


class Model(nn.Module):
    """Backbones side by side, and linear layers on their features."""

    def __init__(self, job: Job, stream: Stream) -> None:
        super().__init__()
        config = {k: v for k, v in BACKBONES[job.backbone].items() if k != "name"}
        self.branches = nn.ModuleList([backbone_config(job.backbone, config).build(stream.shape)])
        self.width = int(self.branches[0].feature_dim)  # type: ignore[arg-type]
        self.heads = nn.ModuleDict({"classifier": nn.Linear(self.width, 1)})
        self.frozen = 0  # the first so many branches
        self.num_classes = 0
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def features(self, x: Tensor) -> Tensor:
        """Return the branches' features (B, D), those of frozen ones without a graph."""
        parts = []
        for k, branch in enumerate(self.branches):
            with torch.set_grad_enabled(k >= self.frozen and torch.is_grad_enabled()):
                parts.append(branch(x))
        return parts[0] if len(parts) == 1 else torch.cat(parts, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return the classifier's logits (B, K)."""
        return self.heads["classifier"](self.features(x))  # type: ignore[no-any-return]

    def grow(self, num_classes: int) -> None:
        """Give the classifier more rows; the old ones stay."""
        old = self.heads["classifier"]
        new = nn.Linear(old.in_features, num_classes)
        with torch.no_grad():
            new.weight[: self.num_classes] = old.weight[: self.num_classes]  # type: ignore[index]
            new.bias[: self.num_classes] = old.bias[: self.num_classes]  # type: ignore[index]
        self.heads["classifier"], self.num_classes = new, num_classes

    def freeze_and_copy(self) -> None:
        """Freeze every branch, and add a copy of the last one that trains."""
        self.branches.append(copy.deepcopy(self.branches[-1]))
        self.frozen = len(self.branches) - 1
        self.branches[: self.frozen].requires_grad_(False)

    def train(self, mode: bool = True) -> Model:
        """Frozen branches stay in eval mode."""
        super().train(mode)
        self.branches[: self.frozen].eval()
        return self


class Loop:
    """What every bare loop needs: images, draws, an optimiser, a step, a score."""

    def __init__(self, job: Job, stream: Stream, seed: int, start: Start | None = None) -> None:
        self.job, self.stream = job, stream
        self.images, self.targets = _tensor(stream.train), stream.train.targets
        self.to_input = ToInput(stream.mean, stream.std)
        self.augment = build_augmentation(job.augmentation, stream.shape)
        self.random = RandomStreams(seed)
        self.start = start or (lambda place, model: None)
        self.losses: list[Tensor] = []
        self.accuracy = 0.0
        torch.manual_seed(seed)
        self.model = Model(job, stream)

    def epochs(self, experience: Experience, phase: int, ids: Tensor) -> Iterator[tuple[int, Tensor]]:
        """Yield epoch and ids (B,) of every batch."""
        for epoch in range(self.job.epochs):
            self.random.enter("epoch", experience.index, phase, epoch)
            order = ids[torch.randperm(len(ids), generator=self.random("order"))]
            for part in order.split(self.job.batch):
                yield epoch, part

    def batch(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Return augmented inputs and labels."""
        images = self.images.index_select(0, ids)
        if self.augment.transforms:
            images = self.augment(images, self.random("augmentation"))
        return self.to_input(images), self.targets[ids]

    def plain(self, ids: Tensor) -> Tensor:
        """Return inputs without augmentation."""
        return self.to_input(self.images.index_select(0, ids))

    def sgd(self, parameters: Iterable[nn.Parameter], lr: float = LR, decay: float = DECAY) -> torch.optim.Optimizer:
        """Make the optimiser."""
        return torch.optim.SGD([p for p in parameters if p.requires_grad], lr, MOMENTUM, weight_decay=decay)

    def step(self, optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
        """Take one step."""
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        self.losses.append(loss.detach())

    @torch.inference_mode()
    def score(self, experience: Experience, *predictors: Callable[[Tensor], Tensor]) -> None:
        """Score every test image of the classes seen by each of some functions to logits; the first one's is kept."""
        images, targets = _tensor(self.stream.test), self.stream.test.targets
        ids = torch.cat([t.test for t in self.stream.tasks[: experience.index + 1]])
        right = torch.zeros(len(predictors))
        for part in ids.split(EVAL_BATCH):
            x = self.to_input(images.index_select(0, part))
            for k, predict in enumerate(predictors):
                right[k] += (predict(x).argmax(1) == targets[part]).sum()
        self.accuracy = float(right[0] / len(ids))


def _tensor(table: Any) -> Tensor:
    images: Tensor = table.images.tensor
    return images


def finetune(loop: Loop) -> None:
    """Cross-entropy on new data."""
    model = loop.model
    for experience in loop.stream.experiences:
        model.grow(experience.num_seen_classes)
        loop.start(f"{experience.index} train", model)
        model.train()
        optimizer = loop.sgd(model.parameters())
        for _, ids in loop.epochs(experience, 0, experience.train):
            x, y = loop.batch(ids)
            loop.step(optimizer, functional.cross_entropy(model(x), y))
        model.eval()
        loop.score(experience, model)


def replay(loop: Loop) -> None:
    """Cross-entropy on new data and as many samples from a reservoir."""
    model, memory, seen = loop.model, torch.empty(0, dtype=torch.int64), 0
    for experience in loop.stream.experiences:
        model.grow(experience.num_seen_classes)
        loop.start(f"{experience.index} train", model)
        model.train()
        optimizer = loop.sgd(model.parameters())
        for epoch, new in loop.epochs(experience, 0, experience.train):
            old = memory
            if len(memory) > loop.job.batch:
                old = memory[torch.randperm(len(memory), generator=loop.random("replay"))[: loop.job.batch]]
            x, y = loop.batch(torch.cat([new, old]))
            logits, n = model(x), len(new)
            loss = functional.cross_entropy(logits[:n], y[:n])
            if len(old):
                loss = loss + functional.cross_entropy(logits[n:], y[n:])
            loop.step(optimizer, loss)
            if epoch == 0:
                memory = offer(memory, new, seen, loop.job.memory, loop.random("memory"))
                seen += n
        model.eval()
        loop.score(experience, model)


def offer(memory: Tensor, new: Tensor, seen: int, size: int, generator: torch.Generator) -> Tensor:
    """Reservoir sampling (Vitter 1985): return the memory's ids after `new` ones went by, `seen` before them."""
    room = min(size - len(memory), len(new))
    memory = torch.cat([memory, new[:room]])
    rest = new[room:]
    if len(rest):
        counts = torch.arange(seen + room + 1, seen + len(new) + 1, dtype=torch.float64)
        slots = (torch.rand(len(rest), 2, generator=generator, dtype=torch.float64)[:, 0] * counts).long()
        for k in (slots < size).nonzero().flatten().tolist():
            memory[slots[k]] = rest[k]
    return memory


def ewc(loop: Loop) -> None:
    """Cross-entropy, and a penalty weighted by squared batch gradients: the past's sum as one quadratic."""
    model = loop.model
    curvature: dict[str, Tensor] = {}
    centre: dict[str, Tensor] = {}
    offset = 0.0
    for experience in loop.stream.experiences:
        model.grow(experience.num_seen_classes)
        loop.start(f"{experience.index} train", model)
        model.train()
        optimizer = loop.sgd(model.parameters())
        for _, ids in loop.epochs(experience, 0, experience.train):
            x, y = loop.batch(ids)
            loss = functional.cross_entropy(model(x), y)
            if curvature:
                pulls = [
                    (curvature[n] * (p[: len(centre[n])] - centre[n]).square()).sum()
                    for n, p in model.named_parameters()
                ]
                loss = loss + 0.5 * STRENGTH * (torch.stack(pulls).sum() + offset)
            loop.step(optimizer, loss)
        model.eval()
        for name, new in fisher(loop, experience).items():
            weight = dict(model.named_parameters())[name].detach().clone()
            old, before = torch.zeros_like(new), weight.clone()
            if name in curvature:
                old[: len(curvature[name])] = curvature[name]
                before[: len(centre[name])] = centre[name]
            share = new / (old + new).clamp(min=1e-38)
            offset += float((old * share * (before - weight).square()).sum())
            curvature[name], centre[name] = old + new, before + share * (weight - before)
        loop.score(experience, model)


def fisher(loop: Loop, experience: Experience) -> dict[str, Tensor]:
    """Return the mean squared gradient of a batch's mean loss, by parameter name; in eval mode."""
    names, parameters = zip(*loop.model.named_parameters(), strict=True)
    total = [torch.zeros_like(p) for p in parameters]
    batches = experience.train.split(loop.job.batch)
    for ids in batches:
        loss = functional.cross_entropy(loop.model(loop.plain(ids)), loop.targets[ids])
        for t, g in zip(total, torch.autograd.grad(loss, parameters), strict=True):
            t.addcmul_(g, g)
    return {n: t / len(batches) for n, t in zip(names, total, strict=True)}


def train_bare(job: Job, stream: Stream, seed: int, start: Start | None = None) -> Loop:
    """Train with nothing but PyTorch."""
    from speed_suite.bare_expanding import der, foster

    loop = Loop(job, stream, seed, start)
    methods = {"finetune": finetune, "replay": replay, "ewc": ewc, "der": der, "foster": foster}
    methods[job.method](loop)
    return loop
