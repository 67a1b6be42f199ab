"""Adapter files: a network without its base encoder, which is identified by its hash.

They hold experts, HL-Attn, prompt encoder, mask decoders and pixel statistics: a few MB to tens of MB, not hundreds.
"""

from __future__ import annotations

import os
from typing import Any

from samora_monai.checkpoints.experts import base_sha256
from samora_monai.checkpoints.files import LoadReport, Source, check_meta, copy_strictly, read_parts, write_parts
from samora_monai.checkpoints.sam import base_keys, preset_name, window_sides
from samora_monai.networks.hl_attn import CrossAttention, HLAttn
from samora_monai.networks.segmenter import Segmenter


def adapter_keys(net: Segmenter) -> list[str]:
    """State-dict keys of all parts but the base encoder."""
    base = {key for key in base_keys(net) if key.startswith("image_encoder.")}
    return [key for key in net.state_dict() if key not in base]


def _made_for(net: Segmenter) -> dict[str, Any]:
    encoder = net.image_encoder
    return {
        "preset": preset_name(net),
        "windows": window_sides(net),
        "num_classes": net.num_classes,
        "experts": list(encoder.experts),
        "rank": encoder.rank if encoder.experts else None,
        "fusion": encoder.fusion,
        "fusion_order": next((list(m.order) for m in net.modules() if isinstance(m, HLAttn)), []),
        "fusion_norm": any(m.norm for m in net.modules() if isinstance(m, CrossAttention)),
        "base_sha256": base_sha256(net),
    }


def save_adapter(net: Segmenter, path: str | os.PathLike[str]) -> None:
    """Write an adapter file: all weights but the base encoder's, and the network and base that they belong to."""
    state = net.state_dict()
    meta = _made_for(net) | {"image_size": net.image_size}
    write_parts("adapter", {key: state[key] for key in adapter_keys(net)}, meta, path)


def load_adapter(net: Segmenter, source: Source) -> LoadReport:
    """Load an adapter file into a network of the same settings, into which the base has been loaded."""
    state, meta, name = read_parts(source, "adapter")
    check_meta(name, {"fusion_norm": False} | meta, _made_for(net))  # missing in files of 0.1
    copied = copy_strictly(net, state, adapter_keys(net), name, "the adapter belongs to a network with other settings")
    return LoadReport(name, copied=copied, kept=sorted(net.state_dict().keys() - set(copied)))
