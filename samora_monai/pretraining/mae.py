"""The masked autoencoder: the teacher of the patch level.

MAE (https://arxiv.org/abs/2111.06377). Parameters have the names and shapes of facebookresearch/mae, so that its files
load without renaming; none of its code is used (code and weights are CC-BY-NC 4.0).

Differs from that code in: position tables are buffers; the network takes images in [0, 1] and normalises them;
attention is PyTorch's fused attention.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from monai.utils import convert_to_tensor
from torch import Tensor, nn

from samora_monai.checkpoints.files import LoadReport, Source, copy_strictly
from samora_monai.errors import InputError
from samora_monai.networks.framing import resize_image
from samora_monai.networks.image_encoder import PatchEmbed
from samora_monai.pretraining.teacher import Teacher, describe_weights, three_channels

MAE_PRESETS: dict[str, dict[str, int]] = {
    "vit_l": {
        "embed_dim": 1024,
        "depth": 24,
        "num_heads": 16,
        "decoder_embed_dim": 512,
        "decoder_depth": 8,
        "decoder_num_heads": 16,
        "image_size": 224,
        "patch_size": 16,
    },
    "tiny": {
        "embed_dim": 128,
        "depth": 4,
        "num_heads": 4,
        "decoder_embed_dim": 64,
        "decoder_depth": 1,
        "decoder_num_heads": 2,
        "image_size": 224,
        "patch_size": 16,
    },
}
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def normalise(x: Tensor) -> Tensor:
    """`[B, 1 or 3, H, W]` in [0, 1] -> `[B, 3, H, W]`, normalised by ImageNet's statistics; grey is repeated."""
    channels = three_channels(x).unbind(1)
    # numbers instead of tensors, which would have to be copied to the device
    return torch.stack([(c - m) / s for c, m, s in zip(channels, IMAGENET_MEAN, IMAGENET_STD, strict=True)], 1)


def patchify(x: Tensor, patch_size: int) -> Tensor:
    """`[B, C, H, W]` -> `[B, N, P P C]`: patches row by row, the values of each in the order (p, q, c)."""
    patches = x.unflatten(3, (-1, patch_size)).unflatten(2, (-1, patch_size))  # [B, C, h, P, w, P]
    return patches.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)


def sincos_positions(grid: int, dim: int) -> Tensor:
    """The fixed position table `[1, 1 + grid^2, dim]`; the row of the class token is zero.

    The first half of the channels encodes the column, the second the row, each as `[sin(p w_k), cos(p w_k)]` with
    `w_k = 10000^(-k / (dim / 4))`.
    """
    quarter = dim // 4
    omega = 10000.0 ** (-torch.arange(quarter, dtype=torch.float64) / quarter)
    angles = torch.arange(grid, dtype=torch.float64)[:, None] * omega  # [grid, dim / 4]
    axis = torch.cat([angles.sin(), angles.cos()], 1)  # [grid, dim / 2]
    table = torch.cat([axis.repeat(grid, 1), axis.repeat_interleave(grid, 0)], 1)  # [grid^2, dim]
    return torch.cat([torch.zeros(1, dim), table.float()])[None]


class Attention(nn.Module):
    """Multi-head self-attention of `[B, N, C]`."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(2, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)  # each [B, heads, N, d]
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class Block(nn.Module):
    """A pre-norm transformer block."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = Attention(dim, num_heads)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = nn.Sequential(OrderedDict(fc1=nn.Linear(dim, 4 * dim), act=nn.GELU(), fc2=nn.Linear(4 * dim, dim)))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class MAETeacher(Teacher):
    """A vision transformer, pretrained to reconstruct masked patches; its features are the tokens of all patches.

    Args:
        preset: name in `MAE_PRESETS`, or a dict of the same sizes.

    Raises:
        InputError: there is no such preset.
    """

    method = "mae"
    presets = MAE_PRESETS
    public_checkpoint = "https://dl.fbaipublicfiles.com/mae/pretrain/mae_pretrain_vit_large_full.pth (preset vit_l)"

    def __init__(self, preset: str | dict[str, int] = "vit_l") -> None:
        super().__init__()
        preset = self.find_preset(preset)
        known = [name for name in MAE_PRESETS if MAE_PRESETS[name] == preset]
        self.preset = known[0] if known else in_words(sizes(preset))
        dim, decoder_dim = preset["embed_dim"], preset["decoder_embed_dim"]
        self.out_dim = dim
        self.image_size, self.patch_size = preset["image_size"], preset["patch_size"]
        self.grid = self.image_size // self.patch_size
        self.cls_token = nn.Parameter(torch.empty(1, 1, dim))
        self.pos_embed: Tensor
        self.register_buffer("pos_embed", sincos_positions(self.grid, dim))
        self.patch_embed = PatchEmbed(self.patch_size, 3, dim)
        self.blocks = nn.Sequential(*(Block(dim, preset["num_heads"]) for _ in range(preset["depth"])))
        self.norm = nn.LayerNorm(dim, eps=1e-6)

        self.decoder_embed = nn.Linear(dim, decoder_dim)
        self.mask_token = nn.Parameter(torch.empty(1, 1, decoder_dim))
        self.decoder_pos_embed: Tensor
        self.register_buffer("decoder_pos_embed", sincos_positions(self.grid, decoder_dim))
        self.decoder_blocks = nn.Sequential(
            *(Block(decoder_dim, preset["decoder_num_heads"]) for _ in range(preset["decoder_depth"]))
        )
        self.decoder_norm = nn.LayerNorm(decoder_dim, eps=1e-6)
        self.decoder_pred = nn.Linear(decoder_dim, self.patch_size**2 * 3)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialise as MAE: Xavier-uniform matrices, patch embedding included; tokens with std 0.02; biases zero."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        nn.init.xavier_uniform_(self.patch_embed.proj.weight.flatten(1))
        nn.init.normal_(self.cls_token, std=0.02)
        nn.init.normal_(self.mask_token, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        """Unmasked: `[B, 1 or 3, H, W]` in [0, 1], any H and W -> tokens `[B, N, out_dim]`, row by row, without CLS."""
        return self._encode(self._embed(x))[:, 1:]

    def masked(self, x: Tensor, mask_ratio: float = 0.75, noise: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """MAE's pretext task.

        Args:
            x: `[B, 1 or 3, H, W]` in [0, 1], any H and W.
            mask_ratio: fraction of the patches to mask.
            noise: `[B, N]`; the patches with the smallest values are kept. Drawn at random if not given.

        Returns:
            the prediction of the normalised image's patches, `[B, N, P P 3]`, and the mask `[B, N]`, 1 where masked.
        """
        tokens = self._embed(x)
        batch, n, dim = tokens.shape
        if noise is None:
            noise = torch.rand(batch, n, device=tokens.device)
        order = noise.argsort(1)
        place = order.argsort(1)  # rank of each patch in this order
        keep = int(n * (1 - mask_ratio))
        mask = (place >= keep).float()
        encoded = self.decoder_embed(self._encode(tokens.gather(1, order[:, :keep, None].expand(-1, -1, dim))))
        hidden = self.mask_token.to(encoded.dtype).expand(batch, n - keep, -1)
        shuffled = torch.cat([encoded[:, 1:], hidden], 1)
        restored = shuffled.gather(1, place[..., None].expand(-1, -1, shuffled.shape[2]))
        y = torch.cat([encoded[:, :1], restored], 1) + self.decoder_pos_embed
        return self.decoder_pred(self.decoder_norm(self.decoder_blocks(y)))[:, 1:], mask

    def load_public(self, state: Mapping[str, Tensor], name: str) -> LoadReport:
        """Load a checkpoint of Meta. One without a decoder leaves the decoder unchanged (`kept` in the report).

        Continue a teacher from `pretrain/mae_pretrain_vit_large_full.pth`; the encoder alone,
        `pretrain/mae_pretrain_vit_large.pth`, suffices for distillation. `visualize/mae_visualize_vit_large.pth` has
        the same keys and shapes and cannot be refused here, but it was trained on raw pixels, for a demo.
        """
        if not {"cls_token", "patch_embed.proj.weight"} <= state.keys():
            raise InputError(
                f"checkpoint {name} is {describe_weights(state)}; expected an MAE teacher file of ours or the public "
                f"{self.public_checkpoint}"
            )
        keys = list(self.state_dict())
        kept = [] if any(map(of_decoder, state)) else [key for key in keys if of_decoder(key)]
        found = sizes_of(state)
        own = sizes_of(self.state_dict())[: 3 if kept else None]
        if own != found:
            fitting = [preset for preset in MAE_PRESETS if sizes(MAE_PRESETS[preset])[: len(found)] == found]
            remedy = f"build the teacher with preset {fitting[0]!r}" if fitting else "give a file of the network's size"
            raise InputError(f"checkpoint {name} is of a {in_words(found)}, the network a {in_words(own)}; {remedy}")
        wanted = [key for key in keys if key not in kept]
        remedy = f"expected the weights that MAE's pretraining ends with, as in {self.public_checkpoint}"
        return LoadReport(name, copied=copy_strictly(self, state, wanted, name, remedy), kept=kept)

    def _embed(self, x: Tensor) -> Tensor:
        """Patch embeddings plus positions, `[B, N, out_dim]`."""
        x = resize_image(convert_to_tensor(x, track_meta=False), (self.image_size, self.image_size))
        return self.patch_embed(normalise(x)).flatten(1, 2) + self.pos_embed[:, 1:]

    def _encode(self, tokens: Tensor) -> Tensor:
        """`[B, n, out_dim]` -> `[B, 1 + n, out_dim]`, the class token first, after the last norm."""
        y = torch.cat([(self.cls_token + self.pos_embed[:, :1]).expand(len(tokens), -1, -1), tokens], 1)
        return self.norm(self.blocks(y))


def load_mae(net: MAETeacher, source: Source) -> LoadReport:
    """Load a teacher file or one of MAE's public checkpoints, see `Teacher.load_weights`."""
    return net.load_weights(source)


class MaskedPretraining(nn.Module):
    """Pretraining of a teacher: `[B, 1 or 3, H, W]` in [0, 1] -> prediction and mask of `MAETeacher.masked`."""

    def __init__(self, teacher: MAETeacher, mask_ratio: float = 0.75) -> None:
        super().__init__()
        if not 0 < mask_ratio < 1:
            raise InputError(f"mask_ratio is {mask_ratio}; expected a fraction between 0 and 1, e.g. 0.75")
        self.teacher = teacher
        self.mask_ratio = mask_ratio

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.teacher.masked(x, self.mask_ratio)


def of_decoder(key: str) -> bool:
    """Whether the key is of the decoder, which Meta's encoder-only files lack."""
    return key.startswith("decoder_") or key == "mask_token"


def sizes(preset: Mapping[str, int]) -> tuple[int, ...]:
    """Width, depth, side of a patch; width and depth of the decoder. A state dict does not show the number of heads."""
    return tuple(preset[key] for key in ("embed_dim", "depth", "patch_size", "decoder_embed_dim", "decoder_depth"))


def sizes_of(state: Mapping[str, Tensor]) -> tuple[int, ...]:
    """`sizes` of a state dict; the first three of them if it holds an encoder alone."""
    depth, decoder_depth = (
        len({key.split(".")[1] for key in state if key.startswith(prefix)}) for prefix in ("blocks.", "decoder_blocks.")
    )
    encoder = (state["cls_token"].shape[-1], depth, state["patch_embed.proj.weight"].shape[-1])
    return (*encoder, state["mask_token"].shape[-1], decoder_depth) if "mask_token" in state else encoder


def in_words(sizes: tuple[int, ...]) -> str:
    """E.g. `"ViT 1024 wide, 24 deep, patches of 16, decoder 512 wide, 8 deep"`."""
    decoder = ", decoder {} wide, {} deep".format(*sizes[3:]) if sizes[3:] else ""
    return "ViT {} wide, {} deep, patches of {}".format(*sizes[:3]) + decoder
