"""Records of stages, by which finished ones are recognised."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from samora_monai.errors import MissingFileError
from samora_monai.pipeline.record import Record, file_hash, scans_hash
from tests.tiny import refused

MADE_FROM: dict[str, Any] = {"settings": {"epochs": 2, "window": (0, 1)}, "needs": {"expert": "abc"}}


@pytest.fixture
def record(tmp_path: Path) -> Record:
    return Record(tmp_path / "records" / "stage.json", MADE_FROM)


def test_a_record_goes_from_started_to_finished(record: Record, tmp_path: Path):
    result = tmp_path / "model.pt"
    assert not record.is_started() and not record.is_finished([]) and record.changes() == []
    record.start()
    assert record.is_started() and not record.is_finished([])
    record.finish(seconds=3.5)
    assert record.is_finished([]) and not record.is_started() and record.facts() == {"seconds": 3.5}
    assert not record.is_finished([result])
    result.touch()
    assert record.is_finished([result]) and record.changes() == []
    record.remove()
    assert not record.is_finished([])


def test_another_origin_is_told_by_name(record: Record):
    record.finish()
    other = Record(record.path, {"settings": {"epochs": 3}, "needs": {"expert": "abc"}})
    assert not other.is_finished([]) and other.changes() == ["settings.epochs", "settings.window"]


@pytest.mark.parametrize("content", ["", "{", "[]", '{"state": "finished"}'])
def test_a_damaged_record_is_none(record: Record, content: str):
    record.path.parent.mkdir()
    record.path.write_text(content)
    assert not record.is_finished([]) and not record.is_started() and record.changes() == []


def test_a_record_that_cannot_be_written_is_one_line(tmp_path: Path):
    (tmp_path / "file").touch()
    with refused("cannot write", "stage.json'", "choose another folder"):
        Record(tmp_path / "file" / "stage.json", MADE_FROM).start()


def test_hashes_follow_the_content(tmp_path: Path):
    (tmp_path / "a.nii").write_text("voxels")
    first = scans_hash([str(tmp_path / "a.nii")]), file_hash(tmp_path / "a.nii")
    assert first == (scans_hash([str(tmp_path / "a.nii")] * 2), file_hash(tmp_path / "a.nii"))
    (tmp_path / "a.nii").write_text("others")
    assert first[0] != scans_hash([str(tmp_path / "a.nii")]) and first[1] != file_hash(tmp_path / "a.nii")
    with refused("cannot be read", error=MissingFileError):
        file_hash(tmp_path / "b.nii")
