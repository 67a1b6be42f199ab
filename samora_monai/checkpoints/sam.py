"""Load Meta's SAM and SAM 2 checkpoints (trained at 1024) into a network of any input size.

The rules are those of SAMed (`build_sam.load_from`), with the global blocks identified by number as in H-SAM:

- same key and shape: copied;
- absolute positions and the global blocks' relative positions: resized linearly;
- mask tokens, hypernetworks and quality outputs beyond SAM's four, and H-SAM's additions (second decoder, more point
  embeddings): keep their initial values, unless the file is a base file of H-SAM, which holds all of these;
- SAM 2's memory of earlier frames, which images do not need: dropped by name.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from samora_monai.checkpoints.files import LoadReport, Source, copy_strictly, read_state
from samora_monai.checkpoints.hsam import without_unused
from samora_monai.networks.config import PRESETS
from samora_monai.networks.segmenter import Segmenter

_PER_CLASS = re.compile(
    r"(?:sam_)?mask_decoder\.(mask_tokens|output_hypernetworks_mlps|iou_prediction_head\.layers\.2)\."
)
_HYPERNETWORK = re.compile(r"(?:sam_)?mask_decoder\.output_hypernetworks_mlps\.(\d+)\.")
_HSAM = re.compile(r"mask_decoder2\.|prompt_encoder\.point_embeddings\.([4-9]|10)\.")
_MEMORY = re.compile(
    r"(memory_attention|memory_encoder|mask_downsample|obj_ptr_proj|obj_ptr_tpos_proj)\."
    r"|(maskmem_tpos_enc|no_mem_pos_enc|no_obj_ptr|no_obj_embed_spatial)$"
)
_BLOCK = re.compile(r"image_encoder\.(?:trunk\.)?blocks\.(\d+)\.")
_OURS = re.compile(r"pixel_mean|pixel_std|.*\.(experts|expert|hl_attn|class_attention)\.")


def base_keys(net: Segmenter) -> list[str]:
    """State-dict keys of `net` that SAM, SAM 2 or H-SAM also has."""
    return [key for key in net.state_dict() if not _OURS.match(key)]


def _another_grid(wanted: Tensor, value: Tensor) -> bool:
    """Whether two position tables differ in their number of positions only."""
    return wanted.shape != value.shape and wanted.ndim == value.ndim and wanted.shape[-1] == value.shape[-1]


def resize_positions(tensor: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Resize absolute `[1, G, G, C]` or relative `[2 G - 1, d]` positions to another grid; linear, no antialias."""
    if tensor.ndim == 4:
        size = (shape[1], shape[2])
        return F.interpolate(tensor.permute(0, 3, 1, 2), size, mode="bilinear", align_corners=False).permute(0, 2, 3, 1)
    return F.interpolate(tensor[None, None], shape, mode="bilinear", align_corners=False)[0, 0]


def _stages(preset: Mapping[str, Any]) -> tuple[int, ...]:
    return preset.get("stages", (preset.get("depth"),))


def preset_name(net: Segmenter) -> str:
    """Name of the encoder's preset, e.g. `"vit_b"`, or its sizes if it is no preset."""
    encoder = net.image_encoder
    for name, preset in PRESETS.items():
        sizes = (preset["embed_dim"], _stages(preset), preset["num_heads"])
        if sizes == (encoder.embed_dim, encoder.stages, encoder.num_heads):
            return name
    return f"{encoder.describe()}, {encoder.num_heads} heads"


def window_sides(net: Segmenter) -> list[int]:
    """Side of the windows of each block, 0 for global attention, which no weight shows."""
    return [block.attn.side for block in net.image_encoder.encoder_blocks()]


def _preset_of(state: Mapping[str, Tensor]) -> str:
    """Name of the preset whose kind, width and depth a checkpoint has, or `"no known encoder"`."""
    depth = len({m[1] for key in state if (m := _BLOCK.match(key))})
    for trunk in ("", "trunk."):
        width = len(state.get(f"image_encoder.{trunk}blocks.0.norm1.weight", ()))
        for name, preset in PRESETS.items():
            if (width, depth, bool(trunk)) == (preset["embed_dim"], sum(_stages(preset)), "stages" in preset):
                return name
    return "no known encoder"


def load_sam(net: Segmenter, source: Source) -> LoadReport:
    """Load a SAM or SAM 2 checkpoint into the base of `net`; parameters missing from the file keep their values."""
    state, name = read_state(source)
    state = {key: value for key, value in state.items() if key not in ("pixel_mean", "pixel_std")}  # in our own files
    full = net.state_dict()
    target = {key: full[key] for key in base_keys(net)}
    report = LoadReport(name)
    if net.decoder == "hierarchical":
        state, report.dropped = without_unused(state, name)
    positions = {f"image_encoder.{table}" for table in net.image_encoder.resized}
    fitting: dict[str, Tensor] = {}
    for key, value in state.items():
        wanted = target.get(key)
        memory = net.sam2 and _MEMORY.match(key)
        if memory or (_PER_CLASS.match(key) and (wanted is None or wanted.shape != value.shape)):
            report.dropped.append(key)
            continue
        if key in positions and wanted is not None and _another_grid(wanted, value):
            value = resize_positions(value.to(wanted.dtype), tuple(wanted.shape))
            report.resized.append(key)
        fitting[key] = value
    tokens = len(state.get(f"{net.prefix}mask_decoder.mask_tokens.weight", ()))
    at_random = set(report.dropped) | {k for k in target if (m := _HYPERNETWORK.match(k)) and int(m[1]) >= tokens}
    if not any(_HSAM.match(key) for key in state):
        at_random |= {key for key in target if _HSAM.match(key)}
    report.kept = [key for key in target if key in at_random and key not in fitting]
    wanted_keys = [key for key in target if key not in at_random or key in fitting]
    own, theirs = preset_name(net), _preset_of(state)
    remedy = f"the network is {own}, the file is of {theirs}; give Meta's file of the same encoder"
    if own == theirs:
        remedy = f"it is no complete file of {own}; get it again"
    copy_strictly(net, fitting, wanted_keys, name, remedy)
    report.copied = [key for key in wanted_keys if key not in report.resized]
    return report
