"""Model files as training writes them, without a training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from samora_monai.checkpoints import ModelSettings, write_model_settings
from samora_monai.checkpoints.files import write_checkpoint
from samora_monai.networks import LEVELS, build_segmenter
from samora_monai.synthetic.phantoms import CLASS_NAMES
from tests.tiny import randomise

SAMORA: dict[str, Any] = {"encoder": "tiny", "image_size": 64, "experts": list(LEVELS), "fusion": "attention"}
HEADER = {"class_names": list(CLASS_NAMES), "modality": "CT", "window": [-125, 275], "percentiles": [0.5, 99.5]}


def write_model(folder: Path, seed: int = 0, **settings: Any) -> Path:
    """Write `models/model.pt` with seeded random weights, and `models/model.json`."""
    model, path = ModelSettings.from_dict(HEADER | SAMORA | settings), folder / "models" / "model.pt"
    net = build_segmenter(model.network)
    randomise(net, seed)
    write_model_settings(path, model)
    write_checkpoint(net.state_dict(), path)
    return path
