"""Put one of the known checkpoints into the folder of a bundle: `python -m samora_monai.download sam2_tiny`.

`python -m monai.bundle download_large_files` gets only the file that a bundle needs by its defaults, SAM's `vit_b`.
`CHECKPOINTS` lists all of them: SAM and SAM 2 (Apache-2.0), MAE's teacher (CC-BY-NC 4.0, no commercial use), and the
stand-in for SAM 2 that is part of this package.
"""

from __future__ import annotations

import argparse
import filecmp
import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

from monai.apps.utils import download_url

from samora_monai.errors import InputError, MissingFileError, one_line
from samora_monai.replacing import replacing

SERVER = "https://dl.fbaipublicfiles.com"
SHIPPED = Path(__file__).parent / "weights"


@dataclass(frozen=True)
class Checkpoint:
    """A published file.

    Args:
        url: where it is published; its last part is the name of the file.
        size: in bytes; None if not known.
        sha256: None if not known: the file is then compared with nothing.
    """

    url: str
    size: int | None = None
    sha256: str | None = None

    @property
    def file(self) -> str:
        return self.url.rpartition("/")[2]


CHECKPOINTS = {  # names of SAM and SAM 2.1 are presets of an encoder
    "vit_b": Checkpoint(
        f"{SERVER}/segment_anything/sam_vit_b_01ec64.pth",
        375_042_383,
        "ec2df62732614e57411cdcf32a23ffdf28910380d03139ee0f4fcbe91eb8c912",
    ),
    "vit_l": Checkpoint(
        f"{SERVER}/segment_anything/sam_vit_l_0b3195.pth",
        1_249_524_607,
        "3adcc4315b642a4d2101128f611684e8734c41232a17c648ed1693702a49a622",
    ),
    "vit_h": Checkpoint(
        f"{SERVER}/segment_anything/sam_vit_h_4b8939.pth",
        2_564_550_879,
        "a7bf3b02f3ebf1267aba913ff637d9a2d5c33d3173bb679e46d9f338c26f262e",
    ),
    "sam2_tiny": Checkpoint(
        f"{SERVER}/segment_anything_2/092824/sam2.1_hiera_tiny.pt",
        156_008_466,
        "7402e0d864fa82708a20fbd15bc84245c2f26dff0eb43a4b5b93452deb34be69",
    ),
    "sam2_small": Checkpoint(
        f"{SERVER}/segment_anything_2/092824/sam2.1_hiera_small.pt",
        184_416_285,
        "6d1aa6f30de5c92224f8172114de081d104bbd23dd9dc5c58996f0cad5dc4d38",
    ),
    "sam2_base_plus": Checkpoint(
        f"{SERVER}/segment_anything_2/092824/sam2.1_hiera_base_plus.pt",
        323_606_802,
        "a2345aede8715ab1d5d31b4a509fb160c5a4af1970f199d9054ccfb746c004c5",
    ),
    "sam2_large": Checkpoint(
        f"{SERVER}/segment_anything_2/092824/sam2.1_hiera_large.pt",
        898_083_611,
        "2647878d5dfa5098f2f8649825738a9345572bae2d4350a2468587ece47dd318",
    ),
    "sam2.0_tiny": Checkpoint(
        f"{SERVER}/segment_anything_2/072824/sam2_hiera_tiny.pt",
        155_906_050,
        "65b50056e05bcb13694174f51bb6da89c894b57b75ccdf0ba6352c597c5d1125",
    ),
    "sam2.0_small": Checkpoint(
        f"{SERVER}/segment_anything_2/072824/sam2_hiera_small.pt",
        184_309_650,
        "95949964d4e548409021d47b22712d5f1abf2564cc0c3c765ba599a24ac7dce3",
    ),
    "sam2.0_base_plus": Checkpoint(
        f"{SERVER}/segment_anything_2/072824/sam2_hiera_base_plus.pt",
        323_493_298,
        "d0bb7f236400a49669ffdd1be617959a8b1d1065081789d7bbff88eded3a8071",
    ),
    "sam2.0_large": Checkpoint(
        f"{SERVER}/segment_anything_2/072824/sam2_hiera_large.pt",
        897_952_466,
        "7442e4e9b732a508f80e141e7c2913437a3610ee0c77381a66658c3a445df87b",
    ),
    # the teachers of the patch level; Meta publishes no hash, but the file is compared with the network when it is read
    "mae_vit_l": Checkpoint(f"{SERVER}/mae/pretrain/mae_pretrain_vit_large_full.pth"),
}
STAND_IN = "tiny"  # shipped as a file of its name
NOT_PUBLISHED = {
    "r50_2x_sk1": "the image teacher is published for TensorFlow only (gs://simclr-checkpoints/simclrv2/pretrained/"
    "r50_2x_sk1); make r50_2x_sk1.pth with the converter github.com/Separius/SimCLRv2-Pytorch",
    "sam2_mini": "it is to be trained from random weights (--sam_checkpoint none --trainable all); tiny is shipped",
}


def download(name: str, bundle: str | os.PathLike[str] = ".") -> Path:
    """Download a checkpoint to where the bundle expects it, compare it with its hash, and return its path.

    A file that is there already is only compared with its hash. The stand-in, `"tiny"`, is copied.

    Args:
        name: one of `CHECKPOINTS`, e.g. `"sam2_tiny"`, the name of its file, or `"tiny"`.
        bundle: folder of a bundle; the file is written to its `models`.

    Raises:
        MissingFileError: the folder is no bundle, or this installation lacks the stand-in.
        InputError: there is no such checkpoint, the download failed, or the file has another hash.
    """
    if not (Path(bundle) / "configs" / "metadata.json").is_file():
        raise MissingFileError(
            f"'{bundle}' is no bundle, it has no configs/metadata.json; run this in the folder of a bundle, "
            "or name one with --bundle_path"
        )
    if name in (STAND_IN, f"{STAND_IN}.pt"):
        return _copy_stand_in(Path(bundle) / "models" / f"{STAND_IN}.pt")
    checkpoint = CHECKPOINTS.get(name) or {entry.file: entry for entry in CHECKPOINTS.values()}.get(name)
    if checkpoint is None:
        reason = NOT_PUBLISHED.get(name.removesuffix(".pth"), f"choose one of {', '.join((*CHECKPOINTS, STAND_IN))}")
        raise InputError(f"no checkpoint {name!r}; {reason}")
    target = Path(bundle) / "models" / checkpoint.file
    try:
        download_url(checkpoint.url, target, checkpoint.sha256, "sha256", progress=sys.stderr.isatty())
    except (OSError, RuntimeError, ValueError) as e:  # the last two if the hash differs, by MONAI 1.5 and 1.6
        raise InputError(
            f"cannot get '{target}' from {checkpoint.url} ({one_line(e)}); "
            "delete the file if it is there, and try again"
        ) from e
    if not target.is_file():  # MONAI ignores a lack of permission
        raise InputError(f"cannot write '{target}'; choose a writable folder")
    return target


def _copy_stand_in(target: Path) -> Path:
    source = SHIPPED / target.name
    if not source.is_file():
        raise MissingFileError(f"'{source}' is missing; install samora_monai again")
    if target.is_file() and not filecmp.cmp(source, target, shallow=False):
        raise InputError(f"'{target}' is not the file that this version ships; delete it, and try again")
    if not target.is_file():
        try:
            with replacing(target) as unfinished:
                shutil.copyfile(source, unfinished)
        except OSError as e:
            raise InputError(f"cannot write '{target}' ({one_line(e)}); choose a writable folder") from e
    return target


def size_text(checkpoint: Checkpoint) -> str:
    """Return the size in words, e.g. `"156 MB"`."""
    return f"{checkpoint.size / 1e6:.0f} MB" if checkpoint.size else "size not known"


def main() -> None:
    """Download a checkpoint from the command line."""
    lines = [f"  {name:<18}{entry.file}, {size_text(entry)}" for name, entry in CHECKPOINTS.items()]
    parser = argparse.ArgumentParser(
        description="Download one checkpoint for a bundle, and check its hash.",
        epilog="\n".join(["names:", *lines, f"  {STAND_IN:<18}{STAND_IN}.pt, part of this package, is copied"]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("name", help="one of the names below, or the name of the file")
    parser.add_argument("--bundle_path", default=".", help="folder of the bundle; default: this one")
    arguments = parser.parse_args()
    try:
        print(download(arguments.name, arguments.bundle_path))
    except InputError as error:
        raise SystemExit(f"error: {error}") from error


if __name__ == "__main__":
    main()
