"""Choose by name which parameters train."""

from __future__ import annotations

import re

from torch import nn

from samora_monai.errors import InputError

# Prompt-free segmentation does not use other prompts and the quality head, so that they get no gradient.
_UNUSED = r"prompt_encoder\.(?!no_mask_embed)|mask_decoder2?\.iou_prediction_head"
_DECODER = r"prompt_encoder\.no_mask_embed|mask_decoder2?\."
_EXPERTS = r"image_encoder\.blocks\.\d+\.attn\.experts\."
_FUSION = r"image_encoder\.blocks\.\d+\.hl_attn"
_HL_ATTN = rf"{_FUSION}\."
_DECODER_BASE = r"mask_decoder\.transformer\.(?!.*\.expert\.)"


def trainable_patterns(net: nn.Module, train: str = "adapters") -> tuple[str, str]:
    """Regular expressions (to train, never to train) on parameter names.

    - `"adapters"`: the decoder and the experts; with a fusion, the decoder and HL-Attn, while the experts stay frozen,
      even a single one; with experts in the decoder (SAMed_s) the decoder's transformer stays frozen;
    - `"adapters+experts"`: the decoder, the experts and HL-Attn;
    - `"experts"`: only the experts of the encoder, for their pretraining;
    - `"decoder"`: only the decoder;
    - `"all"`: all parameters that prompt-free segmentation uses, for training from scratch.
    """
    names = [name for name, _ in net.named_parameters()]
    frozen = _UNUSED
    if train == "all":
        return ".", frozen
    if any(".expert." in name for name in names):
        frozen = f"{frozen}|{_DECODER_BASE}"
    if train == "experts":
        return _EXPERTS, frozen
    if train == "decoder":
        return _DECODER, frozen
    if train == "adapters":
        # modules, because HL-Attn of a single expert has no parameters
        fused = any(re.fullmatch(_FUSION, name) for name, _ in net.named_modules())
        return f"{_DECODER}|{_HL_ATTN if fused else _EXPERTS}", frozen
    if train == "adapters+experts":
        return f"{_DECODER}|{_HL_ATTN}|{_EXPERTS}", frozen
    choices = "'adapters+experts', 'adapters', 'experts', 'decoder' or 'all'"
    raise InputError(f"unknown choice of trainable parameters {train!r}; choose {choices}")


def set_trainable(net: nn.Module, train: str = "adapters") -> list[str]:
    """Set `requires_grad` of all parameters of `net`, and return the names of those that train.

    Raises:
        InputError: `train` is none of the choices of `trainable_patterns`.
    """
    wanted, frozen = trainable_patterns(net, train)
    names = []
    for name, parameter in net.named_parameters():
        parameter.requires_grad_(bool(re.match(wanted, name)) and not re.match(frozen, name))
        if parameter.requires_grad:
            names.append(name)
    return names
