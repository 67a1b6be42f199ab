"""The app that the server and its trainings load from `main.py`: MONAI Label's app for bundles, on our datastores,
with our interactive models and strategies.
"""

from __future__ import annotations

import importlib.util
import sys
import tempfile
from pathlib import Path
from typing import Any

import monailabel.datastore.dicom
import monailabel.endpoints.infer
import monailabel.interfaces.app
import numpy as np
from additions import Additions
from monailabel.interfaces.app import MONAILabelApp
from monailabel.transform.writer import write_itk
from samora_datastore import FreshDICOMWebDatastore, WholeFilesDatastore
from samora_segments import dicom_seg_by_value, label_by_name

SAMPLE_APP = Path(sys.prefix, "monailabel", "sample-apps", "monaibundle", "main.py")


def _sample_app() -> Any:
    spec = importlib.util.spec_from_file_location("monaibundle_main", SAMPLE_APP)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.MyApp


# MONAI Label makes its datastores and DICOM SEG files by these names
monailabel.interfaces.app.LocalDatastore = WholeFilesDatastore
monailabel.interfaces.app.DICOMWebDatastore = FreshDICOMWebDatastore


class App(Additions, _sample_app(), MONAILabelApp):  # type: ignore[misc]
    """MONAI Label takes the class of `main.py` whose bases name `MONAILabelApp`; this must be the only one."""

    def __init__(self, app_dir: str, studies: str, conf: dict[str, str]) -> None:
        super().__init__(app_dir, studies, conf)
        names = self.model_settings.class_names if self.model_settings else ("background", *self.objects)
        classes = {value: name for value, name in enumerate(names) if value}
        for module in (monailabel.datastore.dicom, monailabel.endpoints.infer):
            module.nifti_to_dicom_seg = dicom_seg_by_value(classes)
        monailabel.datastore.dicom.dicom_to_nifti = label_by_name(classes)

    def on_init_complete(self) -> None:
        """Called in the server only, before it answers.

        Not in a thread: ITK changes `sys.path` and the loaded modules while it loads, and so does MONAI Label in each
        inference, which then failed in the first seconds.
        """
        super().on_init_complete()
        warm_up()


def warm_up() -> None:
    """Write a tiny label, so that the first one does not wait for ITK to be loaded (4 s)."""
    with tempfile.TemporaryDirectory() as folder:
        write_itk(np.zeros((2, 2, 2), np.uint8), f"{folder}/label.nrrd", np.eye(4), np.uint8, compress=False)
