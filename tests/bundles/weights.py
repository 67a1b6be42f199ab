"""Small files in place of Meta's checkpoint and of trained experts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from samora_monai.checkpoints import ExpertSettings, load_sam, save_expert
from samora_monai.checkpoints.sam import base_keys
from samora_monai.data import ScanScaling
from samora_monai.networks import LEVELS, Segmenter, build_segmenter
from tests.tiny import randomise


def write_sam(path: Path, seed: int = 0, **settings: Any) -> Path:
    """A seeded `tiny` as SAM would come: four mask tokens, no expert."""
    net = build_segmenter(**{"encoder": "tiny", "image_size": 64, "num_classes": 4, "experts": ()} | settings)
    randomise(net, seed)
    torch.save({key: net.state_dict()[key] for key in base_keys(net)}, path)
    return path


def write_expert(path: Path, sam: Path, level: str, modality: str = "CT", **settings: Any) -> Path:
    """A seeded expert of `level` on the base of `sam`, with `settings` of `ExpertSettings`."""
    made_with = ExpertSettings(
        level, **{"encoder": "tiny", "image_size": 64, "scaling": ScanScaling(modality)} | settings
    )
    net = build_segmenter(made_with.network)
    load_sam(net, sam)
    randomise_experts(net, seed=LEVELS.index(level))
    save_expert(net, path, level, settings=made_with)
    return path


def randomise_experts(net: Segmenter, seed: int) -> None:
    """As after training: the second factor of a fresh expert is zero."""
    for block in net.image_encoder.encoder_blocks():
        randomise(block.attn.experts, seed)
