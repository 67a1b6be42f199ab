"""Strict loading and saving of SAM, SAM 2, SAMed and H-SAM checkpoints and of expert, adapter and model files.

Every `load_*` takes the path of a file, or its content, and returns a `LoadReport`. Every `load_*` and `read_*` raises
a `MissingFileError` if a file is missing, and an `InputError` if it is damaged, of another kind or format, contains
code, or does not fit the network; the message names the first key or field that differs, and the network is unchanged.
Every `save_*` raises an `InputError` if the file cannot be written, or if its format cannot represent the network.
"""

from samora_monai.checkpoints.adapters import load_adapter, save_adapter
from samora_monai.checkpoints.experts import ExpertSettings, base_sha256, load_expert, read_expert_settings, save_expert
from samora_monai.checkpoints.files import LoadReport
from samora_monai.checkpoints.hsam import load_hsam, save_hsam
from samora_monai.checkpoints.model_settings import (
    ModelSettings,
    load_for_inference,
    load_model,
    model_in_use,
    read_model_settings,
    write_model_settings,
)
from samora_monai.checkpoints.sam import load_sam
from samora_monai.checkpoints.samed import load_samed, save_samed

__all__ = [
    "ExpertSettings", "LoadReport", "ModelSettings", "base_sha256", "load_adapter", "load_expert", "load_for_inference",
    "load_hsam", "load_model", "load_sam", "load_samed", "model_in_use", "read_expert_settings", "read_model_settings",
    "save_adapter", "save_expert", "save_hsam", "save_samed", "write_model_settings",
]  # fmt: skip
