"""The options of a segmentation network.

experts          fusion        system
()               None          SAM or SAM 2; num_classes=4 gives its four mask tokens, see `Segmenter.predict_masks`
("task",)        None          SAMed (https://arxiv.org/abs/2304.13785)
LEVELS           "attention"   SAMora (ICCV 2025), HL-Attn on attention outputs
                 or "block"    HL-Attn on block outputs, the paper's equation

The decoder "hierarchical" turns SAMed into H-SAM (https://arxiv.org/abs/2403.18271) and SAMora into H-SAMora. The
encoder decides between SAM and SAM 2.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from samora_monai.errors import InputError
from samora_monai.networks.experts import LEVELS
from samora_monai.networks.hl_attn import inner_heads
from samora_monai.settings import flag, is_whole

PRESETS: dict[str, dict[str, Any]] = {
    "vit_b": {"embed_dim": 768, "depth": 12, "num_heads": 12, "global_attn_indexes": (2, 5, 8, 11)},
    "vit_l": {"embed_dim": 1024, "depth": 24, "num_heads": 16, "global_attn_indexes": (5, 11, 17, 23)},
    "vit_h": {"embed_dim": 1280, "depth": 32, "num_heads": 16, "global_attn_indexes": (7, 15, 23, 31)},
    "tiny": {"embed_dim": 128, "depth": 6, "num_heads": 4, "global_attn_indexes": (2, 5)},
}
_TINY: dict[str, Any] = {
    "embed_dim": 96, "num_heads": 1, "stages": (1, 2, 7, 2), "global_att_blocks": (5, 7, 9),
    "window_spec": (8, 4, 14, 7), "window_pos_embed_bkg_spatial_size": (7, 7),
}  # fmt: skip
PRESETS |= {  # SAM 2: arguments of `Hiera`
    "sam2_tiny": _TINY,
    "sam2_small": _TINY | {"stages": (1, 2, 11, 2), "global_att_blocks": (7, 10, 13)},
    "sam2_base_plus": _TINY
    | {"embed_dim": 112, "num_heads": 2, "stages": (2, 3, 16, 3), "global_att_blocks": (12, 16, 20)}
    | {"window_pos_embed_bkg_spatial_size": (14, 14)},
    "sam2_large": _TINY
    | {"embed_dim": 144, "num_heads": 2, "stages": (2, 6, 36, 4), "global_att_blocks": (23, 33, 43)}
    | {"window_spec": (8, 4, 16, 8)},
    "sam2_mini": _TINY
    | {"embed_dim": 32, "stages": (1, 2, 4, 1), "global_att_blocks": (4, 6), "window_spec": (8, 4, 8, 4)}
    | {"out_chans": 128},
}
SIZES = (
    "embed_dim", "depth", "num_heads", "mlp_ratio", "window_size", "global_attn_indexes", "patch_size", "out_chans",
)  # fmt: skip
HIERA_SIZES = (*_TINY, "out_chans")
DECODERS = ("sam", "hierarchical")
FUSIONS = ("attention", "block")
FUSION_BLOCKS = ("all", "global", "last_third")


@dataclass(frozen=True)
class SegmenterConfig:
    """The options of a network, all that is needed to build it; `models/model.json` holds them.

    To add an option, add a field whose default is the behaviour of networks that were saved before it existed.

    Args:
        encoder: name of a preset, or a dict of sizes: of `ImageEncoder` (SAM), or, with `stages`, of `Hiera` (SAM 2).
        image_size: side of the square network input, a multiple of 16 for SAM (the patch size), of 32 for SAM 2; images
            are resized to it.
        in_channels: 1 (grey) or 3; 3 with `context`.
        num_classes: number of mask tokens: one per class, background included.
        decoder: `"sam"`, that of SAM or SAM 2, or `"hierarchical"`: with H-SAM's second one.
        experts: names of the encoder's experts, e.g. `("task",)` or `("image", "patch", "pixel")`.
        rank: rank of the experts.
        fusion: None adds the deltas of the experts; `"attention"` and `"block"` fuse them by HL-Attn, see `Block`.
        fusion_order: levels from the lowest to the highest; levels without an expert are skipped.
        fusion_width: inner width of HL-Attn; in Hiera that of the first stage, doubled in each later one. None is the
            width of the tokens, as in the paper.
        fusion_norm: a LayerNorm without parameters on the inputs of HL-Attn's queries and keys.
        fusion_blocks: blocks with HL-Attn: `"all"`, as in the paper, `"global"` (those with global attention),
            `"last_third"` or a list of indices; in the others the highest expert acts alone.
        decoder_rank: rank of experts in the decoder's transformer (SAMed_s), 0 for none.
        stage: output of the hierarchical decoder in evaluation: 3 the mean of both stages' logits, 2 the second alone.
        class_balanced_attention: the paper's CMAttn in the hierarchical decoder instead of the release's constant.
        context: number of neighbouring slices on each side that are channels of the input, 0 or 1. With 1, the slices
            k - 1, k and k + 1 take the place of red, green and blue. A grey slice is repeated in all three, and SAM's
            patch embedding sums over them, so that equal neighbours give exactly the tokens of the grey slice, and
            similar ones similar tokens.

    Raises:
        InputError: an option is out of range or contradicts another.
    """

    encoder: str | dict[str, Any] = "vit_b"
    image_size: int = 224
    in_channels: int = 1
    num_classes: int = 2
    decoder: str = "sam"
    experts: tuple[str, ...] = ("task",)
    rank: int = 4
    fusion: str | None = None
    fusion_order: tuple[str, ...] = tuple(reversed(LEVELS))
    fusion_width: int | None = None
    fusion_norm: bool = False
    fusion_blocks: str | tuple[int, ...] = "all"
    decoder_rank: int = 0
    stage: int = 3
    class_balanced_attention: bool = False
    context: int = 0

    def __post_init__(self) -> None:
        for name in ("experts", "fusion_order"):
            object.__setattr__(self, name, _names(getattr(self, name), name))
        for name in ("fusion_norm", "class_balanced_attention"):
            object.__setattr__(self, name, flag(getattr(self, name), name))
        if isinstance(self.fusion_blocks, list):
            object.__setattr__(self, "fusion_blocks", tuple(self.fusion_blocks))
        if problem := next(self._problems(), None):
            raise InputError(problem)
        if self.context:
            object.__setattr__(self, "in_channels", 3)

    @property
    def encoder_sizes(self) -> dict[str, Any]:
        """Sizes of the encoder, as arguments of `ImageEncoder` or `HieraEncoder`."""
        return PRESETS[self.encoder] if isinstance(self.encoder, str) else self.encoder

    @property
    def is_sam2(self) -> bool:
        """Whether the network is SAM 2's, not SAM's."""
        return "stages" in self.encoder_sizes

    @property
    def token_size(self) -> int:
        """Side of a position of the image embedding in pixels."""
        return self.encoder_sizes.get("patch_size", 16)

    @property
    def levels(self) -> tuple[str, ...]:
        """Names of the experts in the order of their fusion, the lowest level first; empty without a fusion."""
        return tuple(name for name in self.fusion_order if name in self.experts) if self.fusion else ()

    @property
    def depth(self) -> int:
        """Number of blocks of the encoder."""
        return sum(self.encoder_sizes["stages"]) if self.is_sam2 else self.encoder_sizes.get("depth", 12)

    @property
    def fused_blocks(self) -> tuple[int, ...]:
        """Indices of the blocks with HL-Attn; empty without a fusion."""
        if not self.fusion:
            return ()
        if isinstance(self.fusion_blocks, tuple):
            return self.fusion_blocks
        depth, sizes = self.depth, self.encoder_sizes
        named = {
            "all": range(depth),
            "global": sizes.get("global_att_blocks" if self.is_sam2 else "global_attn_indexes", (2, 5, 8, 11)),
            "last_third": range(depth - -(-depth // 3), depth),
        }
        return tuple(named[self.fusion_blocks])

    def _problems(self) -> Iterator[str]:
        """Yield a message for each option that is wrong; a check relies on those before it."""
        if not (self.encoder in PRESETS if isinstance(self.encoder, str) else isinstance(self.encoder, dict)):
            yield f"unknown encoder {self.encoder!r}; choose one of {', '.join(PRESETS)} or give a dict of sizes"
        sizes = HIERA_SIZES if self.is_sam2 else SIZES
        if unknown := [name for name in self.encoder_sizes if name not in sizes]:
            yield f"encoder has an unknown size {unknown[0]!r}; expected one of {', '.join(sizes)}"
        if self.is_sam2:
            yield from _hiera_problems(self.encoder_sizes)
        step = 32 if self.is_sam2 else self.token_size
        if not is_whole(self.image_size, step) or self.image_size % step:
            yield f"image_size is {self.image_size} but must be a multiple of {step}, e.g. 224, 512 or 1024"
        if self.in_channels not in (1, 3):
            yield f"in_channels is {self.in_channels} but must be 1 (grey) or 3 (colour, or three slices)"
        if not is_whole(self.context, 0) or self.context > 1:
            yield f"context is {self.context!r} but must be 0 or 1 neighbouring slice on each side"
        if not is_whole(self.num_classes, 2):
            yield f"num_classes is {self.num_classes} but counts the background too, so at least 2"

        if self.decoder not in DECODERS:
            yield f"unknown decoder {self.decoder!r}; choose 'sam' or 'hierarchical'"
        if self.decoder != "hierarchical" and self.class_balanced_attention:
            yield "class_balanced_attention needs the hierarchical decoder; give decoder='hierarchical' too"
        if self.decoder == "hierarchical" and self.decoder_rank:
            yield f"decoder_rank is {self.decoder_rank} but only SAM's decoder has experts; give decoder_rank=0"
        if self.stage not in (2, 3):
            yield f"stage is {self.stage!r} but must be 3 (mean of both stages) or 2 (second stage alone)"

        if len(set(self.experts)) < len(self.experts):
            yield _not_names("experts", self.experts)
        if not is_whole(self.rank, 1) or not is_whole(self.decoder_rank, 0):
            yield f"rank is {self.rank} and decoder_rank {self.decoder_rank} but must be whole, at least 1 and 0"
        if self.rank > (width := self.encoder_sizes.get("embed_dim", 768)):
            yield f"rank is {self.rank} but the encoder is {width} wide; choose a smaller rank, e.g. 4"

        if self.fusion not in (None, *FUSIONS):
            yield f"unknown fusion {self.fusion!r}; choose 'attention', 'block' or null"
        if unknown := [name for name in self.fusion_order if name not in (*LEVELS, *self.experts)]:
            yield f"fusion_order has {unknown[0]!r}, which is no level and no expert; choose among {', '.join(LEVELS)}"
        if self.fusion and sorted(self.levels) != sorted(self.experts):
            yield f"fusion needs every expert of {self.experts} once in fusion_order, which is {self.fusion_order}"
        if self.fusion and not self.experts:
            yield f"fusion {self.fusion!r} needs experts, e.g. {LEVELS}"
        if self.fusion_width is not None and not is_whole(self.fusion_width, 1):
            yield f"fusion_width is {self.fusion_width} but must be at least 1, or null for the encoder's width"
        if self.fusion_blocks not in FUSION_BLOCKS and not (_all_whole(self.fusion_blocks, 0) and self.fusion_blocks):
            yield f"fusion_blocks is {self.fusion_blocks!r}; choose {', '.join(FUSION_BLOCKS)} or a list of blocks"
        elif wrong := [block for block in self.fused_blocks if block >= self.depth]:
            yield f"fusion_blocks has {wrong[0]} but the encoder's blocks are 0 to {self.depth - 1}"
        elif self.fusion and not self.fused_blocks:
            yield f"fusion_blocks is {self.fusion_blocks!r} but the encoder has no such block; choose 'all'"
        if self.fusion and self.fusion_width and self.is_sam2:
            dim, heads = self.encoder_sizes["embed_dim"], self.encoder_sizes["num_heads"]
            widths = [self.fusion_width * 2**stage for stage in range(4)]
            if any(width % inner_heads(width, dim, heads) for width in widths):
                given, choices = self.fusion_width, f"{dim}, {dim // 2} or {dim // 4}"
                yield f"fusion_width is {given}, which some stage cannot divide into heads; choose {choices}"


def _hiera_problems(sizes: Mapping[str, Any]) -> Iterator[str]:
    """Yield a message for each size of Hiera that is missing or wrong."""
    if missing := [name for name in _TINY if name not in sizes]:
        yield f"encoder lacks {missing[0]!r}; SAM 2's needs {', '.join(_TINY)}"
    for name in ("embed_dim", "num_heads"):
        if not is_whole(sizes[name], 1):
            yield f"encoder's {name} is {sizes[name]!r} but must be a whole number of at least 1"
    if sizes["embed_dim"] % sizes["num_heads"]:
        yield f"encoder's embed_dim is {sizes['embed_dim']} but must be a multiple of num_heads, {sizes['num_heads']}"
    if not is_whole(channels := sizes.get("out_chans", 256), 16) or channels % 16:
        yield f"encoder's out_chans is {channels!r} but must be a multiple of 16, e.g. 256"
    for name, count in (("stages", 4), ("window_spec", 4), ("window_pos_embed_bkg_spatial_size", 2)):
        if not _all_whole(sizes[name], 1) or len(sizes[name]) != count:
            yield f"encoder's {name} is {sizes[name]!r} but must be {count} whole numbers of at least 1"
    blocks, count = sizes["global_att_blocks"], sum(sizes["stages"])
    if not _all_whole(blocks, 0) or any(block >= count for block in blocks):
        yield f"encoder's global_att_blocks is {blocks!r} but must be a list of whole numbers from 0 to {count - 1}"
    if any(side % 2 for side in sizes["window_spec"][:3]):
        yield f"encoder's window_spec is {sizes['window_spec']} but its first three sides must be even"
    if 8 % sizes["window_spec"][0]:
        yield f"encoder's window_spec starts with {sizes['window_spec'][0]} but must start with 2, 4 or 8"
    if firsts := {*accumulate(sizes["stages"][:-1])} & {*sizes["global_att_blocks"]}:
        yield f"encoder's global_att_blocks have {min(firsts)}, the first of a stage; choose later ones"


def _all_whole(value: Any, at_least: int) -> bool:
    """Whether `value` is a list of whole numbers of at least `at_least`."""
    return isinstance(value, list | tuple) and all(is_whole(n, at_least) for n in value)


def _names(value: Sequence[str], option: str) -> tuple[str, ...]:
    if isinstance(value, str) or not isinstance(value, Sequence) or any(not isinstance(name, str) for name in value):
        raise InputError(_not_names(option, value))
    return tuple(value)


def _not_names(option: str, value: Any) -> str:
    return f"{option} is {value!r} but must be a list of different names, e.g. {list(LEVELS)}"
