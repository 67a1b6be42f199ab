"""Small networks with random weights, damaged files, and checks of refusals."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from samora_monai.errors import InputError
from samora_monai.networks import Segmenter, build_segmenter

TINY: dict[str, Any] = {
    "embed_dim": 32,
    "depth": 2,
    "num_heads": 2,
    "mlp_ratio": 2.0,
    "window_size": 3,
    "global_attn_indexes": (1,),
    "out_chans": 32,
}
HIERA: dict[str, Any] = {
    "embed_dim": 16,
    "num_heads": 2,
    "stages": (2, 2, 3, 2),
    "global_att_blocks": (5,),
    "window_spec": (4, 6, 6, 3),
    "window_pos_embed_bkg_spatial_size": (3, 3),
    "out_chans": 32,
}
IDENTITY: dict[str, Any] = {"pixel_mean": (0, 0, 0), "pixel_std": (1, 1, 1)}


def randomise(module: nn.Module, seed: int = 0) -> None:
    """Fill all parameters with seeded noise that keeps activations near 1; nothing stays at zero."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim >= 2:
                parameter.copy_(noise / parameter[0].numel() ** 0.5)
            else:
                parameter.copy_(0.1 * noise + name.endswith("weight"))
        for name, buffer in module.named_buffers():
            if name.endswith("gaussian_matrix"):
                buffer.copy_(torch.randn(buffer.shape, generator=generator))


def tiny(image_size: int = 64, in_channels: int = 1, num_classes: int = 3, **settings: Any) -> Segmenter:
    """Two blocks, one windowed (and padded: a grid of 4 in windows of 3) and one global, randomised."""
    encoder = TINY | settings.pop("encoder", {})
    net = build_segmenter(encoder, image_size, in_channels, num_classes, **settings)
    randomise(net)
    return net


def tiny_sam2(image_size: int = 64, in_channels: int = 1, num_classes: int = 3, **settings: Any) -> Segmenter:
    """Nine blocks, randomised; at 64 pixels the grids of 8, 4 and 2 do not fit the windows of 6, 6 and 3."""
    encoder = HIERA | settings.pop("encoder", {})
    net = build_segmenter(encoder, image_size, in_channels, num_classes, **settings)
    randomise(net)
    return net


def image(*shape: int, seed: int = 0) -> torch.Tensor:
    """Uniform noise in [0, 1]."""
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def flip_bit(path: Path) -> None:
    """Flip one bit in the middle of the largest tensor of a checkpoint, as a failing disk or download does."""
    with zipfile.ZipFile(path) as archive:
        tensors = [record for record in archive.infolist() if "/data/" in record.filename]
        record = max(tensors, key=lambda record: record.file_size)
    content = bytearray(path.read_bytes())
    lengths = content[record.header_offset + 26 : record.header_offset + 30]  # of the name and the padding that follow
    start = record.header_offset + 30 + int.from_bytes(lengths[:2], "little") + int.from_bytes(lengths[2:], "little")
    content[start + record.file_size // 2] ^= 1
    path.write_bytes(content)


@contextmanager
def refused(*words: str, error: type[Exception] = InputError) -> Iterator[None]:
    """Check that the body raises an `InputError` whose message is one line and contains all `words`."""
    with pytest.raises(error) as info:
        yield
    message = str(info.value)
    assert isinstance(info.value, InputError)
    assert message and "\n" not in message
    for word in words:
        assert word in message, f"{word!r} not in: {message}"


@contextmanager
def untouched(net: nn.Module) -> Iterator[None]:
    """Check that the body changes no parameter and no buffer of `net`."""
    before = {key: value.clone() for key, value in net.state_dict().items()}
    yield
    after = net.state_dict()
    assert list(after) == list(before)
    assert [key for key in before if not torch.equal(before[key], after[key])] == []


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
