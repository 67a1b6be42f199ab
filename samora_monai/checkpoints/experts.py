"""Expert files: one low-rank expert of the encoder, under 1 MB, and what it was trained with.

Keys (`blocks.0.linear_a_q.weight`) carry no level, so that a file fits any slot of any network on the same base. See
`expert_settings` for the settings in the meta and the older format.
"""

from __future__ import annotations

import os
import re
from typing import Any

from samora_monai.checkpoints.expert_settings import ExpertSettings
from samora_monai.checkpoints.files import (
    LoadReport,
    Source,
    check_meta,
    copy_strictly,
    read_parts,
    sha256_of,
    write_parts,
)
from samora_monai.checkpoints.sam import base_keys, preset_name
from samora_monai.errors import InputError
from samora_monai.networks.segmenter import Segmenter


def base_sha256(net: Segmenter) -> str:
    """Hash the base encoder without its position tables, so that the hash is the same at every input size."""
    state, hashed = net.state_dict(), re.compile(r"image_encoder\.(?!pos_embed|.*rel_pos_[hw]$)")
    return sha256_of({key: state[key] for key in base_keys(net) if hashed.match(key)})


def _keys(net: Segmenter, level: str) -> dict[str, str]:
    """Map the keys in a file to those of the expert of `level`, or of the only expert of the network."""
    experts = net.image_encoder.experts
    if level not in experts and len(experts) != 1:
        raise InputError(f"the network has no expert {level!r}, only {experts}; build it with this expert")
    slot = level if level in experts else experts[0]
    pattern = re.compile(rf"image_encoder\.(blocks\.\d+)\.attn\.experts\.{re.escape(slot)}\.(.*)")
    return {f"{m[1]}.{m[2]}": key for key in net.state_dict() if (m := pattern.fullmatch(key))}


def _made_for(net: Segmenter) -> dict[str, Any]:
    return {"preset": preset_name(net), "rank": net.image_encoder.rank, "base_sha256": base_sha256(net)}


def save_expert(
    net: Segmenter,
    path: str | os.PathLike[str],
    level: str,
    teacher: str | None = None,
    base_sha256_before: str | None = None,
    settings: ExpertSettings | None = None,
) -> None:
    """Write the expert of `level`, or the only expert of the network, to a file.

    Args:
        teacher: the teacher of an expert without `settings`.
        base_sha256_before: `base_sha256` before the training, which must not change it.
        settings: what the expert was trained with, which its inference reads from the file.

    Raises:
        RuntimeError: the base has changed.
        InputError: the file cannot be written.
    """
    state = net.state_dict()
    made_for = _made_for(net)
    if base_sha256_before not in (None, made_for["base_sha256"]):
        raise RuntimeError(f"SAM's encoder changed while the {level} expert trained; no expert file was written")
    meta = settings.as_dict() if settings else {"teacher": teacher}
    meta |= made_for | {
        "base_sha256_before": base_sha256_before,
        "level": level,
        "alpha": made_for["rank"],  # delta = alpha / rank * B A, and SAMed has no such factor
        "targets": ["q", "v"],
        "blocks": len(net.image_encoder.blocks),
        "image_size": net.image_size,
    }
    write_parts("expert", {name: state[key] for name, key in _keys(net, level).items()}, meta, path)


def load_expert(net: Segmenter, source: Source, level: str) -> LoadReport:
    """Load an expert file into the slot `level` of `net`, whose SAM base must be loaded already.

    Raises:
        MissingFileError, InputError: no such file; no expert file; damaged; of another level, rank, preset or base.
    """
    keys = _keys(net, level)
    state, meta, name = read_parts(source, "expert")
    check_meta(name, meta, {"level": level, **_made_for(net)})
    ours = {keys.get(key, key): value for key, value in state.items()}
    return LoadReport(name, copied=copy_strictly(net, ours, list(keys.values()), name, "the expert has other blocks"))
