"""The command line: `samora train | plan | predict | evaluate | select`.

    samora train DIR --output RUN      from scans, a few of them with labels, to a model, its report and all labels
    samora predict RUN SCANS OUT       segment other scans with it

`python -m samora_monai.pipeline` is the same; without one of the five words it is `train`.
"""

from __future__ import annotations

import argparse
import contextlib
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from samora_monai.bundles import bundle_path
from samora_monai.data.datalist import Cases
from samora_monai.data.label_files import check_output_dir
from samora_monai.data.scans import absolute
from samora_monai.errors import InputError, one_line
from samora_monai.networks.config import DECODERS, PRESETS
from samora_monai.pipeline import select
from samora_monai.pipeline.at_hand import cores, model_file
from samora_monai.pipeline.bundle_process import bundle_command, quoted, run_visibly, shown
from samora_monai.pipeline.folders import PLAN, PLAN_RECORD, find_folder
from samora_monai.pipeline.outcome import outcome
from samora_monai.pipeline.plan import Plan
from samora_monai.pipeline.planning import make_plan, read_plan
from samora_monai.pipeline.record import Record, settings_hash
from samora_monai.pipeline.run import alone_in, run_stages
from samora_monai.pipeline.stages import SEGMENTATION, stages_of

_OWN = ("data", "bundles", "samora", "samed", "results", "predictions", "logs", "records")  # folders in RUN
MACHINE = ("device", "jobs")  # settings that may change from one start to the next
_DEFAULTS: dict[str, Any] = {
    "hours": None,
    "modality": None,
    "encoder": None,
    "checkpoint": None,
    "decoder": "sam",
    "steps": None,
}
_DEFAULTS |= {"device": None, "jobs": None, "seed": 0, "unlabeled": False}  # of `make_plan`
_MODEL = "RUN of `samora train`, a bundle, or a model.pt"
_DEVICE = "default: a GPU if there is one"
_TTA = "average over three views of each slice, which takes three times as long"


def plan(folder: Path, run: Path, **options: Any) -> Plan:
    """Make the plan of a folder of scans, `RUN/plan.yaml`; an earlier one is kept as `plan.yaml.old`.

    Args:
        folder: the scans.
        run: folder of the pipeline.
        options: of `make_plan`.

    Raises:
        InputError: see `make_plan`; the folder cannot be written, or another pipeline works there.
    """
    folder, run = absolute(folder), _writable(run, folder)
    with alone_in(run):
        print(f"looking at the scans in {folder}", flush=True)
        cases = find_folder(folder, run)
        origin, file = _origin(run, folder, cases), run / PLAN
        origin.start()  # until it is finished, the earlier plan does not fit the list of scans
        if file.is_file():
            shutil.copyfile(file, run / "plan.yaml.old")
        made = make_plan(folder, cases, run, **_DEFAULTS | options)
        origin.finish()
    print(f"plan: {file}", flush=True)
    return made


def train(folder: Path, run: Path, compare: bool = False, dry_run: bool = False, **options: Any) -> None:
    """Train on a folder of scans, evaluate, and segment the scans without labels; go on where an earlier start ended.

    Args:
        folder: the scans.
        run: folder of the pipeline; its plan is used, if it has one.
        compare: train and evaluate SAMed too.
        dry_run: only make the plan, and print it with the commands.
        options: of `make_plan`; with a plan, `device` and `jobs` may differ from it, others not.

    Raises:
        InputError: see `plan` and `run_stages`.
    """
    folder, run = absolute(folder), _writable(run, folder)
    made = _planned(folder, run, {**options, "compare": compare})
    stages = stages_of(made, run, compare)
    if dry_run:
        print((run / PLAN).read_text(encoding="utf-8"))
        for stage in stages:
            copies = ""
            if stage.last:
                source, target = quoted(f"{bundle_path(stage.bundle)}/."), quoted(str(stage.folder))
                copies = f"mkdir -p {target}; cp -r {source} {target}\n"
            print(f"# {stage.name}\n{copies}{shown(stage.command())}")
        return
    run_stages(stages, run, made.run["jobs"], made.run["threads"])
    print(outcome(stages, run), flush=True)


def predict(model: Path, scans: Path, output: Path, device: str | None = None, tta: bool = False) -> int:
    """Segment scans with a trained model; labels that it has made of unchanged scans are kept.

    Files and folders that are named as label maps, such as labelsTr/, are left out, with one line about them.

    Args:
        model: folder of a pipeline or of a trained bundle, or a `model.pt` with its `model.json`.
        scans: a file, a folder of scans, or a DICOM folder.
        output: folder of the labels.
        tta: average over views of each slice, which takes three times as long.

    Returns:
        the exit code of the bundle.
    """
    settings = {"dataset_dir": absolute(scans), "output_dir": absolute(output), "resume": True}
    settings["dataset::data::scans"] = "$samora_monai.data.find_images(@dataset_dir, @output_dir)"
    return _use(model, "inference", ["inference.json"], settings, device, tta)


def evaluate(model: Path, folder: Path, output: Path, device: str | None = None, tta: bool = False) -> int:
    """Score a trained model on the validation scans of a folder, and write tables and the report to `output`.

    Args:
        model, tta: as for `predict`.
        folder: scans with labels, as for the training of a bundle.

    Returns:
        the exit code of the bundle.
    """
    settings = {"dataset_dir": absolute(folder), "output_dir": absolute(output)}
    return _use(model, "evaluating", ["train.yaml", "evaluate.yaml"], settings, device, tta)


def _use(
    model: Path, workflow: str, configs: list[str], settings: dict[str, Any], device: str | None, tta: bool
) -> int:
    file = model_file(model)
    bundle = file.parents[1]
    if not all((bundle / "configs" / name).is_file() for name in configs):  # a model.pt alone
        bundle = bundle_path(SEGMENTATION)
    settings |= {"checkpoint": file, **({"device": device} if device else {}), **({"tta": True} if tta else {})}
    command = bundle_command(bundle, workflow, configs, settings)
    print(f"$ {shown(command)}", flush=True)
    own = [bundle_path(SEGMENTATION) / "configs" / name for name in configs]
    trusted = all((bundle / "configs" / file.name).read_bytes() == file.read_bytes() for file in own)
    return run_visibly(command, trusted)


def _planned(folder: Path, run: Path, options: dict[str, Any]) -> Plan:
    """The plan of the folder, made if there is none, with the settings of the machine as given now."""
    file = run / PLAN
    if not file.is_file() or not (run / "data" / "dataset.json").is_file():
        return plan(folder, run, **options)
    if not _origin(run, folder, find_folder(folder, run, need_labels=False)).is_finished(()):
        raise InputError(
            f"'{file}' was made for other scans than '{folder}' has now, or was not finished; give another --output, "
            f"or make it again: samora plan {quoted(str(folder))} --output {quoted(str(run))}"
        )
    made = read_plan(file)
    if ignored := _ignored(made, options):
        raise InputError(f"{ignored} has no effect, '{file}' states another; edit it, or give another --output")
    print(f"plan: {file}, as it is", flush=True)
    machine = {name: options[name] for name in MACHINE if options.get(name) is not None}
    if "jobs" in machine:
        machine["threads"] = max(1, cores() // machine["jobs"])
    if str(machine.get("device", "")).startswith("cpu"):
        machine["num_workers"] = 0
    return replace(made, run={**made.run, **machine})


def _ignored(made: Plan, options: dict[str, Any]) -> str | None:
    """The first option that was given with another value than the plan has, as on the command line."""
    tuning = made.stages["fine_tuning"]
    steps = options.get("steps")
    planned = {
        "hours": made.run["hours"],
        "modality": made.data["modality"],
        "encoder": made.network["encoder"],
        "checkpoint": made.network["sam_checkpoint"],
        "decoder": tuning.get("decoder", "sam"),
        "seed": made.run["seed"],
        "unlabeled": tuning.get("unlabeled", False),
        "steps": steps if steps is not None and 0 <= tuning["steps"] - steps < tuning["epochs"] else tuning["steps"],
    }
    given = {name: options.get(name, default) for name, default in _DEFAULTS.items() if name in planned}
    name = next((n for n, value in given.items() if value not in (_DEFAULTS[n], planned[n])), None)
    return name and f"--{'sam_checkpoint' if name == 'checkpoint' else name} {given[name]}"


def _origin(run: Path, folder: Path, cases: Cases) -> Record:
    """The record of the plan: the folder that it was made for, and the files in it."""
    files = sorted(path for case in (*cases.training, *cases.validation, *cases.unlabeled) for path in case.values())
    return Record(run / PLAN_RECORD, {"folder": str(folder), "scans": settings_hash(files)})


def _writable(run: Path, folder: Path) -> Path:
    if absolute(run) == folder or any(folder.is_relative_to(absolute(run) / name) for name in _OWN):
        raise InputError(f"'{folder}' holds the scans; give another folder with --output, RUN/ in it for example")
    try:
        return check_output_dir(run)
    except InputError as error:  # the remedy names an option of the bundles
        raise InputError(str(error).replace("--output_dir", "--output")) from error


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Parse the command line; the first word may be missing, and is `train` then."""
    parser = argparse.ArgumentParser(prog="samora", description=(__doc__ or "").split("\n")[0])
    words = parser.add_subparsers(dest="word", required=True, metavar="train | plan | predict | evaluate | select")
    for word in ("train", "plan"):
        sub = words.add_parser(word, help=_first_line(train if word == "train" else plan))
        sub.set_defaults(call=_train if word == "train" else _plan)
        sub.add_argument("folder", type=Path, metavar="DIR", help="scans, labels of some of them, in any usual layout")
        sub.add_argument("--output", type=Path, required=True, metavar="RUN", help="folder of all files that are made")
        sub.add_argument("--hours", type=float, help="time budget; default: as long as the recipe takes")
        sub.add_argument("--modality", choices=("CT", "MR"), help="default: from the data list, headers and values")
        sub.add_argument("--encoder", choices=list(PRESETS), help="base; default: the one that is there")
        sub.add_argument("--sam_checkpoint", type=Path, help="file of the base, of SAM or SAM 2")
        sub.add_argument("--decoder", choices=DECODERS, default="sam", help="default: sam")
        sub.add_argument("--steps", type=int, help="steps of the fine-tuning; the other trainings in proportion")
        sub.add_argument("--seed", type=int, default=0, help="default: 0")
        sub.add_argument("--device", help=_DEVICE)
        sub.add_argument("--jobs", type=int, help="runs at a time; default: as many as the machine has room for")
        sub.add_argument("--unlabeled", action="store_true", help="fine-tune with scans without labels too")
        sub.add_argument("--compare", action="store_true", help="train SAMed too, for comparison")
        if word == "train":
            sub.add_argument(
                "--dry_run", action="store_true", help="print the plan and the commands, and train nothing"
            )
    sub = words.add_parser("predict", help=_first_line(predict))
    sub.set_defaults(call=lambda args: predict(args.model, args.scans, args.output, args.device, args.tta))
    sub.add_argument("model", type=Path, metavar="MODEL", help=_MODEL)
    sub.add_argument("scans", type=Path, metavar="SCANS", help="a scan, a folder of scans or a DICOM folder")
    sub.add_argument("output", type=Path, metavar="OUT", help="folder of the labels")
    sub.add_argument("--device", help=_DEVICE)
    sub.add_argument("--tta", action="store_true", help=_TTA)
    sub = words.add_parser("evaluate", help=_first_line(evaluate))
    sub.set_defaults(call=lambda args: evaluate(args.model, args.folder, args.output, args.device, args.tta))
    sub.add_argument("model", type=Path, metavar="MODEL", help=_MODEL)
    sub.add_argument("folder", type=Path, metavar="DIR", help="data list, or imagesVal/ and labelsVal/")
    sub.add_argument("--output", type=Path, required=True, metavar="OUT", help="folder of tables and report")
    sub.add_argument("--device", help=_DEVICE)
    sub.add_argument("--tta", action="store_true", help=_TTA)
    sub = words.add_parser("select", help=_first_line(select.run))
    sub.set_defaults(call=_select)
    select.add_arguments(sub)
    first = arguments[0] if arguments else ""
    return parser.parse_args(["train", *arguments] if first not in (*words.choices, "-h", "--help") else arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    args = parse(sys.argv[1:] if arguments is None else arguments)
    with exit_codes():
        raise SystemExit(args.call(args))


@contextlib.contextmanager
def exit_codes() -> Iterator[None]:
    """End the process with one line and an exit code in place of a traceback: 1 after an error, 130 after a Ctrl-C."""
    try:
        yield
    except InputError as error:
        raise SystemExit(f"error: {error}") from error
    except OSError as error:
        where = f" ('{error.filename}')" if error.filename else ""
        raise SystemExit(
            f"error: {error.strerror or one_line(error)}{where}; correct that and repeat the command, what is finished "
            "is kept"
        ) from error
    except KeyboardInterrupt:
        print("\nstopped; what is finished is kept, the same command goes on from there", file=sys.stderr)
        raise SystemExit(130) from None


def _options(args: argparse.Namespace) -> dict[str, Any]:
    names = ("hours", "modality", "encoder", "decoder", "steps", "seed", "unlabeled", *MACHINE)
    checkpoint = str(absolute(args.sam_checkpoint)) if args.sam_checkpoint else None
    return {name: getattr(args, name) for name in names} | {"checkpoint": checkpoint}


def _train(args: argparse.Namespace) -> None:
    train(args.folder, args.output, args.compare, args.dry_run, **_options(args))


def _plan(args: argparse.Namespace) -> None:
    plan(args.folder, args.output, compare=args.compare, **_options(args))


def _select(args: argparse.Namespace) -> None:
    select.run(args)


def _first_line(call: Callable[..., Any]) -> str:
    return (call.__doc__ or "").split("\n")[0].rstrip(".")
