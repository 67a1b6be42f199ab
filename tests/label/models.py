"""Models as training leaves them, without a training."""

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
    """`models/model.pt` of seeded noise and `model.json`, as training leaves them."""
    net = build_segmenter(num_classes=len(CLASS_NAMES), **SAMORA | settings)
    randomise(net, seed)
    write_model_settings(folder / "models" / "model.pt", ModelSettings.from_dict(SAMORA | settings | HEADER))
    write_checkpoint(net.state_dict(), folder / "models" / "model.pt")
    return folder / "models" / "model.pt"
