"""Load and save SAMed's LoRA files: expert, prompt encoder and mask decoder, without SAM's encoder.

SAMed (https://arxiv.org/abs/2304.13785), `save_lora_parameters` of `sam_lora_image_encoder` and of
`sam_lora_image_encoder_mask_decoder` (SAMed_s). Tensor number 2 i + j is block i's query (j = 0) or value (j = 1).
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from itertools import product

import torch
from torch import Tensor

from samora_monai.checkpoints.files import LoadReport, Source, copy_strictly, read_state, write_checkpoint
from samora_monai.errors import InputError
from samora_monai.networks.segmenter import Segmenter

_DECODER_ATTENTION = {"sa": "self_attn", "cti": "cross_attn_token_to_image", "cit": "cross_attn_image_to_token"}


def _expert_keys(theirs: str, ours: str, blocks: int) -> dict[str, str]:
    """Map the names of the experts' tensors in a stack of `blocks` blocks, e.g. `w_a_003` for `theirs="w"`."""
    return {
        f"{theirs}_{letter}_{2 * i + j:03d}": f"{ours.format(i)}.linear_{letter}_{target}.weight"
        for letter in "ab"
        for i in range(blocks)
        for j, target in enumerate("qv")
    }


def encoder_expert_keys(net: Segmenter, system: str) -> dict[str, str]:
    """Map the names in the files of `system` (SAMed or H-SAM) to ours, for the encoder, which must have one expert."""
    experts = net.image_encoder.experts
    if net.sam2:
        raise InputError(f"{system}'s files are of SAM's encoder, but the network is SAM 2's; use an adapter file")
    if len(experts) != 1 or net.image_encoder.fusion:
        raise InputError(f"{system}'s files hold exactly one expert, but the network has {len(experts)}: {experts}")
    return _expert_keys("w", f"image_encoder.blocks.{{}}.attn.experts.{experts[0]}", sum(net.image_encoder.stages))


def samed_keys(net: Segmenter) -> dict[str, str]:
    """Map SAMed's names to ours, for each tensor of the file of `net`, which must be SAMed or SAMed_s."""
    keys = encoder_expert_keys(net, "SAMed")
    if net.decoder != "sam":
        raise InputError(f"SAMed's files hold SAM's decoder but the network's is {net.decoder!r}; use a file of H-SAM")
    names = [name for name in net.state_dict() if name.startswith(("prompt_encoder.", "mask_decoder."))]
    if any(".expert." in name for name in names):  # SAMed_s: of the transformer, the file holds the experts alone
        transformer, blocks = "mask_decoder.transformer", len(net.mask_decoder.transformer.layers)
        names = [name for name in names if not name.startswith(transformer)]
        for short, module in _DECODER_ATTENTION.items():
            keys |= _expert_keys(short, f"{transformer}.layers.{{}}.{module}.expert", blocks)
        for target, letter in product("qv", "ab"):
            name = f"{transformer}.final_attn_token_to_image.expert.linear_{letter}_{target}.weight"
            keys[f"fati_{target}{letter}"] = name
    return keys | {name: name for name in names}


def load_samed(net: Segmenter, source: Source) -> LoadReport:
    """Load a SAMed or SAMed_s file on top of a SAM base, and set the pixel statistics to SAMed's: mean 0, std 1."""
    keys = samed_keys(net)
    state, name = read_state(source)
    return copy_lora(net, state, keys, name, "SAMed or SAMed_s", known_by="w_a_000")


def save_samed(net: Segmenter, path: str | os.PathLike[str]) -> None:
    """Write a file for SAMed, which has no pixel statistics, so that those of `net` must be 0 and 1."""
    write_checkpoint(lora_tensors(net, samed_keys(net), "SAMed"), path)


def copy_lora(
    net: Segmenter, state: Mapping[str, Tensor], keys: Mapping[str, str], name: str, system: str, known_by: str
) -> LoadReport:
    """Copy the tensors of a LoRA file into `net`, and set pixel mean 0 and std 1, as in SAMed and H-SAM.

    Args:
        state, name: tensors of the file, and its name for error messages.
        keys: all names in the file -> keys of `net`.
        system, known_by: what the file must be of, and a name that only its files have.
    """
    remedy = f"expected a LoRA file of {system}"
    rank, classes, decoder_rank = (
        len(state.get(key, ())) for key in ("w_a_000", "mask_decoder.mask_tokens.weight", "sa_a_000")
    )
    if rank and known_by in state:
        blocks = sum(key.startswith("w_a_") for key in state) // 2
        remedy = (
            f"the file is of an encoder with {blocks} blocks, rank={rank}, num_classes={classes}, "
            f"decoder_rank={decoder_rank}; build the network with these"
        )
    ours = {keys.get(key, key): value for key, value in state.items()}
    copied = copy_strictly(net, ours, list(keys.values()), name, remedy)
    with torch.no_grad():
        net.pixel_mean.zero_()
        net.pixel_std.fill_(1)
    rest = net.state_dict().keys() - {*copied, "pixel_mean", "pixel_std"}
    return LoadReport(name, copied=copied, kept=sorted(rest))


def lora_tensors(net: Segmenter, keys: Mapping[str, str], system: str) -> dict[str, Tensor]:
    """The tensors of a LoRA file; `keys` maps its names to those of `net`, whose pixel statistics must be 0 and 1."""
    if net.pixel_mean.abs().max() > 0 or (net.pixel_std - 1).abs().max() > 0:
        raise InputError(
            f"{system}'s files imply pixel mean 0 and std 1, but the network has others; "
            "build it with pixel_mean=(0, 0, 0), pixel_std=(1, 1, 1)"
        )
    state = net.state_dict()
    return {theirs: state[ours].cpu().clone() for theirs, ours in keys.items()}
