"""Load and save H-SAM's LoRA files: expert, prompt encoder and both mask decoders, without SAM's encoder.

H-SAM (https://arxiv.org/abs/2403.18271), `save_lora_parameters`. They differ from SAMed's files (`samed`) in:

- `prompt_encoder2.*` is a second name of `prompt_encoder.*`: dropped when loading, where it must hold the same values,
  and written again when saving;
- CMAttn's weights and the LayerNorms of decoder 2's cross-attentions do not affect any output of H-SAM (see
  `hierarchical_decoder`): dropped by name when loading, in any shape, so that files made at 224 and at 512 load at
  every size; written when saving in the shapes that H-SAM expects, LayerNorms as initialised, CMAttn's matrices zero.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from samora_monai.checkpoints.files import LoadReport, Source, read_state, write_checkpoint
from samora_monai.checkpoints.samed import copy_lora, encoder_expert_keys, lora_tensors
from samora_monai.errors import InputError
from samora_monai.networks.segmenter import Segmenter

_ALIAS, _ORIGINAL = "prompt_encoder2.", "prompt_encoder."
_UNUSED = re.compile(
    r"mask_decoder2\.(med_sel|self_attn|self_attn2|norm1|norm2|mlp)\."
    r"|mask_decoder2\.transformer2\.layers\.\d+\.cross_attn_(token_to_image|image_to_token)\.norm[123]\."
)
_SIZES = {224: 14 * 14, 512: 32 * 32}  # input size of H-SAM's networks -> width of their unused weights


def without_unused(state: Mapping[str, Tensor], name: str) -> tuple[dict[str, Tensor], list[str]]:
    """Return an H-SAM state dict without the tensors that H-SAM holds twice or never uses, and their keys.

    Raises:
        InputError: the two names of a tensor of the prompt encoder hold different values.
    """
    dropped = [key for key in state if key.startswith(_ALIAS) or _UNUSED.match(key)]
    for key in dropped:
        original = key.replace(_ALIAS, _ORIGINAL, 1)
        if key != original and original in state and not torch.equal(state[original], state[key]):
            raise InputError(f"checkpoint {name} is damaged: {key} differs from {original}; get it again")
    return {key: value for key, value in state.items() if key not in dropped}, dropped


def hsam_keys(net: Segmenter) -> dict[str, str]:
    """Map H-SAM's names to ours, for each tensor of its file that `net` uses, which must be H-SAM."""
    keys = encoder_expert_keys(net, "H-SAM")
    if net.decoder != "hierarchical":
        raise InputError("H-SAM's files hold two decoders but the network's is 'sam'; use decoder: hierarchical")
    parts = re.compile(r"prompt_encoder\.|mask_decoder\.|mask_decoder2\.(?!class_attention\.)")
    return keys | {name: name for name in net.state_dict() if parts.match(name)}


def load_hsam(net: Segmenter, source: Source) -> LoadReport:
    """Load an H-SAM file on top of a SAM base, and set the pixel statistics to H-SAM's: mean 0, std 1.

    Class-balanced attention is not in the file and keeps its values; as initialised, it computes what H-SAM computes.
    """
    keys = hsam_keys(net)
    state, name = read_state(source)
    state, dropped = without_unused(state, name)
    report = copy_lora(net, state, keys, name, "H-SAM", known_by="mask_decoder2.mask_tokens.weight")
    return replace(report, dropped=dropped)


def save_hsam(net: Segmenter, path: str | os.PathLike[str]) -> None:
    """Write a file for H-SAM at the network's input size."""
    keys = hsam_keys(net)
    if net.image_size not in _SIZES:
        size = net.image_size
        raise InputError(
            f"H-SAM has networks for input sizes 224 and 512 only, not of {size}; save the model or an adapter"
        )
    assert net.mask_decoder2 is not None
    if net.mask_decoder2.class_attention is not None:
        raise InputError("H-SAM's files have no place for class_balanced_attention; save the model or an adapter file")
    state = lora_tensors(net, keys, "H-SAM")
    state |= {key.replace(_ORIGINAL, _ALIAS, 1): value for key, value in state.items() if key.startswith(_ORIGINAL)}
    write_checkpoint(state | unused_tensors(net), path)


def unused_tensors(net: Segmenter) -> dict[str, Tensor]:
    """Tensors that H-SAM registers at the input size of `net` and never uses: initial LayerNorms, zeros elsewhere."""
    assert net.mask_decoder2 is not None
    width = _SIZES[net.image_size]
    weights: dict[str, tuple[int, ...]] = {"med_sel.0": (1, net.num_classes)}
    for attention in ("self_attn", "self_attn2"):
        weights |= {f"{attention}.{part}_proj": (width, width) for part in ("q", "k", "v", "out")}
    weights |= {"mlp.lin1": (2048, width), "mlp.lin2": (width, 2048), "norm1": (width,), "norm2": (width,)}
    for i in range(len(net.mask_decoder2.transformer2.layers)):
        for attention in ("cross_attn_token_to_image", "cross_attn_image_to_token"):
            for norm, size in (("norm1", 196), ("norm2", 9), ("norm3", 1024)):  # at any size and class count
                weights[f"transformer2.layers.{i}.{attention}.{norm}"] = (size,)
    tensors = {}
    for module, shape in weights.items():
        tensors[f"mask_decoder2.{module}.weight"] = torch.ones(shape) if len(shape) == 1 else torch.zeros(shape)
        tensors[f"mask_decoder2.{module}.bias"] = torch.zeros(shape[0])
    return tensors
