"""Backbones, heads that grow, and the network that joins them. timm and torchvision are imported only when used.

| here | what |
|---|---|
| `backbone` | `Backbone`, `BackboneConfig`, a user's own module, names to backbones |
| `resnet`, `preact`, `mlp`, `vit`, `timm_bridge` | the backbones |
| `heads` | `LinearHead`, `CosineHead`, `LocalSimilarityHead`, `MultiHead` |
| `gates`, `prune` | learned gates on channels, and cutting out what they close |
| `network` | `Network` and its `Output` |
| `modes` | eval mode for a while |
| `weights` | checkpoint files |
"""

from __future__ import annotations

from clframe.models.backbone import (
    Backbone,
    BackboneConfig,
    ChannelLayer,
    UserBackbone,
    UserBackboneConfig,
    backbone_config,
    build_backbone,
)
from clframe.models.heads import CosineHead, Head, HeadConfig, LinearHead, LocalSimilarityHead, MultiHead
from clframe.models.modes import eval_mode
from clframe.models.network import Network, Output, freeze
from clframe.models.weights import load_weights

__all__ = [
    "Backbone",
    "BackboneConfig",
    "ChannelLayer",
    "CosineHead",
    "Head",
    "HeadConfig",
    "LinearHead",
    "LocalSimilarityHead",
    "MultiHead",
    "Network",
    "Output",
    "UserBackbone",
    "UserBackboneConfig",
    "backbone_config",
    "build_backbone",
    "eval_mode",
    "freeze",
    "load_weights",
]
