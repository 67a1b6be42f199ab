"""Data: cases and scans on disk, transforms of volumes, slices for training, label files, synthetic phantoms."""

from samora_monai.data.classes import resolve_class_names
from samora_monai.data.datalist import Cases, check_modality, find_cases, require_validation
from samora_monai.data.label_files import SaveLabeld, check_output_dir
from samora_monai.data.scans import case_name, find_scans
from samora_monai.data.slices import SliceDataset
from samora_monai.data.transforms import CheckCased, LoadCased, ScaleScand

__all__ = [
    "Cases",
    "CheckCased",
    "LoadCased",
    "SaveLabeld",
    "ScaleScand",
    "SliceDataset",
    "case_name",
    "check_modality",
    "check_output_dir",
    "find_cases",
    "find_scans",
    "require_validation",
    "resolve_class_names",
]
