"""Which files are refused; no code in a file is executed, and no file is left half-written."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from samora_monai.checkpoints import LoadReport, load_adapter, load_expert, load_model, load_sam, load_samed
from samora_monai.checkpoints.files import read_checkpoint, read_state, sha256_of, write_checkpoint
from samora_monai.errors import MissingFileError
from tests.tiny import refused, tiny, untouched

LOADERS = {
    "load_sam": load_sam,
    "load_samed": load_samed,
    "load_model": load_model,
    "load_adapter": load_adapter,
    "load_expert": lambda net, source: load_expert(net, source, "task"),
}
each_loader = pytest.mark.parametrize("load", LOADERS.values(), ids=LOADERS)


class Touch:
    """An object that creates a file when Python's pickle loads it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def no_checkpoint(tmp_path: Path) -> dict[str, bytes]:
    torch.save({"a": torch.arange(1000.0)}, tmp_path / "good.pt")
    good = (tmp_path / "good.pt").read_bytes()
    np.savez(tmp_path / "arrays.npz", a=np.zeros(3))
    return {
        "empty": b"",
        "half": good[: len(good) // 2],
        "without end": good[:-1],
        "web page": b"<!DOCTYPE html><html><body>404 Not Found</body></html>",
        "LFS pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:0000\nsize 375042383\n",
        "text": b"hello\n",
        "arrays": (tmp_path / "arrays.npz").read_bytes(),
    }


@each_loader
def test_missing_file(load, tmp_path):
    net = tiny()
    with refused("no-such.pth", error=MissingFileError), untouched(net):
        load(net, tmp_path / "no-such.pth")
    with refused(str(tmp_path), error=FileNotFoundError), untouched(net):
        load(net, tmp_path)  # a folder


@each_loader
def test_truncated_and_foreign_files_are_refused(load, tmp_path):
    net = tiny()
    for name, content in no_checkpoint(tmp_path).items():
        (tmp_path / "file.pt").write_bytes(content)
        with refused("file.pt", "damaged or no PyTorch file"), untouched(net):
            load(net, tmp_path / "file.pt")
            pytest.fail(name)


@each_loader
def test_code_in_a_checkpoint_is_refused_and_does_not_run(load, tmp_path):
    net, trace = tiny(), tmp_path / "trace"
    for zipped in (True, False):
        content = {"state_dict": {"a": torch.zeros(1)}, "meta": Touch(trace)}
        torch.save(content, tmp_path / "evil.pt", _use_new_zipfile_serialization=zipped)
        with refused("evil.pt", f"code objects ({open.__module__}.open)", "state_dict"), untouched(net):
            load(net, tmp_path / "evil.pt")
    (tmp_path / "evil.pt").write_bytes(pickle.dumps(Touch(trace), protocol=2))
    with refused("evil.pt"), untouched(net):
        load(net, tmp_path / "evil.pt")
    assert not trace.exists()
    pickle.loads(pickle.dumps(Touch(trace))).close()  # the bait works
    assert trace.exists()


@each_loader
def test_whole_modules_and_other_objects_are_refused(load, tmp_path):
    net = tiny()
    torch.save(torch.nn.Linear(2, 2), tmp_path / "module.pt")
    with refused("module.pt", "torch.nn.modules.linear.Linear"), untouched(net):
        load(net, tmp_path / "module.pt")
    torch.save([torch.zeros(2)], tmp_path / "list.pt")
    with refused("list.pt", "holds a list", "dict of tensors"), untouched(net):
        load(net, tmp_path / "list.pt")
    torch.save({}, tmp_path / "empty.pt")
    with refused("empty.pt"), untouched(net):
        load(net, tmp_path / "empty.pt")
    torch.save({"epoch": 3, "model": {"lr": 0.1}}, tmp_path / "numbers.pt")
    with refused("numbers.pt"), untouched(net):
        load(net, tmp_path / "numbers.pt")


@each_loader
def test_files_with_foreign_meta_are_no_files_of_ours(load, tmp_path):
    """OpenMMLab's checkpoints have the same two entries."""
    net = tiny()
    for meta in ({"epoch": 1}, "{broken", "[1]", "{}", 3):
        torch.save({"state_dict": {"a": torch.zeros(1)}, "meta": meta}, tmp_path / "other.pth")
        with refused("other.pth"), untouched(net):
            load(net, tmp_path / "other.pth")


@pytest.mark.parametrize("load", [load_sam, load_samed, load_model])
def test_expert_files_are_not_taken_for_weights_of_a_network(load, tmp_path):
    net = tiny()
    torch.save({"state_dict": {"a": torch.zeros(1)}, "meta": json.dumps({"kind": "expert"})}, tmp_path / "e.pt")
    with refused("'e.pt' is an expert file", "weights of a network"), untouched(net):
        load(net, tmp_path / "e.pt")


def test_state_of_a_training_checkpoint_and_of_data_parallel(tmp_path):
    state = {"a.weight": torch.ones(2)}
    wrapped = {f"module.{key}": value for key, value in state.items()}
    for content in (state, {"model": state, "optimizer": {"lr": 1}, "epoch": 3}, wrapped, {"model": wrapped}):
        torch.save(content, tmp_path / "x.pt")
        got, name = read_state(tmp_path / "x.pt")
        assert (list(got), name) == (["a.weight"], "'x.pt'")
        assert torch.equal(got["a.weight"], state["a.weight"])


def test_checksum_sees_names_and_values_but_neither_order_nor_precision():
    a, b = torch.arange(4.0), torch.ones(2)
    digest = sha256_of({"a": a, "b": b})
    assert sha256_of({"b": b.half(), "a": a.bfloat16()}) == digest
    assert sha256_of({"a": a.flip(0), "b": b}) != digest
    assert sha256_of({"a": a, "c": b}) != digest


def test_write_replaces_the_file_and_makes_the_folder(tmp_path):
    path = tmp_path / "new" / "folder" / "x.pt"
    for value in (1, 2):
        write_checkpoint({"a": torch.tensor(value)}, path)
        assert read_checkpoint(path) == ({"a": torch.tensor(value)}, "'x.pt'")
    assert os.listdir(path.parent) == ["x.pt"]


def test_written_files_can_be_read_by_whom_the_umask_allows(tmp_path):
    umask = os.umask(0o027)
    try:
        write_checkpoint({}, tmp_path / "x.pt")
    finally:
        os.umask(umask)
    assert (tmp_path / "x.pt").stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize("failure", [OSError(28, "No space left on device"), RuntimeError("x"), KeyboardInterrupt()])
def test_a_failed_write_leaves_the_former_file(failure, tmp_path, monkeypatch):
    def save(content, stream):
        stream.write(b"half a file")
        raise failure

    path = tmp_path / "x.pt"
    write_checkpoint({"a": torch.tensor(1)}, path)
    monkeypatch.setattr(torch, "save", save)
    with pytest.raises(BaseException) as info:
        write_checkpoint({"a": torch.tensor(2)}, path)
    if isinstance(failure, OSError):
        assert str(info.value) == f"cannot write {str(path)!r}: No space left on device; choose a writable folder"
    else:
        assert info.value is failure
    assert os.listdir(tmp_path) == ["x.pt"]
    assert read_checkpoint(path)[0] == {"a": torch.tensor(1)}


def test_places_that_cannot_be_written_are_named(tmp_path):
    (tmp_path / "file").write_text("")
    with refused("file/x.pt", "choose a writable folder"):
        write_checkpoint({}, tmp_path / "file" / "x.pt")
    (tmp_path / "folder.pt" / "inside").mkdir(parents=True)
    with refused("folder.pt", "choose a writable folder"):
        write_checkpoint({}, tmp_path / "folder.pt")
    assert sorted(os.listdir(tmp_path)) == ["file", "folder.pt"]


def test_report_names_what_was_not_copied():
    report = LoadReport("'sam.pth'", ["a", "b"], ["r"], ["k1", "k2", "k3", "k4"])
    assert str(report) == "'sam.pth': copied 2; resized 1 (r); kept as initialised 4 (k1, k2, k3, ...); dropped 0"


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs Linux's full device")
def test_a_full_disk_is_named_though_torch_replaces_its_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    save = torch.save

    def save_to_full_disk(content: object, _: object) -> None:
        with open("/dev/full", "wb", buffering=0) as stream:
            save(content, stream)

    monkeypatch.setattr(torch, "save", save_to_full_disk)
    with refused("cannot write", "No space left on device"):
        write_checkpoint({"a": torch.zeros(100_000)}, tmp_path / "x.pt")
