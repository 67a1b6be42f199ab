"""What a pipeline has at hand: cores, memory, a device, and a base."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import torch

from samora_monai.bundles import bundle_path
from samora_monai.data.scans import absolute
from samora_monai.download import CHECKPOINTS, SHIPPED, STAND_IN
from samora_monai.errors import InputError, MissingFileError
from samora_monai.networks import PRESETS

STAND_IN_FILE = SHIPPED / f"{STAND_IN}.pt"
TEACHERS = {"image": "r50_2x_sk1.pth", "patch": "mae_pretrain_vit_large_full.pth"}  # public files
# Of the bases at hand the first is taken: the fastest at the same number of pixels, then the paper's
_ORDER = ("sam2_tiny", "vit_b", "sam2_small", "sam2_base_plus", "vit_l", "sam2_large", "vit_h")
_BUNDLES = ("samora_segmentation", "samora_pixel_expert", "samora_patch_expert", "samora_image_expert")
_CGROUP = Path("/sys/fs/cgroup/memory.max")


@dataclass(frozen=True)
class Base:
    """The base of a pipeline: preset, file, and where it comes from."""

    encoder: str
    checkpoint: str
    reason: str


def find_base(encoder: str | None, checkpoint: str | None, run: Path) -> Base:
    """Return the given base, else a file of Meta that is at hand, else the stand-in of the package.

    Args:
        encoder: a preset, or None.
        checkpoint: the base's file, or None.
        run: folder of the pipeline, which is searched too.

    Raises:
        MissingFileError: the file does not exist, or none is at hand for the given encoder.
        InputError: unknown encoder, or a file of unknown encoder.
    """
    if encoder is not None and encoder not in PRESETS:
        raise InputError(f"unknown encoder {encoder!r}; choose one of {', '.join(PRESETS)}")
    if checkpoint is not None:
        file = absolute(checkpoint)
        if not file.is_file():
            raise MissingFileError(f"there is no base '{file}'; give --sam_checkpoint FILE, or leave it out")
        known = {entry.file: name for name, entry in CHECKPOINTS.items() if name in PRESETS} | {
            STAND_IN_FILE.name: STAND_IN
        }
        preset = encoder or known.get(file.name)
        if preset is None:
            raise InputError(f"the name of base '{file}' does not tell its encoder; give --encoder {'|'.join(PRESETS)}")
        return Base(preset, str(file), "given")
    for preset in (encoder,) if encoder else _ORDER:
        if preset in CHECKPOINTS and (found := find_file(CHECKPOINTS[preset].file, run)):
            return Base(preset, str(found), f"weights of Meta, found at hand; any other with --encoder {preset}")
    if encoder in (None, STAND_IN):
        if not STAND_IN_FILE.is_file():
            raise MissingFileError(f"the package lacks '{STAND_IN_FILE}'; install samora_monai again")
        reason = f"a stand-in for SAM, trained on synthetic pictures; for Meta's weights run {_download(_ORDER[0])}"
        return Base(STAND_IN, str(STAND_IN_FILE), reason)
    if encoder not in CHECKPOINTS:
        raise MissingFileError(f"there are no weights for encoder '{encoder}'; give --sam_checkpoint FILE")
    raise MissingFileError(
        f"{CHECKPOINTS[encoder].file}, the base of --encoder {encoder}, is not at hand; download it with "
        f"'{_download(encoder)}', or give --sam_checkpoint FILE"
    )


def _download(encoder: str) -> str:
    return f"python -m samora_monai.download {encoder} --bundle_path {bundle_path(_BUNDLES[0])}"


def find_file(name: str, run: Path) -> Path | None:
    """Find a weights file in the folder of the pipeline, the working folder, or a bundle's `models`; None if absent."""
    folders = [run, run / "models", Path(), Path("models"), *(bundle_path(bundle) / "models" for bundle in _BUNDLES)]
    return next((absolute(folder / name) for folder in folders if (folder / name).is_file()), None)


def model_file(model: Path) -> Path:
    """Find the weights in a folder of a pipeline or of a bundle; a file is returned as it is.

    Raises:
        MissingFileError: there is none.
    """
    model = absolute(model)
    for file in (model, model / "samora" / "models" / "model.pt", model / "models" / "model.pt"):
        if file.is_file():
            return file
    raise MissingFileError(
        f"no trained model in '{model}'; expected the folder of `samora train`, a bundle with models/model.pt, or a "
        "model.pt"
    )


def cores() -> int:
    """Number of processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def choose_device(given: str | None) -> tuple[str, str]:
    """Return the device and the reason for it; raise an `InputError` if the given one is not there."""
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if given is None:
        return ("cuda", f"{torch.cuda.get_device_name()} is there") if gpus else ("cpu", "there is no GPU")
    try:
        device = torch.device(given)
    except RuntimeError as error:
        raise InputError(f"unknown device {given!r}; use --device cpu, cuda or cuda:N") from error
    if device.type == "cuda" and (device.index or 0) >= gpus:
        raise InputError(f"device {given!r} is not there (found {gpus} GPUs); use --device cpu")
    return given, "given"


def free_memory(device: str) -> int:
    """Free memory of the device in bytes; of a CPU that of the machine, within the limit of a container."""
    if torch.device(device).type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    meminfo = Path("/proc/meminfo")
    rows = dict(row.split(":") for row in meminfo.read_text().splitlines()) if meminfo.is_file() else {}
    if "MemAvailable" in rows:
        free = 1024 * int(rows["MemAvailable"].split()[0])
    else:
        free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    limit = _CGROUP.read_text().strip() if _CGROUP.is_file() else "max"
    return min(free, int(limit)) if limit.isdecimal() else free
