"""Another scenario's stream, over the features of a frozen network."""

from __future__ import annotations

from typing import Any, ClassVar

from clframe.data import DataRoot
from clframe.scenario import Scenario
from clframe.spec import field
from clframe.stream import Setting, Stream

__all__ = ["FeatureStream"]


class FeatureStream(Scenario):
    """Any other scenario, its images replaced by the features (N, D) that a frozen network gives them.

    The features are computed once, in eval mode and full precision, without augmentation, and kept in the cache folder
    for other runs; experiences, tasks and labels are those of the inner scenario. Methods that leave the network alone
    then come to what they would on the images, in a fraction of the time: `--backbone mlp --backbone.hidden []` makes the
    run's own network a classifier on the features. Without weights the backbone has random values, always the same.

        clframe run --scenario feature_stream --scenario.scenario split_cifar100 --scenario.scenario.experiences 10
            --scenario.backbone timm/resnet18 --scenario.backbone.pretrained true
            --backbone mlp --backbone.hidden [] --strategy nmc

    Version history:
        1: first version.
    """

    settings: ClassVar[tuple[Setting, ...]] = ("class", "task", "domain")
    """Those of the inner scenario."""
    sections: ClassVar[tuple[str, ...]] = ("scenario", "backbone")

    scenario: str | dict[str, Any] = field(help="The inner scenario: a name, or a name and options.")
    backbone: str | dict[str, Any] = field(help="The frozen network: a name, or a name and options such as weights.")
    test_transform: str | list[Any] = field(
        default="auto", help="What images pass through on their way into it; auto: what the inner scenario states."
    )

    def build(self, root: DataRoot, *, download: bool = False) -> Stream:
        """Open the inner scenario and have the features of all its samples."""
        stream = self.services.open(self.scenario, root, download=download)
        chosen = None if self.test_transform == "auto" else self.test_transform
        return self.services.features(stream, self.backbone, chosen)
