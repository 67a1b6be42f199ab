"""Settings that suit a base: learning rates, ranks, warm-up and teachers, for SAM's weights and for small stand-ins."""

from __future__ import annotations

from typing import Any

STAND_INS = ("tiny", "sam2_mini")  # encoders without weights of Meta, trained from scratch

# Whether the base is a stand-in -> settings of each training. False: the bundles' own settings, for SAM's weights
LEARNING: dict[bool, dict[str, dict[str, Any]]] = {
    False: {"fine-tuning": {}, "image_teacher": {}, "patch_teacher": {}, "expert": {}, "taught": {}, "fused": {}},
    True: {
        "fine-tuning": {"learning_rate": 0.002, "warmup": 20, "rank": 16},
        "image_teacher": {"learning_rate": 0.001, "warmup": 20, "view_size": 96},
        "patch_teacher": {"learning_rate": 0.002, "warmup": 20},
        "expert": {"learning_rate": 0.003, "warmup": 20, "rank": 16},
        # of the pipeline: of experts with a teacher, and of SAMora; row clipped of benchmarks/fewshot. With gradients
        # of any norm, HL-Attn diverges at this rate after some hundred steps
        "taught": {"standardise_targets": True},
        "fused": {"expert_rate": 0.25, "weight_decay_on": "matrices", "max_gradient_norm": 0.3},
    },
}
# Whether teachers are small ones, trained from random weights -> their networks; the others are public
TEACHER_NETWORKS = {False: {"image": "r50_2x_sk1", "patch": "vit_l"}, True: {"image": "tiny", "patch": "tiny"}}
# Channels of the denoising decoder's last layer of a small pixel expert
SMALL_DECODER = {"decoder_features": 8}
# mm over which predictions of neighbouring slices are averaged; measured in benchmarks/README.md
SMOOTHING = 1.5
