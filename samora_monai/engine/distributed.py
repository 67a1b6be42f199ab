"""What the handlers ask of a run with several processes."""

from __future__ import annotations

import os
from typing import Any

import torch
import torch.distributed as dist
from monai.data import DistributedSampler
from monai.utils import set_determinism
from torch import nn
from torch.utils.data import Dataset

from samora_monai.errors import InputError


def is_main_process() -> bool:
    """True on rank 0, and in a run with one process: the one that prints and writes files."""
    return not dist.is_initialized() or dist.get_rank() == 0


def world_size() -> int:
    """Number of processes of this run."""
    return dist.get_world_size() if dist.is_initialized() else 1


def gather(item: Any) -> list[Any]:
    """`item` of every rank, in rank order, on every rank. All ranks have to call it. Items must be picklable."""
    if not dist.is_initialized():
        return [item]
    items: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(items, item)
    return items


def init_process_group() -> None:
    """Join the processes that torchrun started: nccl where there are GPUs, gloo elsewhere."""
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    if not dist.is_initialized():
        dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")


def leave_process_group() -> None:
    """The opposite of `init_process_group`; in a run with one process, nothing."""
    if dist.is_initialized():
        dist.destroy_process_group()


def set_process_seed(seed: int) -> None:
    """Another seed for each process, so that their augmentations differ; call it once the networks are built."""
    set_determinism(seed=seed + (dist.get_rank() if dist.is_initialized() else 0))


def wrap(network: nn.Module, device: torch.device) -> nn.Module:
    """The network for training in several processes; on GPUs its batch norms see the batches of all of them."""
    if torch.device(device).type != "cuda":
        return nn.parallel.DistributedDataParallel(network)
    network = nn.SyncBatchNorm.convert_sync_batchnorm(network)
    return nn.parallel.DistributedDataParallel(network, device_ids=[device])


def shared_sampler(dataset: Dataset, even_divisible: bool, shuffle: bool) -> DistributedSampler:
    """MONAI's `DistributedSampler`: each process its share of the slices.

    Raises:
        InputError: some process would get none.
    """
    count: int = len(dataset)  # type: ignore[arg-type]
    if count < world_size():
        raise InputError(
            f"{world_size()} processes cannot share {count} slices; start fewer with --nproc_per_node or give more"
        )
    return DistributedSampler(dataset, even_divisible=even_divisible, shuffle=shuffle)
