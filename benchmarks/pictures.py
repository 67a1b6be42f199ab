"""The pictures of README.md, made from the folder of a finished demo.

    make demo
    python -m benchmarks.pictures demo        # writes docs/pictures/*.png

`segmentation.png` is the demo's own picture. `image_expert.png`, `patch_expert.png` and `pixel_expert.png` show one row
of what the inference of each expert bundle draws, all of the same scan; that of the patch expert has the tokens of 16
slices, each shifted by a fourth of a token. `report.png` is the top of the demo's report in a browser, without its
explanations; without a Chromium it is left out. All are reduced to less than 150 KB.
"""

from __future__ import annotations

import argparse
import logging
import os
import shutil
import subprocess
import tempfile
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.bundle import create_workflow
from PIL import Image
from torch import Tensor

from samora_monai.data import case_name
from samora_monai.data.datalist import Cases, find_cases
from samora_monai.errors import InputError, MissingFileError
from samora_monai.networks import LEVELS
from samora_monai.pictures import DenoisingPictures, NeighbourPictures, TokenPictures, WithAndWithoutInferer
from samora_monai.pictures.panels import TITLE, Panel, save_panels
from samora_monai.pipeline.planning import read_plan
from samora_monai.replacing import replacing

FOLDER = Path(__file__).parents[1] / "docs" / "pictures"
LARGEST = 150_000  # bytes of a picture
WIDTHS, COLOURS = (1200, 1000, 800), (256, 96, 40)  # tried in this order
COLUMNS = 4  # of a row, at most
SHIFTS = 4  # of a slice along each side, by a fourth of a token
BROWSERS = (
    "chromium",
    "chromium-browser",
    "google-chrome",
    "google-chrome-stable",
    "chromium-headless-shell",
    "chrome",
)
BROWSER_FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--enable-logging=stderr")
WINDOW = (1240, 1225)  # pixels of the report that are shown
SHORT = "main section > p { display: none }</style>"  # the report without its explanations, to show more of it


class _MiddleRow:
    """Draw the middle row of one case, without a main title, in place of all rows of all cases.

    Args:
        output_dir: folder of the picture.
        case: name of the case.
    """

    def __init__(self, output_dir: str, case: str) -> None:
        super().__init__(output_dir)  # type: ignore[call-arg]
        self.output_dir = Path(output_dir)
        self.case = case

    def save(self, case: str, scan: str, rows: Sequence[Sequence[Panel]], title: str, result: str) -> None:
        if case == self.case:
            save_panels(self.output_dir / f"{case}.png", [rows[len(rows) // 2][:COLUMNS]], "", side=TITLE)


class NeighbourRow(_MiddleRow, NeighbourPictures):
    """A slice and its three nearest neighbours."""


class DenseTokens(WithAndWithoutInferer):
    """Tokens of shifted slices, interleaved: `SHIFTS` times as many along each side of the slice."""

    def __call__(self, inputs: Tensor, network: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
        """`[B, C, X, Y, Z]` -> `[B, 2, dim, SHIFTS * g, SHIFTS * g, Z]`; slices are shifted cyclically."""
        grid = super().__call__(inputs, network).shape[3]
        steps = [[round(i * side / (SHIFTS * grid)) for i in range(SHIFTS)] for side in inputs.shape[2:4]]
        moved = [torch.roll(inputs, (-x, -y), (2, 3)) for x in steps[0] for y in steps[1]]
        tokens = torch.stack([super(DenseTokens, self).__call__(m, network, *args, **kwargs) for m in moved])
        tokens = tokens.unflatten(0, (SHIFTS, SHIFTS))  # [SHIFTS, SHIFTS, B, 2, dim, g, g, Z]
        return tokens.permute(2, 3, 4, 5, 0, 6, 1, 7).flatten(5, 6).flatten(3, 4)


class TokenRow(_MiddleRow, TokenPictures):
    """A slice and its tokens, with titles, which `TokenPictures` gives to the first row only."""

    def save(self, case: str, scan: str, rows: Sequence[Sequence[Panel]], title: str, result: str) -> None:
        image, *maps = rows[len(rows) // 2]
        titled = [Panel(m.picture, top.title, m.extent, m.smooth) for m, top in zip(maps, rows[0][1:], strict=True)]
        super().save(case, scan, [[image, *titled]], title, result)


class DenoisingRow(_MiddleRow, DenoisingPictures):
    """A slice clean, noisy and denoised."""


INFERER = {
    "_target_": "benchmarks.pictures.DenseTokens",
    "segmenter": "@segmenter",
    "batch_size": "@slices_per_pass",
}
ROWS = dict(zip(LEVELS, (NeighbourRow, TokenRow, DenoisingRow), strict=True))


def find_browser() -> str | None:
    """The Chromium of `CHROME_BIN`, else the first one on the path; None if there is none."""
    return os.environ.get("CHROME_BIN") or next((path for name in BROWSERS if (path := shutil.which(name))), None)


def draw_expert(level: str, run: Path, cases: Cases, folder: Path) -> Path:
    """Draw a row of what an expert has learned, by the inference of its bundle.

    Args:
        level: `"image"`, `"patch"` or `"pixel"`.
        run: folder of a pipeline.
        cases: of its datalist. The picture is of the first validation scan; the image level has all scans to search.
        folder: of the picture.
    """
    shown = cases.validation[0]["image"]
    bundle, scans = run / "bundles" / f"{level}_expert", folder / f"{level}_scans"
    scans.mkdir(parents=True)
    for case in (*cases.training, *cases.validation, *cases.unlabeled):
        if level == "image" or case["image"] == shown:
            shutil.copy(case["image"], scans)
    handler = {
        "_target_": f"benchmarks.pictures.{ROWS[level].__name__}",
        "output_dir": str(folder / level),
        "case": case_name(shown),
    }
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "parsing config_file")
        workflow = create_workflow(
            config_file=str(bundle / "configs" / "inference.json"),
            workflow_type="inference",
            logging_file=False,
            bundle_root=str(bundle),
            dataset_dir=str(scans),
            output_dir=str(folder / level),
            sam_checkpoint=str(read_plan(run / "plan.yaml").network["sam_checkpoint"]),
            handlers=[handler],
            **({"inferer": INFERER} if level == "patch" else {}),
        )
    workflow.initialize()
    workflow.run()
    return folder / level / f"{case_name(shown)}.png"


def photograph(report: Path, browser: str, picture: Path) -> Path:
    """Write the top of a report, without its explanations, as a browser shows it; return `picture`."""
    page = picture.with_suffix(".html")
    page.write_text(report.read_text(encoding="utf-8").replace("</style>", SHORT, 1), encoding="utf-8")
    window = f"--window-size={WINDOW[0]},{WINDOW[1]}"
    command = [browser, *BROWSER_FLAGS, f"--screenshot={picture}", window, page.as_uri()]
    subprocess.run(command, capture_output=True, timeout=60, check=True)
    return picture


def _palette(image: Any, colours: int) -> Any:
    """A palette in which each colour counts by the square root of its number of pixels, so that rare ones are kept."""
    red, green, blue = np.moveaxis(np.asarray(image, np.int64) // 4, -1, 0)  # 64 values each
    cells, counts = np.unique(red << 12 | green << 6 | blue, return_counts=True)
    cells = np.repeat(cells, np.sqrt(counts).astype(int))
    row = (np.stack([cells >> 12, cells >> 6 & 63, cells & 63], -1) * 255 // 63).astype(np.uint8)
    return Image.fromarray(row[None]).quantize(colours, kmeans=2)


def compress(picture: Path, target: Path) -> None:
    """Write a picture with so few pixels and colours that it has less than `LARGEST` bytes.

    Raises:
        InputError: it has more bytes with the fewest.
    """
    image: Any = Image.open(picture).convert("RGB")
    for width in sorted({min(width, image.width) for width in WIDTHS}, reverse=True):
        small = image.resize((width, round(width * image.height / image.width)), Image.Resampling.LANCZOS)
        for colours in COLOURS:
            with replacing(target) as unfinished:
                small.quantize(palette=_palette(small, colours), dither=Image.Dither.NONE).save(
                    unfinished, "PNG", compress_level=9
                )
            if target.stat().st_size < LARGEST:
                return
    raise InputError(f"'{picture}' has {target.stat().st_size} bytes with {COLOURS[-1]} colours, at most {LARGEST}")


def make_pictures(run: Path, output: Path, browser: str | None) -> list[Path]:
    """Make all pictures, and return their paths.

    Args:
        run: folder of a finished demo.
        output: folder of the pictures.
        browser: for the picture of the report; None leaves it out.

    Raises:
        MissingFileError: a file of the demo is not there.
    """
    run = run.resolve()
    cases = find_cases(run / "data")
    overlay = run / "results" / f"{case_name(cases.validation[0]['image'])}.png"
    report = run / "results" / "samora" / "report.html"
    experts = [run / "bundles" / f"{level}_expert" / "models" / "expert.pt" for level in LEVELS]
    if missing := [file for file in (overlay, report, *experts) if not file.is_file()]:
        raise MissingFileError(f"'{run}' is no finished demo, it lacks '{missing[0]}'; make it with 'make demo'")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        found = {"segmentation": overlay}
        found |= {f"{level}_expert": draw_expert(level, run, cases, folder) for level in LEVELS}
        if browser is not None:
            found["report"] = photograph(report, browser, folder / "report.png")
        output.mkdir(parents=True, exist_ok=True)
        targets = {output / f"{title}.png": picture for title, picture in found.items()}
        for target, picture in targets.items():
            compress(picture, target)
    return list(targets)


def main() -> None:
    """Make the pictures from the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("run", type=Path, metavar="DEMO", help="folder of a finished demo")
    parser.add_argument("--output", type=Path, default=FOLDER, help="default: docs/pictures of this checkout")
    args = parser.parse_args()
    logging.getLogger("monai.bundle.workflows").setLevel(logging.ERROR)  # warns that there is no file of its settings
    browser = find_browser()
    try:
        for picture in make_pictures(args.run, args.output, browser):
            print(f"{picture}  {picture.stat().st_size / 1000:.0f} KB")
    except InputError as error:
        raise SystemExit(f"error: {error}") from error
    if browser is None:
        print(f"report.png is left out: none of {', '.join(BROWSERS)} is installed, nor is CHROME_BIN set")


if __name__ == "__main__":
    main()
