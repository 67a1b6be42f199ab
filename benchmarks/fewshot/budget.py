"""The length of every training, in steps, and the batch sizes; no other module holds such numbers."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from benchmarks.fewshot.grid import EPOCHS
from samora_monai.errors import InputError


@dataclass(frozen=True)
class Budget:
    """Steps and batch sizes of a grid.

    Args:
        image_size: side of the network's input in the fine-tuning, in pixels.
        expert_image_size: the same in stage 1; an expert fits any size.
        steps: steps of each fine-tuning, a multiple of `EPOCHS`.
        base_steps: steps of the stand-in base, with batches of 16.
        image_teacher_steps, patch_teacher_steps, expert_steps: steps of stage 1.
        batch_size: slices per step of the fine-tuning.
        teacher_batch_size, expert_batch_size: slices per step of stage 1.

    Raises:
        InputError: `steps` is not a multiple of `EPOCHS`.
    """

    image_size: int
    expert_image_size: int
    steps: int
    base_steps: int
    image_teacher_steps: int
    patch_teacher_steps: int
    expert_steps: int
    batch_size: int
    teacher_batch_size: int = 32
    expert_batch_size: int = 16

    def __post_init__(self) -> None:
        if self.steps < EPOCHS or self.steps % EPOCHS:
            raise InputError(
                f"steps is {self.steps} but must be a multiple of {EPOCHS}; give --steps 1000, for example"
            )

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


FULL = Budget(
    image_size=224,
    expert_image_size=224,
    steps=1500,
    base_steps=3200,
    image_teacher_steps=1200,
    patch_teacher_steps=1200,
    expert_steps=1600,
    batch_size=12,
)
QUICK = Budget(
    image_size=128,
    expert_image_size=128,
    steps=400,
    base_steps=1200,
    image_teacher_steps=400,
    patch_teacher_steps=600,
    expert_steps=400,
    batch_size=4,
)

# encoders of which base.py makes a base, the stand-ins of the recipes -> its settings; sides and steps of each part
BASES: dict[str, dict[str, Any]] = {
    "tiny": {"image_size": (112, 192), "steps": (4000, 1200), "learning_rate": 0.001},
    "sam2_mini": {"image_size": (96, 192), "steps": (4000, 1200), "learning_rate": 0.002},
}
