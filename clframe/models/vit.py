"""A small vision transformer.

Source: Dosovitskiy et al., "An Image is Worth 16x16 Words", ICLR 2021; sizes of DeiT-Ti (Touvron et al., ICML 2021).
"""

from __future__ import annotations

from typing import ClassVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clframe.errors import ConfigurationError
from clframe.models.backbone import Backbone, BackboneConfig, image_shape
from clframe.spec import field

__all__ = ["Attention", "TransformerBlock", "ViTTiny", "VisionTransformer"]


class Attention(nn.Module):
    """Multi-head self-attention.

    Args:
        dim: Length of a token.
        heads: Number of heads; divides `dim`.
    """

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Attend: (B, N, dim) to (B, N, dim)."""
        batch, tokens, dim = x.shape
        qkv = self.qkv(x).reshape(batch, tokens, 3, self.heads, dim // self.heads).permute(2, 0, 3, 1, 4)
        query, key, value = qkv.unbind(0)
        out = F.scaled_dot_product_attention(query, key, value)
        return cast(Tensor, self.proj(out.transpose(1, 2).reshape(batch, tokens, dim)))


class Mlp(nn.Module):
    """Two linear layers with a GELU between them.

    Args:
        dim: Length of a token.
        hidden: Units between the two layers.
    """

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Transform each token: (B, N, dim) to (B, N, dim)."""
        return cast(Tensor, self.fc2(F.gelu(self.fc1(x))))


class TransformerBlock(nn.Module):
    """Attention and a two-layer perceptron, each behind a LayerNorm and inside a residual sum.

    Args:
        dim: Length of a token.
        heads: Number of attention heads.
        hidden: Units of the perceptron.
        dropout: Probability of zeroing a value of each residual update.
    """

    def __init__(self, dim: int, heads: int, hidden: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = Attention(dim, heads)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = Mlp(dim, hidden)
        self.dropout = dropout

    def forward(self, x: Tensor) -> Tensor:
        """Transform the tokens: (B, N, dim) to (B, N, dim)."""
        x = x + self._drop(self.attn(self.norm1(x)))
        return x + self._drop(self.mlp(self.norm2(x)))

    def _drop(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.dropout, self.training) if self.dropout else x


class PatchEmbedding(nn.Module):
    """Cuts an image into patches and maps each to a token.

    Args:
        channels: Channels of the images.
        dim: Length of a token.
        patch: Height and width of a patch, in pixels.
    """

    def __init__(self, channels: int, dim: int, patch: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(channels, dim, patch, patch)

    def forward(self, x: Tensor) -> Tensor:
        """Embed: (B, C, H, W) to (B, N, dim), row by row."""
        return cast(Tensor, self.proj(x).flatten(2).transpose(1, 2))


class VisionTransformer(Backbone):
    """Patches, learned positions, transformer blocks, and the class token after the final LayerNorm as features.

    Tensor names are those of timm's `VisionTransformer`.

    Args:
        shape: (C, H, W) of the images; `patch` divides H and W.
        patch: Height and width of a patch, in pixels.
        dim: Length of a token, D.
        depth: Number of blocks.
        heads: Number of attention heads; divides `dim`.
        mlp_ratio: Units of a block's perceptron as a multiple of `dim`.
        dropout: Probability of zeroing a value of each residual update.
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        patch: int,
        dim: int,
        depth: int,
        heads: int,
        mlp_ratio: float = 4.0,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        channels, height, width = shape
        tokens = (height // patch) * (width // patch) + 1
        self.patch_embed = PatchEmbedding(channels, dim, patch)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, tokens, dim))
        hidden = int(dim * mlp_ratio)
        self.blocks = nn.Sequential(*(TransformerBlock(dim, heads, hidden, dropout) for _ in range(depth)))
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.feature_dim = dim
        self._initialise()

    def _initialise(self) -> None:
        """Draw linear weights and positions from N(0, 0.02²) cut at ±2, as DeiT does; biases are 0."""
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        nn.init.normal_(self.cls_token, std=1e-6)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def tokens(self, x: Tensor) -> Tensor:
        """Compute what the first block receives: (B, C, H, W) to (B, 1 + N, dim), the class token first."""
        patches = self.patch_embed(x)
        return torch.cat((self.cls_token.expand(x.shape[0], -1, -1), patches), 1) + self.pos_embed

    def forward(self, x: Tensor) -> Tensor:
        """Compute features: (B, C, H, W) to (B, D)."""
        return cast(Tensor, self.norm(self.blocks(self.tokens(x))[:, 0]))

    def forward_stages(self, x: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Compute the features and each block's output (B, 1 + N, D)."""
        x = self.tokens(x)
        stages: list[Tensor] = []
        for block in self.blocks:
            x = block(x)
            stages.append(x)
        return self.norm(x[:, 0]), tuple(stages)


class ViTTiny(BackboneConfig):
    """Vision transformer of the sizes of DeiT-Ti on small patches: 5.4 million parameters on 32×32 images."""

    free_options: ClassVar[frozenset[str]] = frozenset({"dropout"})

    patch: int = field(default=4, ge=1, unit="pixels", help="Height and width of a patch; divides the image's.")
    dim: int = field(default=192, ge=1, help="Length of a token and of the feature vector.")
    depth: int = field(default=12, ge=1, unit="blocks", help="Number of transformer blocks.")
    heads: int = field(default=3, ge=1, help="Attention heads; divides dim.")
    mlp_ratio: float = field(default=4.0, gt=0, help="Units of a block's perceptron as a multiple of dim.")
    dropout: float = field(default=0.0, ge=0, lt=1, help="Probability of zeroing a value of each residual update.")

    def make(self, input_shape: tuple[int, ...]) -> VisionTransformer:
        """Make the network for images (C, H, W) of that size.

        Raises:
            ConfigurationError: The patch doesn't divide the image, or the heads don't divide the token.
        """
        shape = image_shape(input_shape, type(self).__name__, smallest=self.patch)
        if shape[1] % self.patch or shape[2] % self.patch:
            raise ConfigurationError(
                f"backbone.patch: expected a divisor of the image's height and width, received {self.patch} for "
                f"{shape[1]}×{shape[2]} pixels; choose another patch."
            )
        if self.dim % self.heads:
            raise ConfigurationError(
                f"backbone.heads: expected a divisor of dim = {self.dim}, received {self.heads}; change one of them."
            )
        return VisionTransformer(shape, self.patch, self.dim, self.depth, self.heads, self.mlp_ratio, self.dropout)
