"""Stored outputs of the reference implementations (SAM, SAMed) for seeded weights and inputs."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tests.goldens import seeded_state as seeded

FOLDER = Path(os.environ.get("SAMORA_GOLDENS", Path(__file__).parent))  # another folder of the same form may be given
INDEX = json.loads((FOLDER / "index.json").read_text())


def names(prefix: str) -> list[str]:
    return [name for name in INDEX["cases"] if name.startswith(prefix)]


class Golden:
    """One case: its seeded weights and inputs, and the comparison with what the reference computed from them."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.case = INDEX["cases"][name]
        self.config = self.case.get("config", {})
        self.arrays = np.load(FOLDER / self.case["npz"])

    def state(self, which: str = "manifest") -> dict[str, torch.Tensor]:
        manifest = FOLDER / self.case[which]
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
        return {k: self.config[k] for k in ("embed_dim", "depth", "num_heads", "window_size", "global_attn_indexes")}
