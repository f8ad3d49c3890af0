"""Operations that the papers' equations need, counted by hand: a multiplication and an addition are two."""

from __future__ import annotations

from clframe.stream import Stream
from speed_suite.jobs import Job

SIDE, HIDDEN = 32, 400
DIMENSIONS = {"mlp": HIDDEN, "resnet8": 64, "resnet32": 64}


def first_layer(backbone: str) -> int:
    """Operations of the first layer on one image, whose input needs no gradient."""
    return 2 * 3 * SIDE**2 * HIDDEN if backbone == "mlp" else 2 * 9 * 3 * 16 * SIDE**2


def forward(backbone: str) -> int:
    """Operations of an extractor's forward pass on one image: linear layers, or 3×3 convolutions of three stages."""
    if backbone == "mlp":
        return first_layer(backbone) + 2 * HIDDEN * HIDDEN
    blocks = {"resnet8": 1, "resnet32": 5}[backbone]
    total, before = first_layer(backbone), 16
    for stage, width in enumerate((16, 32, 64)):
        per_entry = 2 * 9 * (SIDE // 2**stage) ** 2
        total += per_entry * (before * width + (2 * blocks - 1) * width * width)
        before = width
    return total


def training(backbone: str) -> int:
    """Operations of forward and backward: gradients by weights, and by inputs but of the first layer."""
    return 3 * forward(backbone) - first_layer(backbone)


def needed(job: Job, stream: Stream) -> int:
    """Operations of all optimiser steps of DER or FOSTER; linear heads count thrice their forward, once where frozen."""
    one, both, width = forward(job.backbone), training(job.backbone), DIMENSIONS[job.backbone]
    total = 0
    for e in stream.experiences:
        seen, index = e.num_seen_classes, e.index
        old = seen - len(e.classes)
        kept = job.memory // old * old if old else 0
        samples = job.epochs * (len(e.train) + kept)
        if index == 0:
            total += samples * (both + 6 * width * seen)
        elif job.method == "der":
            heads = 6 * width * ((index + 1) * seen + len(e.classes) + 1)
            total += samples * (index * one + both + heads)
            smallest = min(job.memory // old, job.train_per_class)
            total += job.epochs * smallest * seen * ((index + 1) * (one + 4 * width * seen))
        else:
            heads = 6 * width * (2 * seen + seen) + 2 * width * old
            total += samples * (one + both + heads)  # boosting
            total += samples * (2 * (one + 2 * width * seen) + both + 6 * width * seen)  # compression
    return total
