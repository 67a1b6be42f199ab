"""The commands and functions of `monai.bundle` on a bundle with a model: each one that a README names.

`test_configs` has `verify_metadata` and `verify_net_in_out` of all four bundles as they are, `test_export` the exports.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import shutil
import sqlite3
import sys
from collections.abc import Callable
from pathlib import Path

import monai
import monai.bundle
import pytest
import torch
import yaml
from monai.bundle import ConfigWorkflow
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from samora_monai.workflow.overrides import require_mlflow
from tests.bundles.command_line import BUNDLE, CONFIGS, EXPERT_BUNDLES, FAST, FAST_EXPERT, Bundle, CommandLine
from tests.bundles.conftest import Trained
from tests.label.models import write_model
from tests.tiny import refused

SCANS = ("phantom_003", "phantom_004")
MONAI_DELETES = tuple(map(int, monai.__version__.split(".")[:2])) >= (1, 6)  # a download with a wrong hash


def labels(folder: Path) -> dict[str, bytes]:
    """The label files of a folder, unpacked."""
    return {file.name: gzip.decompress(file.read_bytes()) for file in folder.glob("*_seg.nii.gz")}


@pytest.fixture(scope="module")
def samora(tmp_path_factory: pytest.TempPathFactory, command_line: CommandLine) -> Bundle:
    """A bundle with a SAMora of noise: its settings are far from the config's defaults. Not to be changed."""
    bundle = Bundle(tmp_path_factory.mktemp("samora") / "samora_segmentation", command_line)
    write_model(bundle.root)
    return bundle


@pytest.fixture(scope="module")
def expected(samora: Bundle, phantoms: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The labels of `run inference`."""
    folder = tmp_path_factory.mktemp("expected")
    finished = samora("inference", dataset_dir=phantoms / "imagesVal", output_dir=folder)
    assert finished.code == 0, finished
    found = labels(folder)
    assert sorted(found) == [f"{scan}_seg.nii.gz" for scan in SCANS]
    return found


# ---- run


def test_run_without_a_verb_infers(samora: Bundle, phantoms: Path, expected: dict[str, bytes], tmp_path: Path):
    """`run` alone is the id `run`."""
    words = samora.arguments("inference", dataset_dir=phantoms / "imagesVal", output_dir=tmp_path)
    assert words[:2] == ["run", "inference"]
    finished = samora.command_line("run", *words[2:], cwd=tmp_path)
    assert finished.code == 0, finished
    assert labels(tmp_path) == expected


def test_args_file_holds_a_whole_command(trained: Trained, bundle: Bundle, tmp_path: Path):
    """Configs, verb and settings in a file give the weights that the same words on the command line gave."""
    given = {"config_file": bundle.configs(*CONFIGS["training"]), "run_id": "training"}
    given |= {"bundle_root": str(bundle.root), "dataset_dir": str(trained.data)} | FAST
    (tmp_path / "args.yaml").write_text(yaml.safe_dump(given | {"learning_rate": 1e-5, "epochs": 1}))
    words = ("--args_file", "args.yaml", "--epochs", FAST["epochs"], "--learning_rate", FAST["learning_rate"])
    finished = bundle.command_line("run", *words, cwd=tmp_path)  # the command line is stronger than the file
    assert finished.code == 0, finished
    ours, theirs = (torch.load(b.model, weights_only=True) for b in (bundle, trained.bundle))
    assert list(ours) == list(theirs)
    assert all(torch.equal(value, theirs[key]) for key, value in ours.items())


# ---- Python


@pytest.mark.filterwarnings("ignore:parsing config_file")
@pytest.mark.parametrize("place", ["nowhere", "in the bundle", "in another bundle"])
def test_load_gives_the_network_with_its_weights(
    samora: Bundle, command_line: CommandLine, tmp_path: Path, place: str, monkeypatch: pytest.MonkeyPatch, in_process
):
    """Settings and weights are those of the named bundle, whichever folder it is loaded from, and nothing is written.

    `in_process` undoes what the start of a run changes in this process; without its file, logging stays as it is.
    """
    bundle = Bundle(tmp_path / "bundles" / "samora_segmentation", command_line)
    (bundle.root / "configs" / "logging.conf").unlink()
    for file in samora.model.parent.iterdir():
        shutil.copy(file, bundle.model.parent)
    folder = {"nowhere": tmp_path / "empty", "in the bundle": bundle.root, "in another bundle": tmp_path / "other"}[
        place
    ]
    folder.mkdir(exist_ok=True)
    if place == "in another bundle":
        write_model(folder, seed=1, decoder="hierarchical")
    before = sorted(folder.rglob("*"))
    monkeypatch.chdir(folder)

    bundles = Path("../bundles") if place == "nowhere" else bundle.root.parent
    net = monai.bundle.load(bundle.root.name, bundle_dir=bundles, workflow_type="inference", device="cpu")
    state = torch.load(samora.model, weights_only=True)
    assert isinstance(net, torch.nn.Module)
    assert list(net.state_dict()) == list(state)
    assert all(torch.equal(value, state[key]) for key, value in net.state_dict().items())
    assert sorted(folder.rglob("*")) == before


def test_workflow_runs_from_python(
    samora: Bundle,
    phantoms: Path,
    expected: dict[str, bytes],
    tmp_path: Path,
    in_process: Callable[..., ConfigWorkflow],
):
    """`create_workflow` initialises; a property that is set later takes effect after another `initialize`."""
    scans = [phantoms / "imagesVal" / f"{scan}.nii.gz" for scan in SCANS]
    workflow = in_process(samora, "inference", dataset_dir=str(scans[0]), output_dir=str(tmp_path), slices_per_pass=3)
    workflow.run()
    assert list(labels(tmp_path)) == [f"{SCANS[0]}_seg.nii.gz"]
    workflow.dataset_dir = str(scans[1])
    workflow.initialize()
    workflow.run()
    workflow.finalize()
    assert labels(tmp_path) == expected


# ---- verify, download, zip


def test_net_in_out_is_that_of_the_trained_model(samora: Bundle, tmp_path: Path):
    """A model of six classes on another size than its own, `--n` times 16; the metadata's nine classes are refused."""
    shape = ("--_meta_::network_data_format::inputs::image::spatial_shape", "['16*n','24*n']", "--n", 2)
    meta, config = samora.configs("metadata.json", "inference.json")
    words = (
        "verify_net_in_out",
        "network_def",
        "--meta_file",
        meta,
        "--config_file",
        config,
        "--device",
        "cpu",
        *shape,
    )
    words = (*words, "--bundle_root", samora.root)
    classes = "--_meta_::network_data_format::outputs::pred::num_channels"
    finished = samora.command_line(*words, classes, 6, cwd=tmp_path)
    assert finished.code == 0, finished
    finished = samora.command_line(*words, cwd=tmp_path)
    assert finished.code == 1 and "output channel number `6` doesn't match: `9`" in finished.err


@pytest.mark.parametrize("source", [BUNDLE, *EXPERT_BUNDLES.values()], ids=lambda path: path.name)
def test_metadata_that_lacks_something_is_refused(source: Path, command_line: CommandLine, tmp_path: Path):
    metadata = json.loads((source / "configs" / "metadata.json").read_text())
    del metadata["network_data_format"]["outputs"]["pred"]["num_channels"]
    (tmp_path / "metadata.json").write_text(json.dumps(metadata))
    schema = Path(__file__).with_name("meta_schema_20240725.json")
    finished = command_line("verify_metadata", "--meta_file", "metadata.json", "--filepath", schema, cwd=tmp_path)
    assert finished.code == 1 and "'num_channels' is a required property" in finished.err


def test_download_is_complete_or_absent(bundle: Bundle, tmp_path: Path):
    """From `file://`; a file with another hash than it should have fails the command and, by MONAI 1.6, is not kept."""
    content = b"weights" * 1000
    (tmp_path / "weights").write_bytes(content)
    entry = {"path": "models/sam.pth", "url": (tmp_path / "weights").as_uri(), "hash_type": "sha256"}
    for value, code in ((hashlib.sha256(b"others").hexdigest(), 1), (hashlib.sha256(content).hexdigest(), 0)):
        (bundle.root / "large_files.yml").write_text(yaml.safe_dump({"large_files": [entry | {"hash_val": value}]}))
        finished = bundle.command_line("download_large_files", "--bundle_path", bundle.root, cwd=tmp_path)
        assert finished.code == code, finished
        kept = {file.name: file.read_bytes() for file in (bundle.root / "models").iterdir()}
        if code == 0 or MONAI_DELETES:
            assert kept == ({} if code else {"sam.pth": content})
        assert ("check of downloaded file failed" in finished.err) == bool(code)


def test_zipped_bundle_runs_elsewhere(samora: Bundle, phantoms: Path, expected: dict[str, bytes], tmp_path: Path):
    """From its own folder, with nothing but the paths of the README."""
    archive = shutil.make_archive(str(tmp_path / "bundle"), "zip", samora.root.parent, samora.root.name)
    shutil.unpack_archive(archive, tmp_path / "elsewhere")
    root = tmp_path / "elsewhere" / samora.root.name
    words = ("run", "inference", "--config_file", "configs/inference.json", "--dataset_dir", phantoms / "imagesVal")
    finished = samora.command_line(*words, cwd=root)
    assert finished.code == 0, finished
    assert labels(root / "eval") == expected


# ---- tracking


def metrics(store: Path) -> dict[str, list[float]]:
    """What a local MLflow store holds, by name and in the order of steps."""
    found: dict[str, list[float]] = {}
    with sqlite3.connect(store) as connection:
        assert connection.execute("SELECT status FROM runs").fetchall() == [("FINISHED",)]
        for name, value in connection.execute("SELECT key, value FROM metrics ORDER BY step"):
            found.setdefault(name, []).append(value)
    return found


@pytest.mark.parametrize("name", ["segmentation", pytest.param("pixel", marks=pytest.mark.slow)])
def test_training_is_tracked_by_mlflow(
    bundle: Bundle, expert_bundle: Callable[..., Bundle], sam: Path, phantoms: Path, name: str
):
    """In one run, losses as in TensorBoard."""
    pytest.importorskip("mlflow", reason="an extra of 0.5 GB: pip install 'samora_monai[track]'")
    pytest.importorskip("sqlalchemy", reason="the store of '--tracking mlflow' is a sqlite file")
    if name == "pixel":
        bundle = expert_bundle(name)
    settings = FAST if name == "segmentation" else FAST_EXPERT[name] | {"sam_checkpoint": sam}
    finished = bundle("training", dataset_dir=phantoms, tracking="mlflow", **settings)
    assert finished.code == 0, finished
    events = EventAccumulator(str(bundle.root / "eval")).Reload()
    tracked = metrics(bundle.root / "eval" / "mlruns.db")
    for scalar in ("train_loss", "val_mean_dice" if name == "segmentation" else "val_loss"):
        assert tracked[scalar] == pytest.approx([event.value for event in events.Scalars(scalar)], rel=1e-5)
    assert (
        len(tracked["train_loss"]) > len(events.Scalars("val_mean_dice" if name == "segmentation" else "val_loss")) == 2
    )
    kept = list((bundle.root / "eval" / "mlruns").rglob("config_*.json"))
    assert len(kept) == 1 and json.loads(kept[0].read_text())["encoder"] == "tiny"


def test_tracking_without_mlflow_says_what_to_install(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "mlflow", None)
    with refused("--tracking mlflow", "pip install 'samora_monai[track]'"):
        require_mlflow()
