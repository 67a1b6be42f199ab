"""An Orthanc of its own with DICOMweb, and phantoms as DICOM series for it; in the environment of `make label`."""

from __future__ import annotations

import io
import json
import os
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from PIL import Image

from samora_monai.synthetic.phantoms import make_phantom

PLUGINS = Path(os.environ.get("ORTHANC_PLUGINS", "/usr/share/orthanc/plugins"))
NEEDED = {  # Debian package: the file that it has
    "orthanc": shutil.which("Orthanc", path=f"{os.environ.get('PATH', '')}{os.pathsep}/usr/sbin"),
    "orthanc-dicomweb": next(map(str, PLUGINS.glob("libOrthancDicomWeb*")), None),
}
CLASSES = {"CT": "1.2.840.10008.5.1.4.1.1.2", "MR": "1.2.840.10008.5.1.4.1.1.4"}
UID = "2.25.19"  # of all studies here, with the case and the modality after it
JPEG_2000, PLAIN = "1.2.840.10008.1.2.4.90", "1.2.840.10008.1.2.1"  # lossless; explicit little endian


def study_uid(case: int, modality: str) -> str:
    return f"{UID}.{case}.{list(CLASSES).index(modality)}"


def series_uid(case: int, modality: str) -> str:
    return f"{study_uid(case, modality)}.1"


def patient(case: int, modality: str) -> str:
    return f"Phantom^{modality} {case}"


def write_series(folder: Path, case: int, modality: str, shape: tuple[int, int, int], compress: bool = False) -> Path:
    """Write a phantom as the only series of a study of its own patient, one file for each axial slice.

    Args:
        modality: an MR has the same body in other grey values.
        compress: to JPEG 2000, without loss.
    """
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.encaps import encapsulate

    nifti = nib.as_closest_canonical(make_phantom(case, shape)[0])
    values = np.asanyarray(nifti.dataobj)
    if modality == "MR":  # air, fat, water, organs, bone
        values = np.interp(values, (-1000, -100, 0, 60, 200, 1000), (0, 900, 300, 500, 700, 100)).round()
    intercept = -1024 if modality == "CT" else 0
    stored = (values - intercept).astype(np.uint16)
    lps = np.diag([-1, -1, 1, 1]) @ nifti.affine
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    x, y, z = (lps[:3, :3] / spacing).T
    # rows of a DICOM run to the patient's left and back; the phantom's to the right and front
    stored, corner, x, y = stored[::-1, ::-1], lps @ (stored.shape[0] - 1, stored.shape[1] - 1, 0, 1), -x, -y
    folder.mkdir(parents=True)
    study = study_uid(case, modality)
    for k in range(stored.shape[2]):
        meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID = CLASSES[modality]
        meta.MediaStorageSOPInstanceUID = f"{study}.1.{k + 1}"
        meta.TransferSyntaxUID = JPEG_2000 if compress else PLAIN
        part = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
        part.is_little_endian, part.is_implicit_VR = True, False
        part.SOPClassUID, part.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
        part.StudyInstanceUID, part.SeriesInstanceUID, part.FrameOfReferenceUID = study, f"{study}.1", f"{study}.2"
        part.PatientName, part.PatientID, part.Modality = patient(case, modality), f"{modality}{case}", modality
        part.PatientBirthDate = part.PatientSex = part.AccessionNumber = part.ReferringPhysicianName = ""
        part.PositionReferenceIndicator = part.Manufacturer = part.StudyID = ""
        part.StudyDate, part.StudyTime = f"202601{case:02d}", "120000"
        part.StudyDescription, part.SeriesDescription = "Synthetic abdomen", f"Phantom {case}"
        part.SeriesNumber, part.InstanceNumber, part.ImageType = 1, k + 1, ["ORIGINAL", "PRIMARY", "AXIAL"]
        part.ImagePositionPatient = [f"{value:.6f}" for value in corner[:3] + k * spacing[2] * z]
        part.ImageOrientationPatient = [f"{value:.8f}" for value in (*x, *y)]
        part.PixelSpacing, part.SliceThickness = [f"{spacing[1]:.6f}", f"{spacing[0]:.6f}"], f"{spacing[2]:.6f}"
        part.RescaleIntercept, part.RescaleSlope = intercept, 1
        part.WindowCenter, part.WindowWidth = (75, 400) if modality == "CT" else (450, 900)
        part.Columns, part.Rows = stored.shape[:2]
        part.SamplesPerPixel, part.PhotometricInterpretation, part.PixelRepresentation = 1, "MONOCHROME2", 0
        part.BitsAllocated, part.BitsStored, part.HighBit = 16, 16, 15
        rows = np.ascontiguousarray(stored[:, :, k].T)
        if compress:
            code = io.BytesIO()
            Image.fromarray(rows).save(code, "JPEG2000", irreversible=False, no_jp2=True)
            part.PixelData = encapsulate([code.getvalue()])
            part["PixelData"].is_undefined_length = True
        else:
            part.PixelData = rows.tobytes()
        part.save_as(folder / f"{k + 1:03d}.dcm", write_like_original=False)
    return folder


class Orthanc:
    """Orthanc on a free port of 127.0.0.1, with everything that it writes in `folder`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.address = f"http://127.0.0.1:{free.getsockname()[1]}"
        settings = {
            "StorageDirectory": str(folder / "storage"),
            "IndexDirectory": str(folder / "storage"),
            "Plugins": [NEEDED["orthanc-dicomweb"]],
            "HttpPort": int(self.address.rpartition(":")[2]),
            "RemoteAccessAllowed": False,
            "DicomServerEnabled": False,
            "DicomWeb": {"Enable": True, "Root": "/dicom-web/"},
        }
        (folder / "orthanc.json").write_text(json.dumps(settings))
        self.log = folder / "orthanc.log"
        with open(self.log, "wb") as log:
            command = [str(NEEDED["orthanc"]), str(folder / "orthanc.json")]
            self.process = subprocess.Popen(command, stdout=log, stderr=log)
        end = time.monotonic() + 60
        while True:
            assert self.process.poll() is None and time.monotonic() < end, self.log.read_text()[-3000:]
            try:
                self.get("/system")
                return
            except urllib.error.URLError:
                time.sleep(0.2)

    def get(self, path: str) -> Any:
        with urllib.request.urlopen(f"{self.address}{path}", timeout=60) as answer:
            return json.loads(answer.read())

    def upload(self, series: Path) -> None:
        for part in sorted(series.iterdir()):
            request = urllib.request.Request(f"{self.address}/instances", part.read_bytes(), method="POST")
            with urllib.request.urlopen(request, timeout=60) as answer:
                assert json.loads(answer.read())["Status"] == "Success"

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(20)
