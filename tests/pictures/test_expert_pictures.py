"""The three expert bundles' inference: pictures of what an expert learned."""

from __future__ import annotations

import json
import logging
import re
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from matplotlib.image import imread, imsave
from monai.bundle import ConfigWorkflow, create_workflow
from monai.data import MetaTensor
from monai.utils import set_determinism

from samora_monai.data import ScaleScand, ScanScaling
from samora_monai.errors import InputError, MissingFileError
from samora_monai.inference.inferers import SliceStackInferer
from samora_monai.networks import LEVELS, build_segmenter
from samora_monai.pictures.denoising import FixedNoised, likeness
from samora_monai.pictures.expert import (
    PickSlicesd,
    content_slices,
    find_cases_to_show,
    upright,
)
from samora_monai.pictures.neighbours import directions, nearest_slices
from samora_monai.pictures.overlay import axial_slices
from samora_monai.pictures.panels import GAP, HEAD, LINE, SIDE, Panel, save_panels
from samora_monai.pictures.tokens import WithAndWithoutInferer, principal_colors
from samora_monai.pretraining.denoising import DenoisingStudent
from tests.bundles.command_line import BUNDLES
from tests.bundles.weights import write_expert, write_sam
from tests.tiny import image, randomise, refused, tiny

FEATURES = 4  # of the denoising decoder


@pytest.fixture(scope="module")
def scans(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Volumes a and b, all but equal, with two empty slices at each end; c of another shape; one picture."""
    root = tmp_path_factory.mktemp("scans")
    affine = np.diag([-0.8, -0.8, 3, 1])  # LPS
    a = np.pad(np.random.default_rng(0).random((24, 20, 8)), ((0, 0), (0, 0), (2, 2)))
    volumes = {"a": a, "b": a[::-1, ::-1], "c": np.random.default_rng(1).random((30, 30, 5)) ** 2}
    (root / "more").mkdir()
    for name, array in volumes.items():
        placed = np.diag([0.8, 0.8, 3, 1]) if name == "b" else affine  # b is a, stored as RAS
        folder = root / "more" if name == "c" else root
        nib.save(nib.Nifti1Image((1000 * array).astype(np.float32), placed), folder / f"{name}.nii.gz")
    imsave(root / "d.png", np.random.default_rng(2).random((16, 32)), cmap="gray")
    return root


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, str]]:
    """The settings of a run by level: a base, an expert, a decoder."""
    root = tmp_path_factory.mktemp("files")
    sam = write_sam(root / "sam.pth")
    found = {}
    for level in LEVELS:
        settings = {"decoder_features": FEATURES, "noise": 0.2} if level == "pixel" else {}
        expert = write_expert(root / f"{level}.pt", sam, level, modality="MR", **settings)
        found[level] = {"sam_checkpoint": str(sam), "expert": str(expert)}
        if level == "pixel":
            student = DenoisingStudent(build_segmenter("tiny", 64, experts=("pixel",)), FEATURES)
            randomise(student.decoder)
            torch.save(student.decoder.state_dict(), root / "decoder.pt")
            found[level]["decoder"] = str(root / "decoder.pt")
    return found


@pytest.fixture
def run(
    files: dict[str, dict[str, str]], scans: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> Iterator[Callable[..., tuple[ConfigWorkflow, list[str]]]]:
    """`run(level, KEY=VALUE, ...)`: an inference into `tmp_path`; returns the workflow and a log line per case."""
    before = sys.excepthook, logging.getLogRecordFactory(), logging.getLogger("monai.bundle.scripts").level
    path = list(sys.path)

    def infer(level: str, **settings: Any) -> tuple[ConfigWorkflow, list[str]]:
        bundle = BUNDLES / f"samora_{level}_expert"
        given = {"dataset_dir": str(scans), "output_dir": str(tmp_path), "device": "cpu", **files[level], **settings}
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "parsing config_file")
            workflow = create_workflow(
                config_file=str(bundle / "configs" / "inference.json"),
                workflow_type="inference",
                logging_file=False,
                bundle_root=str(bundle),
                **given,
            )
        caplog.set_level("INFO", "samora_monai")
        caplog.clear()
        workflow.initialize()
        workflow.run()
        return workflow, [line for line in caplog.messages if line.startswith("[")]

    yield infer
    sys.path[:] = path
    sys.excepthook = before[0]
    logging.setLogRecordFactory(before[1])
    logging.getLogger("monai.bundle.scripts").setLevel(before[2])
    set_determinism(seed=None)


def cells(path: Path, rows: int, columns: int) -> np.ndarray:
    """The cells of a picture of panels, without their titles: `[rows, columns, h, w, 3]`."""
    picture = imread(path)[..., :3]
    picture = picture[HEAD:, GAP:]
    h, w = picture.shape[0] // rows, picture.shape[1] // columns
    assert picture.shape == (rows * h, columns * w, 3)
    return picture.reshape(rows, h, columns, w, 3).swapaxes(1, 2)[:, :, 2 * LINE :]


def colourful(pictures: np.ndarray) -> np.ndarray:
    """The part of the pixels that is neither grey nor gold."""
    red, green, blue = np.moveaxis(pictures, -1, 0)
    return ((np.abs(red - blue) > 0.1) & ~((red > green) & (green > blue))).mean((-1, -2))


# ---- the bundles


def test_image_bundle(run, scans: Path, tmp_path: Path):
    workflow, lines = run("image")
    assert workflow.check_properties() == []
    assert [line.split()[1:4] for line in lines] == [
        [str(scans / "a.nii.gz"), "->", str(tmp_path / "a.png")],
        [str(scans / "b.nii.gz"), "->", str(tmp_path / "b.png")],
        [str(scans / "d.png"), "->", str(tmp_path / "d.png")],
        [str(scans / "more" / "c.nii.gz"), "->", str(tmp_path / "more" / "c.png")],
    ]
    for line, other in ((lines[0], "b"), (lines[1], "a")):  # content is in slices 2 to 9
        assert line.endswith(", ".join(f"slice {z} like {other} slice {z} 1.00" for z in (4, 6, 7)))
    panels = cells(tmp_path / "a.png", 3, 5)
    assert panels.mean((2, 3, 4)).min() > 0.15  # noise, most of it brighter than a third
    assert colourful(panels).max() < 0.01
    for query, nearest, second, *_ in panels:
        np.testing.assert_allclose(query, nearest, atol=0.005)  # the same slice
        assert np.abs(query - second).mean() > 0.05
    assert cells(tmp_path / "d.png", 1, 5).mean((2, 3, 4)).min() > 0.1


def test_one_volume_is_its_own_gallery(run, scans: Path, tmp_path: Path):
    _, (line,) = run("image", dataset_dir=str(scans / "a.nii.gz"))
    assert [q for q, n in re.findall(r"slice (\d+) like a slice (\d+)", line) if abs(int(q) - int(n)) >= 2] == list(
        "467"
    )
    with pytest.raises(RuntimeError) as info:
        run("image", dataset_dir=str(scans / "d.png"))
    assert "one slice has no neighbours" in str(info.getrepr(style="short"))


def test_patch_bundle(run, tmp_path: Path):
    workflow, lines = run("patch")
    assert workflow.check_properties() == []
    assert [line.split()[0] for line in lines] == ["[1/4]", "[2/4]", "[3/4]", "[4/4]"]
    network, item = workflow.network_def.eval(), workflow.dataset[0]
    slices = item["image"].movedim(-1, 0)
    assert slices.shape == (3, 1, 24, 20) and item["slices"].tolist() == [4, 6, 7]
    with torch.no_grad():
        expert = network(slices)
        with network.segmenter.image_encoder.without_experts():
            base = network(slices)
    assert expert.shape == (3, 128, 4, 4)
    expert, base = (t - t.mean((0, 2, 3), keepdim=True) for t in (expert, base))
    assert f"moves tokens by {float((expert - base).norm() / base.norm()):.0%} of" in lines[0]
    panels = cells(tmp_path / "a.png", 3, 3)
    share = colourful(panels)
    assert share[:, 0].max() < 0.01 and share[:, 1:].min() > 0.2
    assert np.abs(panels[:, 1] - panels[:, 2]).mean() > 0.02  # the expert changes the tokens
    assert (imread(tmp_path / "a.png") == imread(tmp_path / "b.png"))[:, :100].all()  # b is a in another orientation


def test_pixel_bundle(run, tmp_path: Path):
    workflow, lines = run("pixel")
    assert workflow.check_properties() == []
    item = workflow.dataset[0]
    noisy, clean = (item[key].movedim(-1, 0) for key in ("image", "label"))
    assert noisy.shape == (3, 1, 64, 64)
    assert float((noisy - clean).std()) == pytest.approx(0.2, rel=0.02)
    with torch.no_grad():
        denoised = workflow.network_def.eval()(noisy)
    psnr = [float((-10 * (p.clamp(0, 1) - clean).square().mean((1, 2, 3)).log10()).mean()) for p in (noisy, denoised)]
    printed = re.search(r"PSNR ([\d.]+) -> ([\d.]+) dB, SSIM ([\d.]+) -> ([\d.]+)$", lines[0])
    assert printed is not None
    assert [float(value) for value in printed.groups()[:2]] == pytest.approx(psnr, abs=0.051)
    assert float(printed[3]) > float(printed[4])  # the decoder is random
    panels = cells(tmp_path / "a.png", 3, 3)
    assert panels[:, :2].mean((2, 3, 4)).min() > 0.15
    assert colourful(panels).max() < 0.01


@pytest.mark.parametrize(
    ("level", "settings", "words"),
    [
        ("image", {"expert": "absent.pt"}, "no image expert 'absent.pt'; train it with 'python -m monai.bundle run"),
        ("patch", {"sam_checkpoint": "absent.pth"}, "no SAM checkpoint 'absent.pth'; give --sam_checkpoint FILE"),
        ("pixel", {"decoder": "absent.pt"}, "no decoder 'absent.pt', which comes with the pixel expert; train it"),
        ("pixel", {"noise": 0}, "noise must be above 0"),
        ("patch", {"dataset_dir": "absent"}, "absent' does not exist"),
    ],
)
def test_missing_files_and_wrong_settings_are_reported(run, level: str, settings: dict[str, Any], words: str):
    with pytest.raises((RuntimeError, InputError)) as info:
        run(level, **settings)
    error: BaseException | None = info.value
    while error is not None and not isinstance(error, InputError):
        error = error.__cause__ or error.__context__
    assert words in str(error) and "\n" not in str(error)


# ---- cases and slices


def test_cases_are_named_by_their_path(tmp_path: Path):
    for name in ("b.v2.png", "sub/a.JPG", "sub/a_mask.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert [case["case"] for case in find_cases_to_show(tmp_path)] == ["b.v2", "sub/a"]
    assert [case["case"] for case in find_cases_to_show(tmp_path / "b.v2.png")] == ["b.v2"]
    (tmp_path / "sub" / "a.nii").touch()
    with refused("a.JPG", "a.nii", "rename"):
        find_cases_to_show(tmp_path)
    with refused("does not exist", error=MissingFileError):
        find_cases_to_show(tmp_path / "absent")


def test_held_out_scans_are_shown_too(tmp_path: Path):
    for name in ("a.nii.gz", "b.nii.gz"):
        (tmp_path / name).touch()
    (tmp_path / "dataset.json").write_text(
        json.dumps({"unlabeled": [{"image": "a.nii.gz"}], "validation": [{"image": "b.nii.gz", "label": "a.nii.gz"}]})
    )
    assert [case["case"] for case in find_cases_to_show(tmp_path)] == ["a", "b"]


def test_slices_are_at_the_quarters_of_the_content():
    volume = torch.zeros(1, 10, 10, 30)
    volume[0, :2, :5, 4:25] = 0.5  # a tenth of each slice
    volume[0, 0, 0, 28] = 1.0  # a hundredth
    assert content_slices(volume) == [9, 14, 19]
    assert content_slices(volume[..., :1]) == [0]
    assert content_slices(volume[..., 23:25]) == [0, 1]
    assert content_slices(0 * volume) == [7, 14, 22]
    scale = ScaleScand("image", ScanScaling("MR", intensity="volume_zscore"))
    scaled = scale({"image": MetaTensor(volume)})["image"]
    assert bool((scaled > 0.1).all()) and content_slices(scaled) == [9, 14, 19]


def test_slices_have_the_orientation_of_the_overlays():
    volume = MetaTensor(image(1, 6, 5, 4), affine=torch.eye(4).double())
    np.testing.assert_array_equal(upright(volume[0].movedim(-1, 0)), axial_slices(volume))


def test_picked_slices_keep_their_extent_when_resized():
    volume = MetaTensor(image(1, 12, 8, 9), affine=torch.diag(torch.tensor([0.5, 2.0, 3.0, 1.0]).double()))
    picked = PickSlicesd(image_size=16)({"image": volume})
    assert picked["slices"].tolist() == [2, 4, 6] and picked["extent"].tolist() == [6, 16]
    expected = F.interpolate(volume.as_tensor()[None, ..., 4], (16, 16), mode="bilinear", antialias=True)
    torch.testing.assert_close(picked["image"][..., 1], expected[0])


# ---- networks


def test_inferer_stacks_the_outputs_of_the_network():
    volume = image(2, 1, 6, 4, 5)

    def network(x):
        assert len(x) <= 2
        return x.mean((1, 3))  # [slices, X]

    outputs = SliceStackInferer(batch_size=2)(volume, network)
    torch.testing.assert_close(outputs, volume[:, 0].mean(2))


def test_with_and_without_the_expert():
    net, bare = tiny(experts=("patch",)), tiny(experts=())
    bare.load_state_dict({key: value for key, value in net.state_dict().items() if ".experts." not in key})
    volume = image(1, 1, 64, 64, 3)
    with torch.no_grad():
        both = WithAndWithoutInferer(net, batch_size=2)(volume, lambda x: net.image_encoder(net.preprocess(x)))
        slices = volume[0].movedim(-1, 0)
        expected = [n.image_encoder(n.preprocess(slices)).movedim(0, -1)[None] for n in (net, bare)]
    torch.testing.assert_close(both, torch.stack(expected, 1))
    assert (both[:, 0] - both[:, 1]).abs().mean() > 1e-3


# ---- features, colours, noise and panels


def test_nearest_slices():
    """Three cases on a circle around a point far from the origin: the cosine must be taken from their mean."""
    degrees = [torch.arange(0, 360, 18.0), torch.tensor([40.0, 41.0, 220.0]), torch.tensor([60.0, 240.0])]
    units = directions([torch.stack([100 + a.deg2rad().cos(), 50 + a.deg2rad().sin()], 1) for a in degrees])
    found = nearest_slices(units, 1, 0)
    assert [(c, z) for c, z, _ in found] == [(0, 2), (2, 0), (0, 4), (0, 0)]  # and not slice 3 of case 0, next to 2
    assert found[0][2] == pytest.approx(np.cos(np.deg2rad(4)), abs=0.05)
    alone = nearest_slices(units[:1], 0, 5)
    assert [z for _, z, _ in alone[:2]] in ([3, 7], [7, 3]) and len(alone) == 4
    assert nearest_slices([units[0][:1], units[1]], 0, 0)[0][0] == 1


def test_principal_colors_separate_clusters():
    generator = torch.Generator().manual_seed(0)
    dark = torch.zeros(3, 4, 4, dtype=torch.bool)
    dark[:, :2] = True
    axis = torch.randn(32, generator=generator)
    tokens = torch.where(dark[:, None], -1.0, 1.0) * axis[None, :, None, None]
    tokens = 7 + tokens + 0.1 * torch.randn(3, 32, 4, 4, generator=generator)
    colors, parts = principal_colors(tokens, torch.where(dark, 0.1, 0.8))
    red = colors[..., 0]
    assert red[dark].max() < 0.2 and red[~dark].min() > 0.8  # bright tissue, much red
    assert parts[0] > 0.9 and float(parts.sum()) < 1
    torch.testing.assert_close(principal_colors(-tokens, torch.where(dark, 0.1, 0.8))[0], colors)
    assert torch.isfinite(principal_colors(torch.ones(1, 8, 2, 2), torch.ones(1, 2, 2))[0]).all()


def test_noise_is_the_same_in_every_run():
    clean = image(1, 32, 32, 3)
    one, two = (FixedNoised("image", 0.1)({"image": clean})["image"] for _ in range(2))
    assert torch.equal(one, two) and float((one - clean).std()) == pytest.approx(0.1, rel=0.05)
    with refused("noise", "'a lot'", "--noise 0.1"):
        FixedNoised("image", "a lot")  # type: ignore[arg-type]


def test_likeness():
    clean = 0.8 * image(2, 1, 32, 32)
    psnr, ssim = likeness(torch.stack([clean[0] + 0.1, clean[1]]), clean)
    assert psnr[0] == pytest.approx(20, abs=1e-3) and ssim[1] == pytest.approx(1) and 0.5 < ssim[0] < 0.99
    assert likeness(torch.full_like(clean, 3.0), torch.ones_like(clean))[1] == pytest.approx([1, 1])  # clipped


def test_panels(tmp_path: Path):
    """Wide panels of two widths and colours; the last place of the short row stays black."""
    red = np.broadcast_to([1.0, 0.0, 0.0], (2, 2, 3))
    rows = [
        [Panel(red, "a", (40, 20), smooth=False), Panel(np.full((3, 3), 2.0), "b", (20, 20))],
        [Panel(np.full((3, 3), 0.5), "c\n$2", (40, 20))],
    ]
    save_panels(tmp_path / "new" / "p.png", rows, "title")
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["p.png"]
    panels = cells(tmp_path / "new" / "p.png", 2, 2)
    for color, shape, panel in (([1, 0, 0], (40, 20), panels[0, 0]), ([1, 1, 1], (20, 20), panels[0, 1])):
        painted = np.abs(panel - color).sum(-1) < 0.02
        box = painted.any(0).sum(), painted.any(1).sum()  # the titles are cut off
        assert box == (SIDE, SIDE * shape[1] // shape[0]) and painted.sum() == box[0] * box[1]
    assert panels[1, 1].max() == 0
    (tmp_path / "file").touch()
    with refused("cannot write", "--output_dir"):
        save_panels(tmp_path / "file" / "p.png", rows, "title")
