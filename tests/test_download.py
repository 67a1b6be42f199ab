"""The command that gets one checkpoint, from `file://`."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import pytest

from samora_monai import download as module
from samora_monai.download import CHECKPOINTS, STAND_IN, Checkpoint, download, main
from samora_monai.errors import MissingFileError
from samora_monai.networks import PRESETS
from tests.tiny import refused

CONTENT = b"weights" * 1000


@pytest.fixture
def bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A bundle; of the checkpoints, SAM 2 tiny is there, MAE has no hash, and SAM 2 small is not there."""
    (tmp_path / "server").mkdir()
    for name in ("sam2.1_hiera_tiny.pt", "mae_pretrain_vit_large_full.pth"):
        (tmp_path / "server" / name).write_bytes(CONTENT)
    sha256 = hashlib.sha256(CONTENT).hexdigest()
    for name in ("sam2_tiny", "mae_vit_l", "sam2_small"):
        url = (tmp_path / "server" / CHECKPOINTS[name].file).as_uri()
        sums = () if name == "mae_vit_l" else (len(CONTENT), sha256)
        monkeypatch.setitem(CHECKPOINTS, name, Checkpoint(url, *sums))
    (tmp_path / "bundle" / "configs").mkdir(parents=True)
    (tmp_path / "bundle" / "configs" / "metadata.json").write_text("{}")
    return tmp_path / "bundle"


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("sam2_tiny", "sam2.1_hiera_tiny.pt"),
        ("sam2.1_hiera_tiny.pt", "sam2.1_hiera_tiny.pt"),
        ("mae_vit_l", "mae_pretrain_vit_large_full.pth"),
    ],
)
def test_only_the_named_file_is_downloaded(bundle: Path, name: str, file: str):
    target = download(name, bundle)
    assert target == bundle / "models" / file and target.read_bytes() == CONTENT
    assert list((bundle / "models").iterdir()) == [target]
    (bundle.parent / "server" / file).unlink()
    assert download(name, bundle) == target  # it is there, and has its hash


def test_a_file_with_another_hash_is_refused(bundle: Path):
    (bundle / "models").mkdir()
    (bundle / "models" / "sam2.1_hiera_tiny.pt").write_bytes(b"weights" * 500)
    with refused("models/sam2.1_hiera_tiny.pt' from file://", "check of existing file failed", "delete the file"):
        download("sam2_tiny", bundle)


def test_a_failed_download_leaves_nothing(bundle: Path):
    with refused("cannot get", "models/sam2.1_hiera_small.pt' from file://", "try again"):
        download("sam2_small", bundle)
    assert not (bundle / "models").exists()


def test_unknown_names_and_folders_are_refused(bundle: Path, tmp_path: Path):
    with refused("no checkpoint 'sam3'", "vit_b, ", "sam2_tiny, ", "mae_vit_l, ", STAND_IN):
        download("sam3", bundle)
    with refused("no checkpoint 'r50_2x_sk1.pth'", "TensorFlow only", "gs://", "converter github.com/"):
        download("r50_2x_sk1.pth", bundle)
    with refused("no checkpoint 'sam2_mini'", "trained from random weights", "--sam_checkpoint none"):
        download("sam2_mini", bundle)
    with refused("' is no bundle", "configs/metadata.json", "--bundle_path", error=MissingFileError):
        download("sam2_tiny", tmp_path)


def test_the_stand_in_is_copied(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """From the package, a file of another version is not overwritten."""
    monkeypatch.setattr(module, "SHIPPED", tmp_path / "weights")
    with refused("weights/tiny.pt' is missing", "install samora_monai again", error=MissingFileError):
        download("tiny", bundle)
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "tiny.pt").write_bytes(CONTENT)
    for _ in range(2):
        target = download("tiny", bundle)
        assert target == bundle / "models" / "tiny.pt" and target.read_bytes() == CONTENT
        assert list((bundle / "models").iterdir()) == [target]
    target.write_bytes(b"others" * 1000)
    with refused("models/tiny.pt' is not the file that this version ships", "delete it"):
        download("tiny", bundle)
    assert target.read_bytes() == b"others" * 1000
    target.unlink()
    target.parent.rmdir()
    target.parent.write_text("")
    with refused("cannot write", "models/tiny.pt'", "choose a writable folder"):
        download("tiny", bundle)


def test_the_command_prints_the_path_or_one_line(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    monkeypatch.setattr("sys.argv", ["download", "sam2_tiny", "--bundle_path", str(bundle)])
    main()
    assert capsys.readouterr().out.splitlines()[-1] == str(bundle / "models" / "sam2.1_hiera_tiny.pt")
    monkeypatch.setattr("sys.argv", ["download", "sam3", "--bundle_path", str(bundle)])
    with pytest.raises(SystemExit, match=r"^error: no checkpoint 'sam3'; choose one of "):
        main()


def test_help_lists_every_file_with_its_size(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture):
    monkeypatch.setattr("sys.argv", ["download", "--help"])
    with pytest.raises(SystemExit, match=r"^0$"):
        main()
    text = capsys.readouterr().out
    assert "  vit_b             sam_vit_b_01ec64.pth, 375 MB\n" in text
    assert all(f"  {name} " in text and f"{entry.file}, " in text for name, entry in CHECKPOINTS.items())
    assert f"  {STAND_IN} " in text


def test_the_table_has_every_published_file():
    """Every file of SAM, SAM 2.1 and SAM 2.0 with size and hash, under the presets' names, and the patch teacher."""
    server = "https://dl.fbaipublicfiles.com"
    published = {name: (f"sam_{name}_", f"{server}/segment_anything") for name in ("vit_b", "vit_l", "vit_h")}
    for prefix, version, date in (("sam2", "2.1", "092824"), ("sam2.0", "2", "072824")):
        for size in (
            name.removeprefix("sam2_") for name in PRESETS if name.startswith("sam2_") and name != "sam2_mini"
        ):
            file = f"sam{version}_hiera_{size}.pt"
            published[f"{prefix}_{size}"] = (file, f"{server}/segment_anything_2/{date}")
    assert len(published) == 11 and [*CHECKPOINTS] == [*published, "mae_vit_l"]
    assert {name for name in PRESETS if name not in CHECKPOINTS} == {"sam2_mini", STAND_IN}
    for name, (start, url) in published.items():
        entry = CHECKPOINTS[name]
        assert entry.file.startswith(start) and entry.url == f"{url}/{entry.file}"
        assert entry.size is not None and 1.5e8 < entry.size < 2.6e9
        assert re.fullmatch("[0-9a-f]{64}", str(entry.sha256))
    assert len({CHECKPOINTS[name].sha256 for name in published}) == len(published)
