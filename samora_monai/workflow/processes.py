"""Several processes in one run: their device, share of the work, and process group."""

from __future__ import annotations

import datetime
import os

import ignite.distributed as idist
import torch
import torch.distributed as dist
from monai.data import DistributedSampler
from torch import nn
from torch.utils.data import Dataset

from samora_monai.errors import InputError
from samora_monai.settings import flag

PATIENCE = datetime.timedelta(days=30)  # time that a finished process waits for the others


def own_device() -> torch.device:
    """Return the GPU with this process's LOCAL_RANK (0 in a job array, where a job has one GPU only), or the CPU."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))


def own_share() -> tuple[int, int]:
    """Return RANK and WORLD_SIZE, which torchrun or a job script sets; raise an `InputError` if they are no share."""
    rank, processes = (os.environ.get(name, "") for name in ("RANK", "WORLD_SIZE"))
    if not (rank.isdecimal() and processes.isdecimal() and int(rank) < int(processes)):
        raise InputError(
            f"expected RANK from 0 to WORLD_SIZE - 1 in the environment, got RANK={rank!r} WORLD_SIZE={processes!r}; "
            "start with torchrun, or set both in the job script"
        )
    return int(rank), int(processes)


def join_processes(distributed: bool | str = True) -> None:
    """Join the process group of this run: nccl where there are GPUs, gloo elsewhere.

    Args:
        distributed: False joins nothing. `"launched"` joins the processes of torchrun only so that a finished process
            waits for the others (torchrun ends a node's processes when another node has finished); a process that
            torchrun did not start, as in a job array, joins nothing.

    Raises:
        InputError: `distributed` is neither true, false nor `"launched"`.
    """
    launched = distributed == "launched"
    if not launched and not flag(distributed, "distributed"):
        return
    gpu = torch.cuda.is_available()
    if gpu:
        torch.cuda.set_device(own_device())
    if dist.is_initialized() or (launched and not dist.is_torchelastic_launched()):
        return
    if launched:
        dist.init_process_group("gloo", timeout=PATIENCE)
    else:
        dist.init_process_group("nccl" if gpu else "gloo")


def leave_process_group() -> None:
    """Leave the process group that `join_processes` joined, if any."""
    if dist.is_initialized():
        dist.destroy_process_group()


def wrap(network: nn.Module, device: torch.device) -> nn.Module:
    """Wrap a network for training in several processes; on GPUs its batch norms use the batches of all of them.

    `ignite.distributed.auto_model` would move it to a GPU whenever there is one, whatever `device` is.
    """
    if torch.device(device).type != "cuda":
        return nn.parallel.DistributedDataParallel(network)
    network = nn.SyncBatchNorm.convert_sync_batchnorm(network)
    return nn.parallel.DistributedDataParallel(network, device_ids=[device])


def shared_sampler(dataset: Dataset, even_divisible: bool, shuffle: bool, items: str = "slices") -> DistributedSampler:
    """Return MONAI's `DistributedSampler`, which gives each process its share of the dataset.

    Raises:
        InputError: there are fewer items than processes; `items` is the plural noun for what the dataset holds.
    """
    count: int = len(dataset)  # type: ignore[arg-type]
    if count < (processes := idist.get_world_size()):
        raise InputError(
            f"{processes} processes cannot share {count} {items}; start fewer with --nproc_per_node or give more"
        )
    return DistributedSampler(dataset, even_divisible=even_divisible, shuffle=shuffle)
