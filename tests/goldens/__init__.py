"""Stored outputs of the reference implementations (SAM, SAMed, SAM 2) for seeded weights and inputs."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch

from samora_monai.networks.config import HIERA_SIZES
from tests.goldens import seeded_state as seeded

FOLDER = Path(os.environ.get("SAMORA_GOLDENS", Path(__file__).parent))  # another folder of the same form may be given
SAM2 = FOLDER / "sam2"
INDEXES = {folder: json.loads((folder / "index.json").read_text()) for folder in (FOLDER, SAM2)}
INDEX = INDEXES[FOLDER]


def names(prefix: str, folder: Path = FOLDER) -> list[str]:
    return [name for name in INDEXES[folder]["cases"] if name.startswith(prefix)]


class Golden:
    """One case: its seeded weights and inputs, and the comparison with what the reference computed from them."""

    def __init__(self, name: str, folder: Path = FOLDER) -> None:
        self.name = name
        self.folder = folder
        self.case = INDEXES[folder]["cases"][name]
        self.config = self.case.get("config", {})
        self.arrays = np.load(folder / self.case["npz"])

    def state(self, which: str = "manifest") -> dict[str, torch.Tensor]:
        """Seeded weights of one of the case's manifests, or of the manifest at the path `which`."""
        manifest = self.folder / self.case.get(which, which)
        return seeded.torch_state(str(manifest), self.case.get("salt", ""), self.case.get("gain", 1.0))

    def input(self, name: str) -> torch.Tensor:
        return torch.from_numpy(seeded.make_input(self.case["inputs"][name]))

    def check(self, name: str, got: torch.Tensor) -> None:
        """float32 against the stored values, float64 against the projection of the float64 run."""
        expected = self.case["outputs"][name]
        array = got.detach().numpy()
        assert list(array.shape) == expected["shape"]
        if array.dtype == np.float64:
            error = abs(seeded.projection(name, array) - expected["projection_f64"])
            assert error < 1e-8, f"{self.name} {name}: float64 projection off by {error}"
        else:
            array = seeded.subsample(array, expected.get("strides", [1] * array.ndim))
            error = np.abs(array - self.arrays[name]).max()
            assert error <= expected["suggested_atol"], f"{self.name} {name}: off by {error}"

    def encoder(self) -> dict[str, Any]:
        vit = ("embed_dim", "depth", "num_heads", "window_size", "global_attn_indexes")
        hiera = [name for name in HIERA_SIZES if name != "out_chans"]
        return {k: self.config[k] for k in (hiera if self.folder == SAM2 else vit)}
