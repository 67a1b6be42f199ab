"""The numbers that a network computes in: float32, or bfloat16 under autocast where the machine has them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from monai.inferers import SimpleInferer
from torch import Tensor, nn

from samora_monai.settings import amp_choice, flag

# Parameters below which processors gain nothing, as attention is not faster and matrix products are short; measured for
# 3 M (sam2_mini), 7 M (tiny), 32 M (sam2_tiny) and 91 M (vit_b), see benchmarks/README.md
SMALL = 20_000_000
_NATIVE = ("avx512_bf16", "amx_bf16")


def precision(amp: bool | str, device: torch.device | str, network: nn.Module) -> tuple[bool, str]:
    """Whether a run computes in bfloat16, and why, in a few words.

    Args:
        amp: true, false, or `"auto"`: bfloat16 on GPUs of compute capability 8.0 and up, and on processors with
            AVX512-BF16 or AMX for networks of at least 20 M parameters.

    Raises:
        InputError: `amp` is none of these.
    """
    if (chosen := amp_choice(amp)) is not None:
        return chosen, f"{'bfloat16' if chosen else 'float32'}: --amp {str(chosen).lower()}"
    device = torch.device(device)
    if device.type == "cuda":
        if torch.cuda.get_device_capability(device) >= (8, 0):
            return True, "bfloat16: the GPU has it"
        return False, "float32: the GPU has no bfloat16"
    if device.type != "cpu" or not _processor_has_bfloat16():
        return False, f"float32: no bfloat16 on this {'processor' if device.type == 'cpu' else device.type}"
    if sum(p.numel() for p in network.parameters()) < SMALL:
        return False, "float32: the network is too small for bfloat16 to be faster on a processor"
    return True, "bfloat16: the processor has it"


def use_bfloat16(amp: bool | str, device: torch.device | str, network: nn.Module) -> bool:
    """Whether a run computes in bfloat16, see `precision`."""
    return precision(amp, device, network)[0]


def _processor_has_bfloat16() -> bool:
    capabilities: Mapping[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()  # missing in older versions
    return any(capabilities.get(name, False) for name in _NATIVE)


class AutocastInferer(SimpleInferer):
    """Inferer of a trainer or evaluator whose network runs under bfloat16 autocast; the loss is float32.

    Differs from `amp=True` of MONAI's engines in: CPUs too; no gradient scaler, which bfloat16 does not need and which
    waits for the GPU in every step.

    Args:
        amp: run the network under autocast.
    """

    def __init__(self, amp: bool | str = False) -> None:
        super().__init__()
        self.amp = flag(amp, "amp")

    def __call__(self, inputs: Tensor, network: Any, *args: Any, **kwargs: Any) -> Any:
        """The network's output, with float32 for bfloat16 also within lists and tuples."""
        with torch.autocast(inputs.device.type, torch.bfloat16, enabled=self.amp):
            return _widened(super().__call__(inputs, network, *args, **kwargs))


def _widened(output: Any) -> Any:
    if isinstance(output, list | tuple):
        return type(output)(_widened(part) for part in output)
    return output.float() if isinstance(output, Tensor) and output.dtype == torch.bfloat16 else output
