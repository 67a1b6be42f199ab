"""Starts MONAI Label with a trained `samora_segmentation`: `make label`, in the environment that it builds.

The app folder holds the server's own copy of the bundle, where a training from a client leaves its model. The next
start serves that one again; a model that was trained anew elsewhere takes its place only if nothing is lost by it.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import sys
from pathlib import Path

from monai.bundle import ConfigParser

from samora_monai.checkpoints import load_model
from samora_monai.checkpoints.settings import read_settings
from samora_monai.data import find_cases
from samora_monai.errors import InputError, MissingFileError
from samora_monai.replacing import replacing

HERE = Path(__file__).resolve().parent
BUNDLE = HERE.parent / "bundles" / "samora_segmentation"
SAMPLE_APP = Path(sys.prefix, "monailabel", "sample-apps", "monaibundle")


def check_model(model: Path) -> dict:
    """Reads a model as inference does; returns its settings.

    Raises:
        MissingFileError, InputError: there is none; it is damaged; it is not of the settings beside it.
    """
    if not model.is_file():
        raise MissingFileError(
            f"no trained model '{model}'; make one with 'make demo', or give a trained bundle's folder: MODEL=FOLDER"
        )
    settings = read_settings(model)
    config = ConfigParser(ConfigParser.load_config_file(str(BUNDLE / "configs" / "inference.json")))
    config["checkpoint"] = str(model)
    load_model(config.get_parsed_content("network_def"), model)
    return settings


def place(bundle: Path, app: Path) -> Path:
    """Makes the app, if there is none, and puts the trained bundle into it.

    Args:
        bundle: folder of a trained bundle; its `models/model.pt` and `model.json` are taken.
        app: the app's folder.

    Returns:
        the bundle in the app.

    Raises:
        MissingFileError, InputError: as `check_model`; or the app's own model has been trained since it was put there,
            and `bundle` has another one.
    """
    placed = app / "model" / BUNDLE.name
    source, served, record = bundle / "models" / "model.pt", placed / "models" / "model.pt", app / "placed.json"
    check_model(source)
    shutil.copytree(SAMPLE_APP, app, dirs_exist_ok=True, ignore=shutil.ignore_patterns("model", "__pycache__"))
    shutil.copytree(BUNDLE, placed, dirs_exist_ok=True, ignore=shutil.ignore_patterns("models", "eval"))

    if not (served.is_file() and served.samefile(source)):
        given = _sha256(source)
        before = json.loads(record.read_text())["sha256"] if record.is_file() else None
        if served.is_file() and _sha256(served) not in (before, given) and before != given:
            raise InputError(
                f"the server's model '{served}' was trained since it was put there, and '{source}' is another one; "
                f"go on with the server's: MODEL={placed}, or serve the other one from a new folder: APP=FOLDER"
            )
        if not served.is_file() or before != given:
            for suffix in (".json", ".pt"):  # the settings first, so that there is never a model without them
                with replacing(served.with_suffix(suffix)) as unfinished:
                    shutil.copyfile(source.with_suffix(suffix), unfinished)
            with replacing(record) as unfinished:
                unfinished.write_text(json.dumps({"model": str(source), "sha256": given}))
    write_metadata(placed, check_model(served))
    return placed


def write_metadata(bundle: Path, settings: dict) -> None:
    """Makes the metadata, which MONAI Label takes the labels from, say what the model with `settings` does."""
    path = bundle / "configs" / "metadata.json"
    metadata = json.loads(path.read_text())
    data, size = metadata["network_data_format"], settings["image_size"]
    image, pred = data["inputs"]["image"], data["outputs"]["pred"]
    image["modality"] = settings["modality"]
    image["spatial_shape"] = pred["spatial_shape"] = [size, size, "*"]  # the server hands over volumes
    pred["num_channels"] = len(settings["class_names"])
    pred["channel_def"] = {str(value): name for value, name in enumerate(settings["class_names"])}
    with replacing(path) as unfinished:
        unfinished.write_text(json.dumps(metadata, indent=4) + "\n")


def demo_studies(scans: Path, studies: Path) -> Path:
    """The demo's phantoms as MONAI Label wants them, in one folder: those for training labelled, the others not.

    Left alone once it is there: it holds what clients have done.

    Raises:
        MissingFileError: there are no phantoms.
    """
    if studies.is_dir():
        return studies
    if not scans.is_dir():
        raise MissingFileError(f"no scans in '{scans}'; make them with 'make demo', or give your own: STUDIES=FOLDER")
    cases = find_cases(scans)
    unfinished = studies.with_name(f".{studies.name}")
    (unfinished / "labels" / "final").mkdir(parents=True, exist_ok=True)
    for scan in (*cases.training, *cases.validation):
        shutil.copy(scan["image"], unfinished)
    for scan in cases.training:
        shutil.copy(scan["label"], unfinished / "labels" / "final")
    unfinished.rename(studies)
    return studies


def find_studies(given: str) -> str:
    """A folder, or the address of a DICOMweb server, as the user gave it.

    Raises:
        MissingFileError: there is no such folder; MONAI Label would make an empty one.
    """
    if not given.startswith(("http://", "https://")) and not Path(given).is_dir():
        raise MissingFileError(
            f"no folder of scans '{given}'; give one: STUDIES=FOLDER, or a DICOMweb server's address"
        )
    return given


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", type=Path, required=True, help="folder of a trained bundle")
    parser.add_argument("--studies", required=True, help="folder of scans; empty: the demo's phantoms")
    parser.add_argument("--app", type=Path, required=True, help="folder that the server works in")
    parser.add_argument("--port", type=int, required=True)
    args = parser.parse_args()
    try:
        phantoms = HERE.parent / "demo" / "phantoms"
        studies = find_studies(args.studies) if args.studies else str(demo_studies(phantoms, HERE / "studies"))
        placed = place(args.model, args.app)
    except InputError as error:
        sys.exit(f"error: {error}")
    names = ", ".join(read_settings(placed / "models" / "model.pt")["class_names"][1:])
    print(f"{placed.name} ({names}) on the scans in {studies}\nhttp://127.0.0.1:{args.port}", flush=True)
    modules = (str(HERE / "modules"), os.environ.get("PYTHONPATH"))
    os.environ["PYTHONPATH"] = os.pathsep.join(path for path in modules if path)
    # zoo_source, sam2: nothing is asked of the internet
    options = ("--app", str(args.app), "--studies", studies, "--host", "127.0.0.1", "--port", str(args.port))
    conf = ("--conf", "models", placed.name, "--conf", "zoo_source", "ngc", "--conf", "sam2", "false")
    command = [sys.executable, "-m", "monailabel.main", "start_server", *options, *conf]
    os.execv(sys.executable, [*command, "--uvicorn_app", "samora_label:app"])


if __name__ == "__main__":
    main()
