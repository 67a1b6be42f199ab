"""The pictures of README.md: `python -m benchmarks.pictures demo`."""

from __future__ import annotations

import logging
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from monai.utils import set_determinism
from PIL import Image

from benchmarks.pictures import FOLDER, LARGEST, DenseTokens, compress, find_browser, make_pictures
from samora_monai.data.datalist import find_cases
from samora_monai.errors import MissingFileError
from samora_monai.networks import LEVELS, build_segmenter
from samora_monai.pictures.panels import GAP, LINE, TITLE
from samora_monai.pipeline.bundle_process import copy_bundle
from samora_monai.pipeline.planning.plan_file import write_plan
from samora_monai.pretraining.denoising import DenoisingStudent
from samora_monai.synthetic.phantoms import write_phantoms
from tests.bundles.weights import write_expert, write_sam
from tests.pipeline.plans import tiny_plan
from tests.tiny import image, randomise, refused, tiny

ROOT = Path(__file__).parents[2]
# writes a picture of the size of the window, as white as the page that it got has the letter x
BROWSER = """#!{python}
import sys, urllib.parse, PIL.Image
words = dict(word.lstrip('-').split('=') for word in sys.argv[1:-1] if '=' in word)
page = open(urllib.parse.urlsplit(sys.argv[-1]).path).read()
size = tuple(map(int, words['window-size'].split(',')))
PIL.Image.new('L', size, page.count('x')).save(words['screenshot'])
"""


@pytest.fixture
def demo(tmp_path: Path) -> Iterator[Path]:
    """What the pictures are made of, with random experts."""
    run = tmp_path / "demo"
    write_phantoms(run / "data", 1, 1, 1, shape=(40, 40, 8))
    sam = write_sam(tmp_path / "sam.pth")
    write_plan(tiny_plan(sam), run / "plan.yaml")
    for level in LEVELS:
        models = copy_bundle(f"samora_{level}_expert", run / "bundles" / f"{level}_expert") / "models"
        models.mkdir()
        settings = {"decoder_features": 4, "noise": 0.2} if level == "pixel" else {}
        write_expert(models / "expert.pt", sam, level, **settings)
        if level == "pixel":
            student = DenoisingStudent(build_segmenter("tiny", 64, experts=("pixel",)), 4)
            randomise(student.decoder)
            torch.save(student.decoder.state_dict(), models / "decoder.pt")
    (run / "results" / "samora").mkdir(parents=True)
    (run / "results" / "samora" / "report.html").write_text("<style>x</style>xxx")
    Image.new("RGB", (1440, 600), "red").save(run / "results" / "phantom_002.png")
    before = sys.excepthook, logging.getLogRecordFactory(), logging.getLogger("monai.bundle.scripts").level
    path = list(sys.path)
    yield run
    sys.path[:] = path
    sys.excepthook = before[0]
    logging.setLogRecordFactory(before[1])
    logging.getLogger("monai.bundle.scripts").setLevel(before[2])
    set_determinism(seed=None)


def test_pictures_of_a_demo(demo: Path, tmp_path: Path):
    assert Path(find_cases(demo / "data").validation[0]["image"]).name == "phantom_002.nii.gz"
    browser = tmp_path / "browser"
    browser.write_text(BROWSER.format(python=sys.executable))
    browser.chmod(0o755)
    made = make_pictures(demo, tmp_path / "pictures", str(browser))
    names = ["segmentation", *(f"{level}_expert" for level in LEVELS), "report"]
    assert [file.stem for file in made] == names and {file.parent for file in made} == {tmp_path / "pictures"}
    pictures = {file.stem: Image.open(file).convert("RGB") for file in made}
    assert pictures["segmentation"].size == (1200, 500) and pictures["segmentation"].getpixel((5, 5)) == (255, 0, 0)
    place = TITLE + GAP
    assert pictures["image_expert"].width == 4 * place + GAP  # a slice and three neighbours
    for name, columns in (("patch_expert", 3), ("pixel_expert", 3)):
        assert pictures[name].width == columns * place + GAP
        grey = np.asarray(pictures[name]).astype(float)
        titles = grey[: 2 * LINE].reshape(-1, 3).max()
        panels = [grey[2 * LINE :, GAP + c * place : (c + 1) * place].std() for c in range(columns)]
        assert titles > 200 and min(panels) > 10
        assert all(
            grey[: 2 * LINE, GAP + c * place : (c + 1) * place].max() > 200 for c in range(columns)
        )  # a title each
    assert pictures["report"].size[0] == 1200
    assert pictures["report"].getpixel((0, 0)) == (4, 4, 4)  # the page, with explanations hidden by a style without x


def test_tokens_of_shifted_slices_are_interleaved():
    """With a network whose tokens are means of 4 x 4 pixels, each token is the mean from its own pixel on."""
    slices = image(1, 1, 16, 16, 2)
    tokens = DenseTokens(tiny())(slices, lambda x: F.avg_pool2d(x, 4))
    assert tokens.shape == (1, 2, 1, 16, 16, 2)
    around = F.pad(slices[0].movedim(-1, 0), (0, 3, 0, 3), mode="circular")  # [2, 1, 19, 19]
    for found in tokens[0]:  # with the expert and without
        torch.testing.assert_close(found.movedim(-1, 0), F.avg_pool2d(around, 4, stride=1))


@pytest.mark.slow
def test_a_picture_is_reduced_until_it_is_small(tmp_path: Path):
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 255, (40, 60), dtype=np.uint8)).resize((1320, 660))
    coarse.save(tmp_path / "large.png")
    assert (tmp_path / "large.png").stat().st_size > 1.5 * LARGEST
    compress(tmp_path / "large.png", tmp_path / "small.png")
    assert (tmp_path / "small.png").stat().st_size < LARGEST
    small = Image.open(tmp_path / "small.png").convert("L")
    assert 800 <= small.width <= 1200 and small.width == 2 * small.height
    assert np.abs(np.asarray(small, float) - np.asarray(coarse.resize(small.size), float)).mean() < 4
    noise = Image.fromarray(rng.integers(0, 255, (420, 600, 3), dtype=np.uint8))
    noise.save(tmp_path / "noise.png")
    with refused("noise.png", f"at most {LARGEST}"):
        compress(tmp_path / "noise.png", tmp_path / "none.png")


def test_an_unfinished_demo_is_refused(demo: Path, tmp_path: Path):
    shutil.rmtree(demo / "bundles" / "patch_expert" / "models")
    with refused("is no finished demo", "patch_expert/models/expert.pt", "make demo", error=MissingFileError):
        make_pictures(demo, tmp_path / "pictures", None)
    assert not (tmp_path / "pictures").exists()


def test_the_browser_is_the_one_that_is_given(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.delenv("CHROME_BIN", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_browser() is None
    monkeypatch.setenv("CHROME_BIN", "/opt/chrome")
    assert find_browser() == "/opt/chrome"


def test_pictures_in_the_documentation_are_small_and_all_are_shown():
    shown = set(re.findall(r"\]\(docs/pictures/([\w.]+)\)", (ROOT / "README.md").read_text()))
    sizes = {file.name: file.stat().st_size for file in FOLDER.iterdir()}
    assert shown == sizes.keys() and len(shown) >= 4
    assert max(sizes.values()) < LARGEST and sum(sizes.values()) < 1_000_000
