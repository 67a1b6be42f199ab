"""Download one of the checkpoints in a bundle's `large_files.yml`: `python -m samora_monai.download sam2_tiny`.

`python -m monai.bundle download_large_files` downloads all of them.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

import yaml
from monai.apps.utils import download_url

from samora_monai.errors import InputError, MissingFileError, one_line

CHECKPOINTS = {  # preset of an encoder -> Meta's file; of SAM 2 the later release
    "vit_b": "sam_vit_b_01ec64.pth",
    "vit_l": "sam_vit_l_0b3195.pth",
    "vit_h": "sam_vit_h_4b8939.pth",
    "sam2_tiny": "sam2.1_hiera_tiny.pt",
    "sam2_small": "sam2.1_hiera_small.pt",
    "sam2_base_plus": "sam2.1_hiera_base_plus.pt",
    "sam2_large": "sam2.1_hiera_large.pt",
}


def download(name: str, bundle: str | os.PathLike[str] = ".") -> Path:
    """Download a checkpoint to where the bundle expects it, compare it with its hash, and return its path.

    A file that is there already is only compared with its hash.

    Args:
        name: preset of an encoder, e.g. `"sam2_tiny"`, or the name of a listed file.
        bundle: folder of a bundle.

    Raises:
        MissingFileError: the folder is no bundle.
        InputError: the bundle lists no such file, the download failed, or the file has another hash.
    """
    listing = Path(bundle) / "large_files.yml"
    if not listing.is_file():
        raise MissingFileError(f"no '{listing}'; run this in the folder of a bundle, or name one with --bundle_path")
    entries = {Path(e["path"]).name: e for e in yaml.safe_load(listing.read_text(encoding="utf-8"))["large_files"]}
    entry = entries.get(CHECKPOINTS.get(name, name))
    if entry is None:
        raise InputError(f"no checkpoint {name!r}; choose one of {', '.join((*CHECKPOINTS, *entries))}")
    target = Path(bundle) / entry["path"]
    try:
        download_url(entry["url"], target, entry["hash_val"], entry["hash_type"], progress=sys.stderr.isatty())
    except (OSError, RuntimeError, ValueError) as e:  # the last two if the hash differs, by MONAI 1.5 and 1.6
        raise InputError(
            f"cannot get '{target}' from {entry['url']} ({one_line(e)}); delete the file if it is there, and try again"
        ) from e
    if not target.is_file():  # MONAI ignores a lack of permission
        raise InputError(f"cannot write '{target}'; choose a writable folder")
    return target


def main() -> None:
    """Download a checkpoint from the command line."""
    parser = argparse.ArgumentParser(description="Download one checkpoint of a bundle, and check its hash.")
    parser.add_argument("name", help=f"{', '.join(CHECKPOINTS)}, or the name of a file in large_files.yml")
    parser.add_argument("--bundle_path", default=".", help="folder of the bundle; default: this one")
    arguments = parser.parse_args()
    try:
        print(download(arguments.name, arguments.bundle_path))
    except InputError as error:
        raise SystemExit(f"error: {error}") from error


if __name__ == "__main__":
    main()
