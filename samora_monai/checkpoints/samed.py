"""Load and save SAMed's LoRA files: expert, prompt encoder and mask decoder, without SAM's encoder.

SAMed (https://arxiv.org/abs/2304.13785), `save_lora_parameters` of `sam_lora_image_encoder` and of
`sam_lora_image_encoder_mask_decoder` (SAMed_s). Tensor number 2 i + j is block i's query (j = 0) or value (j = 1).
"""

from __future__ import annotations

import os

import torch

from samora_monai.checkpoints.files import LoadReport, Source, copy_strictly, read_state, write_checkpoint
from samora_monai.errors import InputError
from samora_monai.networks.segmenter import Segmenter

_DECODER_ATTENTION = {"sa": "self_attn", "cti": "cross_attn_token_to_image", "cit": "cross_attn_image_to_token"}


def encoder_expert_keys(net: Segmenter, system: str) -> dict[str, str]:
    """Map the names in the files of `system` (SAMed or H-SAM) to ours, for the encoder's only expert.

    Raises:
        InputError: the encoder has no expert, several, or a fusion.
    """
    experts = net.image_encoder.experts
    if len(experts) != 1 or net.image_encoder.fusion:
        raise InputError(f"{system}'s files hold exactly one expert, but the network has {len(experts)}: {experts}")
    keys: dict[str, str] = {}
    for letter in "ab":
        for i in range(len(net.image_encoder.blocks)):
            for j, target in enumerate("qv"):
                name = f"image_encoder.blocks.{i}.attn.experts.{experts[0]}.linear_{letter}_{target}.weight"
                keys[f"w_{letter}_{2 * i + j:03d}"] = name
    return keys


def samed_keys(net: Segmenter) -> dict[str, str]:
    """Map SAMed's names to ours, for each tensor of the file that `save_samed` writes.

    Raises:
        InputError: the network is not SAMed (one expert, no fusion, SAM's decoder).
    """
    if net.decoder != "sam":
        raise InputError(f"SAMed's files hold SAM's decoder but the network's is {net.decoder!r}; use a file of H-SAM")
    keys = encoder_expert_keys(net, "SAMed")
    experts_in_decoder = any(".expert." in name for name in net.mask_decoder.state_dict())
    if experts_in_decoder:
        transformer = "mask_decoder.transformer"
        for short, module in _DECODER_ATTENTION.items():
            for letter in "ab":
                for i in range(len(net.mask_decoder.transformer.layers)):
                    for j, target in enumerate("qv"):
                        name = f"{transformer}.layers.{i}.{module}.expert.linear_{letter}_{target}.weight"
                        keys[f"{short}_{letter}_{2 * i + j:03d}"] = name
        for target in "qv":
            for letter in "ab":
                name = f"{transformer}.final_attn_token_to_image.expert.linear_{letter}_{target}.weight"
                keys[f"fati_{target}{letter}"] = name
    for name in net.state_dict():
        of_transformer = name.startswith("mask_decoder.transformer")
        if name.startswith(("prompt_encoder.", "mask_decoder.")) and not (experts_in_decoder and of_transformer):
            keys[name] = name
    return keys


def load_samed(net: Segmenter, source: Source) -> LoadReport:
    """Load a SAMed or SAMed_s file on top of a SAM base, and set the pixel statistics to SAMed's: mean 0, std 1.

    Raises:
        MissingFileError, InputError: no such file; damaged; another rank, class count, encoder depth or kind (names
            the key).
    """
    keys = samed_keys(net)
    state, name = read_state(source)
    rank, classes, decoder_rank = (
        len(state.get(key, ())) for key in ("w_a_000", "mask_decoder.mask_tokens.weight", "sa_a_000")
    )
    remedy = "expected a LoRA file of SAMed or SAMed_s"
    if rank:
        blocks = sum(key.startswith("w_a_") for key in state) // 2
        remedy = (
            f"the file is of an encoder with {blocks} blocks, rank={rank}, num_classes={classes}, "
            f"decoder_rank={decoder_rank}; build the network with these"
        )
    ours = {keys.get(key, key): value for key, value in state.items()}
    copied = copy_strictly(net, ours, list(keys.values()), name, remedy)
    set_pixel_statistics(net)
    kept = net.state_dict().keys() - {*copied, "pixel_mean", "pixel_std"}
    return LoadReport(name, copied=copied, kept=sorted(kept))


def save_samed(net: Segmenter, path: str | os.PathLike[str]) -> None:
    """Write a file for SAMed, which has no pixel statistics, so that those of `net` must be 0 and 1.

    Raises:
        InputError: the network is not SAMed or has other pixel statistics; the file cannot be written.
    """
    keys = samed_keys(net)
    check_pixel_statistics(net, "SAMed")
    state = net.state_dict()
    write_checkpoint({theirs: state[ours].cpu().clone() for theirs, ours in keys.items()}, path)


@torch.no_grad()
def set_pixel_statistics(net: Segmenter) -> None:
    """Set pixel mean 0 and std 1, as in SAMed and H-SAM."""
    net.pixel_mean.zero_()
    net.pixel_std.fill_(1)


def check_pixel_statistics(net: Segmenter, system: str) -> None:
    """Raise an `InputError` unless `net` has the pixel statistics that the files of `system` imply."""
    if net.pixel_mean.abs().max() > 0 or (net.pixel_std - 1).abs().max() > 0:
        raise InputError(
            f"{system}'s files imply pixel mean 0 and std 1, but the network has others; "
            "build it with pixel_mean=(0, 0, 0), pixel_std=(1, 1, 1)"
        )
