"""Who a process is, by its environment."""

from __future__ import annotations

import ignite.distributed as idist
import pytest
import torch

from samora_monai.workflow.processes import join_processes, own_device, own_share
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
