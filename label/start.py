"""Start MONAI Label with a trained `samora_segmentation`: `make label`, in the environment that it builds.

The app folder holds the server's own copy of the bundle, where training from a client saves its model. The next start
serves that model again; a new model from outside replaces it only if the server has not trained its copy since.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
from pathlib import Path

from samora_monai.checkpoints import ModelSettings, load_model, read_model_settings
from samora_monai.checkpoints.files import file_sha256
from samora_monai.data import find_cases
from samora_monai.errors import InputError, MissingFileError
from samora_monai.networks import build_segmenter
from samora_monai.replacing import replacing

HERE = Path(__file__).resolve().parent
BUNDLE = HERE.parent / "bundles" / "samora_segmentation"
NO_MODEL = "none"  # in place of a folder
SAMPLE_APP = Path(sys.prefix, "monailabel", "sample-apps", "monaibundle")
MAIN = 'from samora_app import App  # label/modules/samora_app.py\n\n__all__ = ["App"]\n'
LOOPBACK = ("127.0.0.1", "localhost", "::1")


def check_model(model: Path) -> ModelSettings:
    """Load a model as inference does, and return its settings.

    Raises:
        MissingFileError, InputError: it does not exist, is damaged, or does not fit the settings beside it.
    """
    if not model.is_file():
        raise MissingFileError(
            f"no trained model '{model}'; make one with 'make demo', or give a trained bundle's folder: MODEL=FOLDER"
        )
    settings = read_model_settings(model)
    load_model(build_segmenter(settings.network), model)
    return settings


def place_app(app: Path) -> None:
    """Create the app: MONAI Label's sample app for bundles, with our `main.py`."""
    shutil.copytree(SAMPLE_APP, app, dirs_exist_ok=True, ignore=shutil.ignore_patterns("model", "__pycache__"))
    with replacing(app / "main.py") as unfinished:
        unfinished.write_text(MAIN)


def place(bundle: Path, app: Path) -> Path:
    """Create the app if needed, and copy the trained bundle into it.

    Args:
        bundle: folder of a trained bundle with `models/model.pt` and `models/model.json`.
        app: folder of the app.

    Returns:
        The folder of the bundle in the app.

    Raises:
        MissingFileError, InputError: as `check_model`, or the app's model has been trained since it was copied and
            `bundle` has another one.
    """
    placed = app / "model" / BUNDLE.name
    source, served, record = bundle / "models" / "model.pt", placed / "models" / "model.pt", app / "placed.json"
    check_model(source)
    place_app(app)
    shutil.copytree(BUNDLE, placed, dirs_exist_ok=True, ignore=shutil.ignore_patterns("models", "eval"))

    if not (served.is_file() and served.samefile(source)):
        given = file_sha256(source)
        before = json.loads(record.read_text())["sha256"] if record.is_file() else None
        if served.is_file() and file_sha256(served) not in (before, given) and before != given:
            raise InputError(
                f"the server's model '{served}' was trained since it was copied there, and '{source}' differs from it; "
                f"continue with the server's: MODEL={placed}, or serve the other one from a new folder: APP=FOLDER"
            )
        if not served.is_file() or before != given:
            for suffix in (".json", ".pt"):  # settings first, so that no model is ever without them
                with replacing(served.with_suffix(suffix)) as unfinished:
                    shutil.copyfile(source.with_suffix(suffix), unfinished)
            with replacing(record) as unfinished:
                unfinished.write_text(json.dumps({"model": str(source), "sha256": given}))
    write_metadata(placed, check_model(served))
    return placed


def write_metadata(bundle: Path, settings: ModelSettings) -> None:
    """Write classes, modality and image size of a model to the metadata, where MONAI Label reads them."""
    path = bundle / "configs" / "metadata.json"
    metadata = json.loads(path.read_text())
    data, size = metadata["network_data_format"], settings.network.image_size
    image, pred = data["inputs"]["image"], data["outputs"]["pred"]
    image["modality"] = settings.scaling.modality
    image["spatial_shape"] = pred["spatial_shape"] = [size, size, "*"]  # the server sends volumes
    pred["num_channels"] = len(settings.class_names)
    pred["channel_def"] = {str(value): name for value, name in enumerate(settings.class_names)}
    with replacing(path) as unfinished:
        unfinished.write_text(json.dumps(metadata, indent=4) + "\n")


def demo_studies(scans: Path, studies: Path) -> Path:
    """Copy the demo's phantoms to a folder of studies for MONAI Label: training scans with labels, others without.

    An existing folder is not changed: it holds the labels of clients.

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
    """Check the folder of scans or the address of a DICOMweb server, and return it.

    Raises:
        MissingFileError: there is no such folder; MONAI Label would create an empty one.
    """
    if not given.startswith(("http://", "https://")) and not Path(given).is_dir():
        raise MissingFileError(
            f"no folder of scans '{given}'; give one: STUDIES=FOLDER, or a DICOMweb server's address"
        )
    return given


def check_dicom_tools(app: Path) -> None:
    """Check that labels can be stored as DICOM SEG; MONAI Label would otherwise download the tool from GitHub.

    Raises:
        MissingFileError: it is not installed.
    """
    if shutil.which("itkimage2segimage") is None and not list((app / "bin").glob("itkimage2segimage*")):
        raise MissingFileError(
            "no 'itkimage2segimage', which makes a DICOM SEG of each label for a DICOMweb server; install it: "
            f"'{sys.executable} -m pip install dcmqi==1.5.7', or delete .venv-label and run 'make label'"
        )


def check_host(host: str) -> None:
    """Check that a server that others reach asks who they are.

    Raises:
        InputError: it does not.
    """
    asks = os.environ.get("MONAI_LABEL_AUTH_ENABLE", "").casefold() in ("1", "true", "yes", "on")
    if host not in LOOPBACK and not asks:
        raise InputError(
            f"on --host {host}, everyone in the network could read the scans and change labels; set "
            "MONAI_LABEL_AUTH_ENABLE=true and a Keycloak realm, or keep 127.0.0.1 and connect with 'ssh -L'"
        )


def remove_leftovers(app: Path, studies: str) -> Path:
    """Remove the unfinished files of killed servers, and return the folder for those of this one."""
    if "://" not in studies:
        for unfinished in (*Path(studies).glob(".*.unfinished"), *Path(studies, "labels").glob("*/.*.unfinished")):
            unfinished.unlink()
    for folder in (app / "sessions").glob("*"):  # with a session without notes, MONAI Label does not start
        try:
            json.loads((folder / "meta.info").read_text())
        except (OSError, ValueError):
            shutil.rmtree(folder, ignore_errors=True)
    for folder in (app / "tmp").glob("*"):
        if os.name == "posix" and not _runs(int(folder.name)):
            shutil.rmtree(folder, ignore_errors=True)
    own = app / "tmp" / str(os.getpid())  # the server's, which replaces this process
    own.mkdir(mode=0o700, parents=True, exist_ok=True)
    return own


def _runs(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def environment(app: Path, settings: ModelSettings | None) -> dict[str, str]:
    """The settings of MONAI Label that are not options; a value that the user has set stays."""
    modality = settings.scaling.modality if settings else "CT"  # MONAI Label's default
    return {
        "MONAI_LABEL_DATASTORE_FILE_EXT": json.dumps(["*.nii.gz", "*.nii", "*.nrrd"]),
        "MONAI_LABEL_DICOMWEB_CACHE_EXPIRY": "60",
        "MONAI_LABEL_DICOMWEB_SEARCH_FILTER": json.dumps({"Modality": modality}),
        "MONAI_LABEL_SESSION_PATH": str(app / "sessions"),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", type=Path, required=True, help="folder of a trained bundle; none: clicks only")
    parser.add_argument("--studies", required=True, help="folder of scans; empty: phantoms of the demo")
    parser.add_argument("--app", type=Path, required=True, help="working folder of the server")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on")
    parser.add_argument("--allowed_hosts", default="", help="other names of this machine in the browser, with commas")
    parser.add_argument("--max_upload_gb", type=float, default=4.0, help="greatest scan or label, unpacked")
    parser.add_argument("--base", default="", help="file of the base for clicks (default: the model's, if at hand)")
    parser.add_argument("--labels", default="", help="names of the objects, with --model none: liver,spleen")
    args = parser.parse_args()
    try:
        phantoms = HERE.parent / "demo" / "phantoms"
        studies = find_studies(args.studies) if args.studies else str(demo_studies(phantoms, HERE / "studies"))
        os.environ["PATH"] = os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", "")))
        check_host(args.host)
        if "://" in studies:
            check_dicom_tools(args.app)
        else:
            studies = str(Path(studies).resolve())
        app = args.app.resolve()
        placed = None
        if str(args.model) == NO_MODEL:
            place_app(app)
        else:
            placed = place(args.model, app)
    except InputError as error:
        sys.exit(f"error: {error}")
    settings = read_model_settings(placed / "models" / "model.pt") if placed else None
    served = f"{BUNDLE.name} ({', '.join(settings.class_names[1:])})" if settings else "no model, clicks only"
    print(f"{served} on the scans in {studies}\nhttp://{args.host}:{args.port}", flush=True)
    paths = (HERE / "modules", *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep)))
    os.environ["PYTHONPATH"] = os.pathsep.join(str(Path(path).resolve()) for path in paths)
    os.environ["TMPDIR"] = str(remove_leftovers(app, studies))
    os.environ["SAMORA_LABEL_HOSTS"] = f"{args.host},{args.allowed_hosts}"
    os.environ["SAMORA_LABEL_MAX_UPLOAD_GB"] = str(args.max_upload_gb)
    for name, value in environment(app, settings).items():
        os.environ.setdefault(name, value)
    (app / "empty").mkdir(exist_ok=True)
    os.chdir(app / "empty")  # MONAI Label opens an image's id as a file where there is one of that name
    # zoo_source and sam2: set so that MONAI Label downloads nothing
    options = ("--app", str(app), "--studies", studies, "--host", args.host, "--port", str(args.port))
    given = {"models": BUNDLE.name if placed else "", "zoo_source": "ngc", "sam2": "false"}
    given |= {"base": args.base and str(Path(args.base).resolve()), "labels": args.labels}
    conf = [word for name, value in given.items() if value for word in ("--conf", name, value)]
    command = [sys.executable, "-m", "monailabel.main", "start_server", *options, *conf]
    os.execv(sys.executable, [*command, "--uvicorn_app", "samora_label:app"])


if __name__ == "__main__":
    main()
