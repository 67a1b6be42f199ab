"""Choose by name which parameters train, and with which learning rate and weight decay."""

from __future__ import annotations

import re
from typing import Any

from torch import nn

from samora_monai.errors import InputError

# Prompt-free segmentation uses neither prompts nor predicted IoU, so that these parameters would get no gradient.
# `sam_` and `trunk` stand in SAM 2's names only.
_UNUSED = r"(sam_)?prompt_encoder\.(?!no_mask_embed)|(sam_)?mask_decoder2?\.(iou_prediction_head|pred_obj_score_head)"
_DECODER = r"(sam_)?prompt_encoder\.no_mask_embed|(sam_)?mask_decoder2?\."
_EXPERTS = r"image_encoder\.(trunk\.)?blocks\.\d+\.attn\.experts\."
_FUSION = r"image_encoder\.(trunk\.)?blocks\.\d+\.hl_attn"
_DECODER_BASE = r"(sam_)?mask_decoder\.transformer\.(?!.*\.expert\.)"
_LOW_RANK = r"\.experts?\."  # of the encoder and of the decoder
_MATRICES = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


def set_trainable(net: nn.Module, train: str = "adapters") -> list[str]:
    """Set `requires_grad` of all parameters of `net`, and return the names of those that train.

    Args:
        train:
            - `"adapters"`: the decoder and the experts; with a fusion, the decoder and HL-Attn, while the experts stay
              frozen, even a single one; with experts in the decoder (SAMed_s) the decoder's transformer stays frozen;
            - `"adapters+experts"`: the decoder, the experts and HL-Attn;
            - `"experts"`: only the experts of the encoder, for their pretraining;
            - `"decoder"`: only the decoder;
            - `"all"`: all parameters that prompt-free segmentation uses, for training from scratch.

    Raises:
        InputError: `train` is none of these.
    """
    # modules, because HL-Attn of a single expert has no parameters
    fused = any(re.fullmatch(_FUSION, name) for name, _ in net.named_modules())
    choices = {
        "adapters": f"{_DECODER}|{_FUSION if fused else _EXPERTS}",
        "adapters+experts": f"{_DECODER}|{_FUSION}|{_EXPERTS}",
        "experts": _EXPERTS,
        "decoder": _DECODER,
        "all": ".",
    }
    if (wanted := choices.get(str(train))) is None:
        raise InputError(
            f"unknown choice of trainable parameters {train!r}; choose 'adapters+experts', 'adapters', 'experts', "
            "'decoder' or 'all'"
        )
    frozen = _UNUSED
    if train != "all" and any(".expert." in name for name, _ in net.named_parameters()):
        frozen += f"|{_DECODER_BASE}"
    names = []
    for name, parameter in net.named_parameters():
        parameter.requires_grad_(bool(re.match(wanted, name)) and not re.match(frozen, name))
        if parameter.requires_grad:
            names.append(name)
    return names


def parameter_groups(
    net: nn.Module, learning_rate: float, expert_rate: float = 1.0, weight_decay_on: str = "all"
) -> list[dict[str, Any]]:
    """Group the parameters of `net` that train, for an optimiser with this learning rate and any weight decay.

    The experts of the encoder can train more slowly than HL-Attn and the decoder. Decay pulls a parameter without
    gradient to zero, and the product B A of an expert twice as fast: pretrained experts lose what they have learned.

    Args:
        net: a network of any kind, or its DistributedDataParallel wrapper.
        learning_rate: of all parameters but those experts.
        expert_rate: the learning rate of the encoder's experts, as a multiple of `learning_rate`.
        weight_decay_on: `"all"`, or `"matrices"`: the weights of linear layers and convolutions, not experts, norms,
            biases, tokens and positions.

    Returns:
        a group for each pair of learning rate and decay, with what differs from the optimiser's own; those of
        `learning_rate` first. By default a single one.

    Raises:
        InputError: `weight_decay_on` is neither of both.
    """
    if weight_decay_on not in ("all", "matrices"):
        raise InputError(f"unknown weight_decay_on {weight_decay_on!r}; choose 'all' or 'matrices'")
    matrices = {id(module.weight) for module in net.modules() if isinstance(module, _MATRICES)}
    groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
    for name, parameter in net.named_parameters():
        if parameter.requires_grad:
            rate = expert_rate if re.search(_EXPERTS, name) else 1.0
            decays = weight_decay_on == "all" or (id(parameter) in matrices and not re.search(_LOW_RANK, name))
            groups.setdefault((rate, decays), []).append(parameter)
    return [
        {"params": parameters}
        | ({} if rate == 1 else {"lr": rate * learning_rate})
        | ({} if decays else {"weight_decay": 0.0})
        for (rate, decays), parameters in sorted(groups.items(), key=lambda group: group[0][0] != 1)
    ]
