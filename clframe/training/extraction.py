"""A stream over the features of a frozen backbone instead of its images, computed once through the feature cache."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

import torch
from torch import Tensor

from clframe.data.augment import Pipeline, ToInput
from clframe.data.reader import MemoryReader
from clframe.fingerprint import fingerprint
from clframe.models import Backbone
from clframe.stream import SampleTable, Stream
from clframe.training.batches import BatchMaker
from clframe.training.context import STATISTICS_BATCH, cache_key, input_statistics
from clframe.training.feature_cache import FeatureCache, features_dir

__all__ = ["feature_stream"]


@torch.no_grad()
def feature_stream(
    stream: Stream,
    backbone: Backbone,
    *,
    test_transform: Pipeline | None = None,
    device: torch.device | None = None,
    channels_last: bool = True,
    cached: bool = True,
    pretrained: bool = False,
) -> Stream:
    """Return a stream of the same index sets, labels and tasks whose samples are features (D,) of the images.

    They are what `RunContext.features` gives on the image stream: eval mode, full precision, the test transform.

    Args:
        stream: Of images.
        backbone: Gives the features; it is moved to the device and left in eval mode.
        test_transform: What images pass through before they are normalised.
        device: Where features are computed; None means the CPU.
        channels_last: Whether convolutions keep channels last.
        cached: Whether features are kept on disk, where other runs find them.
        pretrained: Whether the backbone was trained elsewhere.
    """
    device = device or torch.device("cpu")
    backbone = backbone.to(device).eval()
    if channels_last:
        backbone = backbone.to(memory_format=torch.channels_last)
    to_input = ToInput(*input_statistics(backbone, stream))
    own = fingerprint(backbone)
    way = [to_input.mean, to_input.std, test_transform, stream.shape]
    key = None if own is None else cache_key([own], way, device, channels_last, "fp32")
    cache = FeatureCache(features_dir() / key if cached and key is not None else None)

    def features(images: Tensor) -> Tensor:
        with torch.no_grad():
            return backbone(images).float()  # type: ignore[no-any-return]

    def table(split: SampleTable, used: Iterable[Tensor]) -> SampleTable:
        ids = torch.unique(torch.cat([torch.empty(0, dtype=torch.int64), *used]))
        maker = BatchMaker(split, to_input, device, None, test_transform)
        found = cache.get(maker, ids, STATISTICS_BATCH, features) if len(ids) else torch.empty(0, backbone.feature_dim)
        rows = torch.zeros(len(split), dtype=torch.int64)  # of samples that no part of the stream uses: never read
        rows[ids] = torch.arange(len(ids))
        return SampleTable(MemoryReader(found), split.targets, rows=rows, task_ids=split.task_ids)

    parts = ("train", "valid", "unlabelled", "pool", "forget")
    trained = [getattr(e, name) for e in stream.experiences for name in parts] + [t.valid for t in stream.tasks]
    train, test = table(stream.train, trained), table(stream.test, [t.test for t in stream.tasks])
    gallery = stream.retrieval
    if gallery is not None:
        gallery = dataclasses.replace(gallery, table=table(gallery.table, [gallery.gallery, gallery.queries]))
    content = [train.images.gather(torch.arange(len(train.images))), test.images.gather(torch.arange(len(test.images)))]
    found = dataclasses.replace(
        stream,
        name=f"features_{stream.name}",
        train=train,
        test=test,
        mean=(0.0,),
        std=(1.0,),
        augmentation="none",
        test_transform="none",
        pretrained=pretrained,
        retrieval=gallery,
        data_fingerprint=f"{stream.fingerprint} {fingerprint(own or content, way)}",
    )
    found.check()
    return found
