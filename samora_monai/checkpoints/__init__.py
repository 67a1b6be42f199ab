"""Strict loading and saving of SAM, SAMed and H-SAM checkpoints and of expert, adapter and model files."""

from samora_monai.checkpoints.adapters import load_adapter, save_adapter
from samora_monai.checkpoints.expert_settings import ExpertSettings, read_expert_settings
from samora_monai.checkpoints.experts import base_sha256, load_expert, save_expert
from samora_monai.checkpoints.files import LoadReport
from samora_monai.checkpoints.hsam import load_hsam, save_hsam
from samora_monai.checkpoints.model import load_model
from samora_monai.checkpoints.model_settings import (
    ModelSettings,
    model_in_use,
    read_model_settings,
    write_model_settings,
)
from samora_monai.checkpoints.sam import load_sam
from samora_monai.checkpoints.samed import load_samed, save_samed

__all__ = [
    "ExpertSettings",
    "LoadReport",
    "ModelSettings",
    "base_sha256",
    "load_adapter",
    "load_expert",
    "load_hsam",
    "load_model",
    "load_sam",
    "load_samed",
    "model_in_use",
    "read_expert_settings",
    "read_model_settings",
    "save_adapter",
    "save_expert",
    "save_hsam",
    "save_samed",
    "write_model_settings",
]
