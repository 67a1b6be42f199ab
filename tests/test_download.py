"""The command that downloads one checkpoint of a bundle, from `file://`."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import yaml

from samora_monai.download import CHECKPOINTS, download, main
from samora_monai.errors import MissingFileError
from samora_monai.networks import PRESETS
from tests.tiny import refused

ROOT = Path(__file__).parents[1]


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """A bundle that lists SAM 2 tiny, and a file that is not there."""
    (tmp_path / "weights").write_bytes(b"weights" * 1000)
    sha256 = hashlib.sha256(b"weights" * 1000).hexdigest()
    entries = [
        {"path": f"models/{name}", "url": (tmp_path / source).as_uri(), "hash_val": sha256, "hash_type": "sha256"}
        for name, source in (("sam2.1_hiera_tiny.pt", "weights"), ("absent.pt", "absent"))
    ]
    (tmp_path / "bundle").mkdir()
    (tmp_path / "bundle" / "large_files.yml").write_text(yaml.safe_dump({"large_files": entries}))
    return tmp_path / "bundle"


@pytest.mark.parametrize("name", ["sam2_tiny", "sam2.1_hiera_tiny.pt"])
def test_only_the_named_file_is_downloaded(bundle: Path, name: str):
    file = download(name, bundle)
    assert file == bundle / "models" / "sam2.1_hiera_tiny.pt" and file.read_bytes() == b"weights" * 1000
    assert list((bundle / "models").iterdir()) == [file]
    (bundle.parent / "weights").unlink()
    assert download(name, bundle) == file  # it is there, and has its hash


def test_a_file_with_another_hash_is_refused(bundle: Path):
    (bundle / "models").mkdir()
    (bundle / "models" / "sam2.1_hiera_tiny.pt").write_bytes(b"weights" * 500)
    with refused("models/sam2.1_hiera_tiny.pt' from file://", "check of existing file failed", "delete the file"):
        download("sam2_tiny", bundle)


def test_a_failed_download_leaves_nothing(bundle: Path):
    with refused("cannot get", "models/absent.pt' from file://", "try again"):
        download("absent.pt", bundle)
    assert not (bundle / "models").exists()


def test_unknown_names_and_folders_are_refused(bundle: Path, tmp_path: Path):
    with refused("no checkpoint 'sam2_mini'", "vit_b, ", "sam2_tiny, ", "absent.pt"):
        download("sam2_mini", bundle)
    with refused("no '", "large_files.yml'", "--bundle_path", error=MissingFileError):
        download("sam2_tiny", tmp_path)


def test_the_command_prints_the_path_or_one_line(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    monkeypatch.setattr("sys.argv", ["download", "sam2_tiny", "--bundle_path", str(bundle)])
    main()
    assert capsys.readouterr().out.splitlines()[-1] == str(bundle / "models" / "sam2.1_hiera_tiny.pt")
    monkeypatch.setattr("sys.argv", ["download", "sam3", "--bundle_path", str(bundle)])
    with pytest.raises(SystemExit, match=r"^error: no checkpoint 'sam3'; choose one of "):
        main()


def test_every_published_encoder_has_its_file_in_the_bundles():
    """All presets but the two that are not Meta's."""
    assert [*CHECKPOINTS] == [name for name in PRESETS if name not in ("tiny", "sam2_mini")]
    listed = yaml.safe_load((ROOT / "bundles" / "samora_segmentation" / "large_files.yml").read_text())["large_files"]
    assert {*CHECKPOINTS.values()} < {Path(entry["path"]).name for entry in listed}
