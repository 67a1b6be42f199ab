"""How the tests of slices read volumes."""

from __future__ import annotations

import torch
from monai.transforms import EnsureChannelFirstd

from samora_monai.data import LoadCased, SliceDataset

READ = (LoadCased(["image", "label"]), EnsureChannelFirstd(["image", "label"]))
READ_IMAGE = (LoadCased("image"), EnsureChannelFirstd("image"))


def items(dataset: SliceDataset) -> list[dict[str, torch.Tensor]]:
    return [dataset[i] for i in range(len(dataset))]
