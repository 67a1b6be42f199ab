"""Data: cases and scans on disk, unlabelled images, transforms, slices for training, label files."""

from samora_monai.data.any_image import LoadUnlabeledd, ScaleUnlabeledd
from samora_monai.data.classes import resolve_class_names
from samora_monai.data.data_set import DataSet
from samora_monai.data.datalist import Cases, find_cases, require_validation, volumes_of
from samora_monai.data.label_files import SaveLabeld, check_output_dir
from samora_monai.data.modality import check_modality
from samora_monai.data.postprocessing import Postprocessing
from samora_monai.data.scaling import ScanScaling
from samora_monai.data.scans import case_name, find_scans
from samora_monai.data.slices import SliceDataset
from samora_monai.data.transforms import CheckCased, LoadCased, ScaleScand
from samora_monai.data.unlabeled import UnlabeledScans, find_images, find_unlabeled

__all__ = [
    "Cases",
    "CheckCased",
    "DataSet",
    "LoadCased",
    "LoadUnlabeledd",
    "Postprocessing",
    "SaveLabeld",
    "ScaleScand",
    "ScaleUnlabeledd",
    "ScanScaling",
    "SliceDataset",
    "UnlabeledScans",
    "case_name",
    "check_modality",
    "check_output_dir",
    "find_cases",
    "find_images",
    "find_scans",
    "find_unlabeled",
    "require_validation",
    "resolve_class_names",
    "volumes_of",
]
