"""A few-shot study with the real bundles: systems and ablations over numbers of labelled scans and seeds.

    python -m benchmarks.fewshot.run DIR --folder OUT --datalist dataset_8.json --modality MR [--quick]
    python -m benchmarks.fewshot.run DIR --folder OUT --base sam_vit_b_01ec64.pth --encoder vit_b [...]

Every cell is trained and scored in processes of its own; its rows are added to OUT/results.csv when it is finished. The
same command continues a stopped run. `python -m benchmarks.fewshot.table OUT` makes the tables and plots.
"""

from __future__ import annotations

import argparse
import fcntl
import os
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.fewshot.base import make_base
from benchmarks.fewshot.budget import FULL, QUICK
from benchmarks.fewshot.cell import Study, origin
from benchmarks.fewshot.grid import FEW, QUICK_ROWS, SYSTEMS, Cell, all_rows, cells
from benchmarks.fewshot.results import Results, written
from benchmarks.fewshot.stage_one import StageOne, clear_unfinished
from samora_monai.data import find_cases
from samora_monai.errors import InputError, MissingFileError
from samora_monai.networks import LEVELS, PRESETS
from samora_monai.pipeline.at_hand import STAND_IN, STAND_IN_FILE
from samora_monai.pipeline.recipes import STAND_INS

QUICK_LABELED = (4,)
PUBLIC = "public-teachers"


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("dataset_dir", type=Path)
    parser.add_argument("--folder", type=Path, required=True, help="folder of all files that are written")
    parser.add_argument("--datalist", default="dataset.json")
    parser.add_argument("--modality", default="CT", choices=("CT", "MR"))
    parser.add_argument(
        "--base", type=Path, help="base; default: the package's tiny, or for sam2_mini one that is trained"
    )
    parser.add_argument("--encoder", default="tiny", choices=list(PRESETS), help="preset of the base; default tiny")
    parser.add_argument("--image_teacher", type=Path, help="r50_2x_sk1.pth, which is trained further on the scans")
    parser.add_argument("--patch_teacher", type=Path, help="mae_pretrain_vit_large_full.pth, likewise")
    parser.add_argument("--quick", action="store_true", help="a grid for two cores and one hour; see README.md")
    parser.add_argument("--steps", type=int, help=f"steps of a fine-tuning; default {FULL.steps}, quick {QUICK.steps}")
    parser.add_argument("--image_size", type=int, help="side of all inputs, the stand-in's too; default: budget.py")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--labeled", type=int, nargs="+", help="numbers of labelled scans; default 1 4 8, quick 4")
    parser.add_argument(
        "--few", type=int, default=FEW, help=f"labelled scans of ablations and convergence; default {FEW}"
    )
    parser.add_argument("--rows", nargs="+", help="names of systems and ablations; default: all")
    parser.add_argument("--device", help="default: a GPU if there is one")
    parser.add_argument("--workers", type=int, help="loader processes of each training")
    parser.add_argument("--jobs", type=int, default=1, help="cells at a time, which share the cores")
    args = parser.parse_args(arguments)
    args.labeled = args.labeled or list(QUICK_LABELED if args.quick else (1, 4, 8))
    args.rows = args.rows or list(QUICK_ROWS if args.quick else all_rows(args.encoder))
    return args


def check(args: argparse.Namespace) -> None:
    """Check files, scans and settings before anything starts.

    Raises:
        MissingFileError, InputError: files or scans are missing, or settings contradict each other.
    """
    for file in (args.base, args.image_teacher, args.patch_teacher):
        if file is not None and not file.is_file():
            raise MissingFileError(f"'{file}' does not exist; give the path of the downloaded file")
    if args.base is None and args.encoder not in STAND_INS:
        stand_ins = " or ".join(STAND_INS)
        raise InputError(f"--encoder is {args.encoder}, but the stand-in base is {stand_ins}; give --base FILE")
    if (args.image_teacher is None) != (args.patch_teacher is None):
        raise InputError("only one public teacher was given; give both --image_teacher and --patch_teacher, or neither")
    found = find_cases(args.dataset_dir, args.datalist)
    most = max(*args.labeled, args.few if set(args.rows) - set(SYSTEMS) else 0)
    if len(found.training) < most:
        raise InputError(
            f"'{found.source}' has {len(found.training)} labelled scans for training, but {most} were asked for; give "
            "smaller numbers with --labeled and --few"
        )
    if not found.validation:
        raise InputError(
            f"'{found.source}' has no scans for validation, which the cells are scored on; add at least one"
        )


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Lock the folder against a second run, and remove the unfinished files of a killed one.

    Raises:
        InputError: another run holds the lock.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise InputError(f"another run works in '{folder}'; wait for it, or give another --folder") from error
        clear_unfinished(folder)
        yield


def prepare(stage_one: StageOne, wanted: Sequence[Cell], jobs: int) -> None:
    """Make the experts of all cells, up to `jobs` levels at a time."""
    rows = all_rows(stage_one.encoder)
    needed = {(rows[cell.row].files, cell.seed) for cell in wanted if rows[cell.row].files}
    variants = sorted({"trained" if variant == "random" else str(variant) for variant, _ in needed}, reverse=True)

    def make(level: str) -> None:
        for variant in variants:
            stage_one.expert(level, variant)

    with ThreadPoolExecutor(jobs) as pool:
        list(pool.map(make, reversed(LEVELS)))  # the pixel level takes longest
    for variant, seed in sorted(needed):
        if variant == "random":
            stage_one.experts("random", seed)


def work(study: Study, results: Results, facts: dict[str, str], cell: Cell) -> None:
    """Run one cell and add its rows to the CSV."""
    start = time.monotonic()
    settings = study.settings(cell)
    rows = [row | facts | {"settings": written(settings)} for row in study.run(cell)]
    results.add(cell, rows)
    print(f"{cell.name}: mean Dice {float(rows[-1]['dice mean']):.4f}, {time.monotonic() - start:.0f} s", flush=True)


def run(args: argparse.Namespace) -> None:
    """Run the grid.

    Raises:
        InputError: the folder is in use or holds results of other settings.
        FailedRun: a process ended with an error.
    """
    folder, threads = args.folder.absolute(), max(1, (os.cpu_count() or 1) // args.jobs)
    budget = QUICK if args.quick else FULL
    budget = replace(budget, steps=args.steps) if args.steps else budget
    if args.image_size:
        budget = replace(budget, image_size=args.image_size, expert_image_size=args.image_size)
    machine: dict[str, Any] = {"device": args.device} if args.device else {}
    machine |= {"num_workers": args.workers} if args.workers is not None else {}
    data = {"dataset_dir": args.dataset_dir.absolute(), "datalist": args.datalist, "modality": args.modality}
    public = {"image": args.image_teacher, "patch": args.patch_teacher} if args.image_teacher else {}
    public = {level: path.absolute() for level, path in public.items()}
    if PUBLIC in args.rows and not public:
        print(f"{PUBLIC}: not run, because --image_teacher and --patch_teacher were not given", flush=True)
        args.rows.remove(PUBLIC)
    with alone_in(folder):
        base = args.base and args.base.absolute()
        if base is None and args.encoder == STAND_IN:
            base = STAND_IN_FILE
        sizes = [args.image_size] if args.image_size else None
        base = base or make_base(folder / "base", [budget.base_steps], machine, args.encoder, sizes)
        stage_one = StageOne(folder / "stage1", base, args.encoder, data, budget, public, machine, threads)
        study, results = Study(folder, stage_one, budget), Results(folder / "results.csv")
        grid = list(cells(args.rows, args.labeled, args.seeds, args.encoder, args.few))
        missing = [cell for cell in grid if not results.has(cell, study.settings(cell))]
        print(f"{len(grid)} cells, {len(grid) - len(missing)} of them finished earlier", flush=True)
        prepare(stage_one, missing, args.jobs)
        with ThreadPoolExecutor(args.jobs) as pool:
            futures = [pool.submit(partial(work, study, results, origin(machine)), cell) for cell in missing]
            try:
                for future in futures:
                    future.result()
            finally:  # after an error, finish the cells that run and start no other
                pool.shutdown(cancel_futures=True)


def main() -> None:
    args = parse()
    try:
        check(args)
        run(args)
    except InputError as error:
        raise SystemExit(f"error: {error}") from error


if __name__ == "__main__":
    main()
