"""Who a process is, by its environment."""

from __future__ import annotations

import ignite.distributed as idist
import pytest
import torch

from samora_monai.workflow.processes import PATIENCE, join_processes, own_device, own_share
from tests.tiny import refused


@pytest.mark.parametrize(
    ("rank", "processes", "share"),
    [("0", "1", (0, 1)), ("7", "8", (7, 8)), ("8", "8", None), ("-1", "8", None), ("", "8", None), ("0", "", None)],
)
def test_share(rank: str, processes: str, share: tuple[int, int] | None, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setenv("WORLD_SIZE", processes)
    if share is not None:
        assert own_share() == share
        return
    with refused(f"RANK={rank!r}", f"WORLD_SIZE={processes!r}", "torchrun"):
        own_share()


def test_share_of_a_process_that_nobody_numbered(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("RANK", raising=False)
    with refused("RANK=''"):
        own_share()


def test_job_of_an_array_is_alone(monkeypatch: pytest.MonkeyPatch):
    """A job array has no process group; a stray MASTER_ADDR makes none."""
    for name, value in {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    join_processes("launched")
    idist.barrier()
    assert idist.get_world_size() == 1


@pytest.mark.parametrize(("local_rank", "index"), [("3", 3), (None, 0)])
def test_device(local_rank: str | None, index: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    if local_rank is not None:
        monkeypatch.setenv("LOCAL_RANK", local_rank)
    assert own_device() == torch.device("cuda", index)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert own_device() == torch.device("cpu")


def test_process_that_is_not_distributed_joins_nothing(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.distributed, "init_process_group", lambda *args, **kwargs: pytest.fail("joined"))
    for value in (False, "false", "False"):
        join_processes(value)
    with refused("expected true or false for distributed, got 'yes'"):
        join_processes("yes")


@pytest.mark.parametrize(
    ("gpus", "distributed", "backend"), [(0, "true", "gloo"), (1, True, "nccl"), (1, "launched", "gloo")]
)
def test_backend(gpus: int, distributed: bool | str, backend: str, monkeypatch: pytest.MonkeyPatch):
    """nccl for a training on GPUs; gloo to wait alone, for as long as the other processes need."""
    joined, devices = [], []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "set_device", devices.append)
    monkeypatch.setattr(torch.distributed, "init_process_group", lambda *args, **kwargs: joined.append((args, kwargs)))
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "1")
    monkeypatch.setenv("LOCAL_RANK", "1")
    join_processes(distributed)
    assert joined == [((backend,), {"timeout": PATIENCE} if distributed == "launched" else {})]
    assert devices == [torch.device("cuda", 1)] * gpus
