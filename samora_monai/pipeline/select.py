"""Which scans of a folder a person should label first: `samora select DIR --budget 4`."""

from __future__ import annotations

import argparse
from dataclasses import dataclass, replace
from pathlib import Path

from tqdm import tqdm

from samora_monai.checkpoints import load_expert, load_model, load_sam, read_expert_settings, read_model_settings
from samora_monai.checkpoints.files import read_parts
from samora_monai.data import LoadUnlabeledd, ScaleUnlabeledd, ScanScaling, check_output_dir
from samora_monai.data.any_image import ARRAYS, PICTURES
from samora_monai.data.datalist import Cases
from samora_monai.data.scans import absolute
from samora_monai.data.unlabeled import format_of
from samora_monai.errors import InputError
from samora_monai.networks import Segmenter, build_segmenter
from samora_monai.pipeline.at_hand import choose_device, find_base, model_file
from samora_monai.pipeline.folders import find_folder
from samora_monai.pipeline.planning.decisions import choose_modality, choose_slice_axis
from samora_monai.pipeline.planning.look import look_at
from samora_monai.selection import Anatomy, Likeness, ScanFeatures, Selection, choose, embed, patients_of, scan_features

IMAGE_SIZE = 224
TABLE, SHEET = "select.csv", "select.png"
_PARTS = ("unlabeled", "training", "validation")  # the lists of `Cases`


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `samora select`."""
    parser.add_argument("folder", type=Path, metavar="DIR", help="scans, some of which may be labelled; or a datalist")
    parser.add_argument("--budget", type=int, required=True, metavar="N", help="number of scans that you will label")
    parser.add_argument(
        "--output", type=Path, default=Path(), help=f"folder of {TABLE} and {SHEET} (default: this one)"
    )
    parser.add_argument("--encoder", help="base, e.g. vit_b or sam2_tiny (default: the one at hand)")
    parser.add_argument("--sam_checkpoint", metavar="FILE", help="weights of the base")
    parser.add_argument("--experts", nargs="+", metavar="FILE", help="expert files that are added to the base")
    parser.add_argument("--model", type=Path, metavar="RUN", help="a trained model instead: RUN, bundle or model.pt")
    parser.add_argument("--image_size", type=int, help=f"side of the network's input (default {IMAGE_SIZE})")
    parser.add_argument("--modality", help="CT or MR (default: as a plan decides)")
    parser.add_argument("--slice_axis", type=int, help="0, 1, 2 (default: as a plan decides)")
    parser.add_argument("--patient_pattern", metavar="REGEX", help="finds the patient in the path of a scan below DIR")
    parser.add_argument("--device", help="cpu, cuda or cuda:N (default: a GPU if there is one)")


def run(arguments: argparse.Namespace) -> list[str]:
    """Name the scans to label first.

    Prints them, writes the table and the contact sheet, and returns their paths, the first one to label first.

    Raises:
        InputError: the budget or another option is out of range, or there are too few readable scans.
    """
    root, output = absolute(arguments.folder), absolute(arguments.output)
    folder = root.parent if root.is_file() else root
    if output.is_relative_to(folder):
        raise InputError(
            f"{SHEET} would be written among the scans in '{folder}', where the next run takes it for a scan; "
            "choose another folder with --output"
        )
    check_output_dir(output)
    cases = find_folder(root, need_labels=False)
    pictures = [case for case in cases.unlabeled if format_of(case["image"]) in (*PICTURES, *ARRAYS)]
    if pictures:  # which the fine-tuning does not take
        print(f"left out: {len(pictures)} pictures and arrays, the first '{pictures[0]['image']}'")
        cases = replace(cases, unlabeled=tuple(case for case in cases.unlabeled if case not in pictures))
    _check_budget(arguments.budget, len(cases.unlabeled))
    net, trained = _network(arguments, output)
    net.to(choose_device(arguments.device)[0]).eval()
    if trained is None:
        cases, scaling = _scaling(cases, arguments.modality, arguments.budget)
    else:  # z-scores do not show what is air
        scaling = replace(trained, modality=arguments.modality or trained.modality, intensity="percentiles")
    if arguments.slice_axis is not None:
        scaling = replace(scaling, slice_axis=arguments.slice_axis)
    scans = _read(cases, net, scaling, arguments.budget)
    patients = patients_of([scan.path for scan in scans], folder, arguments.patient_pattern)
    embeddings = embed([scan.features.cells for scan in scans])
    known = {part: [i for i, scan in enumerate(scans) if scan.part == part] for part in _PARTS[1:]}
    likeness = Likeness([scan.anatomy for scan in scans], embeddings)
    choices = choose(embeddings, known["training"], known["validation"], arguments.budget, patients, likeness)
    names = [_name(scan.path, folder) for scan in scans]
    features = [scan.features for scan in scans]
    result = Selection(names, patients, features, embeddings, known["training"], known["validation"], choices)
    print("\n".join(["label first:", *result.lines()]))
    result.write_table(output / TABLE)
    result.write_sheet(output / SHEET)
    print(f"table          {output / TABLE}\ncontact sheet  {output / SHEET}")
    return [scans[choice.scan].path for choice in choices]


def _name(path: str, folder: Path) -> str:
    return str(Path(path).relative_to(folder)) if Path(path).is_relative_to(folder) else path


def _check_budget(budget: int, count: int, kind: str = "") -> None:
    if count < 2:
        raise InputError(f"found {count} {kind}scans without a label, expected at least 2 to choose from; add scans")
    if not 1 <= budget < count:
        all_of_them = f", or label all {count}" if budget >= count else ""
        raise InputError(
            f"budget is {budget}, but {count} {kind}scans have no label; give --budget 1 to {count - 1}{all_of_them}"
        )


@dataclass(frozen=True)
class _Scan:
    """A scan that was read; `part` is its list in `Cases`."""

    path: str
    part: str
    features: ScanFeatures
    anatomy: Anatomy


def _network(arguments: argparse.Namespace, output: Path) -> tuple[Segmenter, ScanScaling | None]:
    """The network, and how its scans were scaled, if it was trained on scans."""
    if arguments.model is not None:
        if given := [
            name for name in ("experts", "encoder", "sam_checkpoint", "image_size") if getattr(arguments, name)
        ]:
            raise InputError(f"--model and --{given[0]} were given, but a model has its own; leave one out")
        file = model_file(arguments.model)
        settings = read_model_settings(file)
        net = build_segmenter(settings.network)
        load_model(net, file)
        return net, settings.scaling
    if not arguments.experts:
        base = find_base(arguments.encoder, arguments.sam_checkpoint, output)
        net = build_segmenter(base.encoder, arguments.image_size or IMAGE_SIZE, num_classes=2, experts=())
        load_sam(net, base.checkpoint)
        print(f"base: {base.encoder}, {base.checkpoint} ({base.reason})")
        return net, None
    levels = [str(read_parts(file, "expert")[1]["level"]) for file in arguments.experts]
    trained = [read_expert_settings(file, level) for file, level in zip(arguments.experts, levels, strict=True)]
    first = trained[0]
    size = arguments.image_size or first.image_size
    net = build_segmenter(first.encoder, size, num_classes=2, experts=tuple(levels), rank=first.rank)
    base = find_base(str(first.encoder), arguments.sam_checkpoint, output)
    load_sam(net, base.checkpoint)
    for file, level in zip(arguments.experts, levels, strict=True):
        load_expert(net, file, level)
    print(f"base: {base.encoder}, {base.checkpoint}; experts: {', '.join(arguments.experts)}")
    return net, first.scaling


def _scaling(cases: Cases, modality: str | None, budget: int) -> tuple[Cases, ScanScaling]:
    """Decide on modality and slice axis as a plan does; return the scans that can be read, and how to scale them."""
    images = [{"image": case["image"]} for part in _PARTS for case in getattr(cases, part)]
    facts, reasons = look_at(images)
    readable = {scan.image for scan in facts}
    unlabeled, training, validation = (
        tuple(case for case in getattr(cases, part) if case["image"] in readable) for part in _PARTS
    )
    for reason in reasons:
        print(f"left out: {reason}")
    if reasons:
        _check_budget(budget, len(unlabeled), "readable ")
    chosen, why_modality, doubts = choose_modality(facts, cases, modality)
    axis, why_axis = choose_slice_axis(facts)
    for doubt in doubts:
        print(f"note: {doubt}")
    if modality is None and cases.modality is None:
        print(f"modality: {chosen}: {why_modality}")
    print(f"slices: {why_axis}; others with --slice_axis")
    cases = replace(cases, unlabeled=unlabeled, training=training, validation=validation)
    return cases, ScanScaling(chosen, slice_axis=axis)


def _read(cases: Cases, net: Segmenter, scaling: ScanScaling, budget: int) -> list[_Scan]:
    """Read each scan, with a progress bar; report those that cannot be read."""
    parts = [(part, case["image"]) for part in _PARTS for case in getattr(cases, part)]
    load, scale = LoadUnlabeledd(slice_axis=scaling.slice_axis), ScaleUnlabeledd("image", scaling)
    scans, reasons = [], []
    for part, path in tqdm(parts, desc="reading scans", unit="scan", disable=None):
        try:
            volume = scale(load({"image": path}))["image"]
        except InputError as error:
            reasons.append(str(error))
            continue
        scans.append(_Scan(path, part, scan_features(volume, net), Anatomy(volume)))
    for reason in reasons:
        print(f"left out: {reason}")
    counts = [sum(scan.part == part for scan in scans) for part in _PARTS]
    print(
        f"read {counts[0]} scans without a label, {counts[1]} with one"
        + f", {counts[2]} of the validation" * bool(counts[2])
    )
    if reasons:
        _check_budget(budget, counts[0], "readable ")
    return scans
