"""One wrong bit in a file is noticed before the file is used."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from samora_monai.checkpoints import (
    load_adapter,
    load_expert,
    load_hsam,
    load_model,
    load_sam,
    load_samed,
    save_adapter,
    save_expert,
    save_hsam,
    save_samed,
)
from samora_monai.checkpoints.files import read_checkpoint, write_checkpoint
from samora_monai.networks import Segmenter
from tests.tiny import IDENTITY, flip_bit, refused, tiny, untouched

HSAM: dict[str, Any] = {"image_size": 224, "decoder": "hierarchical"}


def write_state(net: Segmenter, path: Path) -> None:
    write_checkpoint(net.state_dict(), path)


FILES: dict[str, tuple[dict[str, Any], Any, Any]] = {
    "model.pt": ({}, write_state, load_model),
    "sam_vit_b_01ec64.pth": ({"num_classes": 4, "experts": ()}, write_state, load_sam),
    "samed.pth": ({}, save_samed, load_samed),
    "hsam.pth": (HSAM, save_hsam, load_hsam),
    "task.pt": ({}, lambda net, path: save_expert(net, path, "task"), lambda net, path: load_expert(net, path, "task")),
    "adapter.pt": ({}, save_adapter, load_adapter),
}


@pytest.mark.parametrize("name", FILES)
def test_a_flipped_bit_is_refused(name, tmp_path):
    settings, save, load = FILES[name]
    net = tiny(**settings, **IDENTITY)
    save(net, tmp_path / name)
    load(net, tmp_path / name)
    flip_bit(tmp_path / name)
    with refused(f"{name}' is damaged: ", "/data/", "does not match its checksum; get it again"), untouched(net):
        load(net, tmp_path / name)
    torch.load(tmp_path / name, weights_only=True)  # torch does not notice


@pytest.mark.parametrize("checksums", [True, False])
@pytest.mark.parametrize("zipped", [True, False])
def test_files_without_checksums_are_read(checksums, zipped, tmp_path):
    """Those of torch before 1.6, and those that torch was told to write without."""
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(checksums)
    try:
        torch.save({"a": torch.arange(3)}, tmp_path / "a.pt", _use_new_zipfile_serialization=zipped)
    finally:
        torch.serialization.set_crc32_options(before)
    assert torch.equal(read_checkpoint(tmp_path / "a.pt")[0]["a"], torch.arange(3))
