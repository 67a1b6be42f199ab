"""Choose by name which parameters train."""

from __future__ import annotations

import re

from torch import nn

from samora_monai.errors import InputError

# Prompt-free segmentation uses neither prompts nor predicted IoU, so that these parameters would get no gradient.
# `sam_` and `trunk` stand in SAM 2's names only.
_UNUSED = r"(sam_)?prompt_encoder\.(?!no_mask_embed)|(sam_)?mask_decoder2?\.(iou_prediction_head|pred_obj_score_head)"
_DECODER = r"(sam_)?prompt_encoder\.no_mask_embed|(sam_)?mask_decoder2?\."
_EXPERTS = r"image_encoder\.(trunk\.)?blocks\.\d+\.attn\.experts\."
_FUSION = r"image_encoder\.(trunk\.)?blocks\.\d+\.hl_attn"
_DECODER_BASE = r"(sam_)?mask_decoder\.transformer\.(?!.*\.expert\.)"


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
