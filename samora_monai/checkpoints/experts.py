"""Expert files: one low-rank expert of the encoder, under 1 MB, and what it was trained with.

`{"state_dict": {...}, "meta": "<one JSON string>"}`. Keys (`blocks.0.linear_a_q.weight`) carry no level, so that a file
fits any slot of any network on the same base. See `expert_settings` for the settings in the meta and the older format.
"""

from __future__ import annotations

import json
import os
import re
from typing import Any

from samora_monai import __version__
from samora_monai.checkpoints.expert_settings import EXPERT_FORMAT, ExpertSettings
from samora_monai.checkpoints.files import (
    LoadReport,
    Source,
    check_meta,
    copy_strictly,
    read_parts,
    sha256_of,
    write_checkpoint,
)
from samora_monai.checkpoints.sam import base_keys, preset_name
from samora_monai.errors import InputError
from samora_monai.networks.segmenter import Segmenter


def base_sha256(net: Segmenter) -> str:
    """Hash the base encoder without its position tables, so that the hash is the same at every input size."""
    state = net.state_dict()
    keys = [
        k for k in base_keys(net) if k.startswith("image_encoder.") and not re.search(r"pos_embed|rel_pos_[hw]$", k)
    ]
    return sha256_of({key: state[key] for key in keys})


def _slot(net: Segmenter, level: str) -> str:
    if level in net.image_encoder.experts:
        return level
    if len(net.image_encoder.experts) == 1:
        return net.image_encoder.experts[0]
    raise InputError(f"the network has no expert {level!r}, only {net.image_encoder.experts}; build it with it")


def _keys(net: Segmenter, slot: str) -> dict[str, str]:
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
        settings: what the expert was trained with; None if its inference will never be asked for.

    Raises:
        RuntimeError: the base has changed.
        InputError: the file cannot be written.
    """
    slot = _slot(net, level)
    full = net.state_dict()
    state = {ours: full[key].cpu().clone() for ours, key in _keys(net, slot).items()}
    made_for = _made_for(net)
    if base_sha256_before not in (None, made_for["base_sha256"]):
        raise RuntimeError(f"SAM's encoder changed while the {level} expert trained; no expert file was written")
    meta = settings.as_dict() if settings else {"teacher": teacher}
    meta |= made_for | {
        "kind": "expert",
        "base_sha256_before": base_sha256_before,
        "format_version": EXPERT_FORMAT,
        "level": level,
        "alpha": made_for["rank"],  # delta = alpha / rank * B A, and SAMed has no such factor
        "targets": ["q", "v"],
        "blocks": len(net.image_encoder.blocks),
        "image_size": net.image_size,
        "sha256": sha256_of(state),
        "package_version": __version__,
    }
    write_checkpoint({"state_dict": state, "meta": json.dumps(meta)}, path)


def load_expert(net: Segmenter, source: Source, level: str) -> LoadReport:
    """Load an expert file into the slot `level` of `net`, whose SAM base must be loaded already.

    Raises:
        MissingFileError, InputError: no such file; no expert file; damaged; of another level, rank, preset or base.
    """
    slot = _slot(net, level)
    state, meta, name = read_parts(source, "expert", newest=EXPERT_FORMAT)
    check_meta(name, meta, {"level": level, **_made_for(net)})
    keys = _keys(net, slot)
    ours = {keys.get(key, key): value for key, value in state.items()}
    return LoadReport(name, copied=copy_strictly(net, ours, list(keys.values()), name, "the expert has other blocks"))
