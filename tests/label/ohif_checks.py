"""The server with Orthanc, and OHIF in a browser, as a person uses them: `make test-ohif`.

A CT whose slices are stored as JPEG 2000, and an MR, each with a server whose model is of this modality. The tests of a
modality share server and page, and each continues from the state that the one before it left. With `OHIF_PICTURES`,
the steps on CT are also made into the pictures of the documentation, with the trained model `OHIF_MODEL`.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import nibabel as nib
import numpy as np
import pytest

from samora_monai.synthetic.phantoms import CLASS_NAMES
from tests.label.models import write_model
from tests.label.orthanc import NEEDED, Orthanc, series_uid, study_uid, write_series
from tests.label.server import TIMEOUT, Server

BROWSER = os.environ.get("CHROME_BIN") or shutil.which("chromium") or shutil.which("google-chrome")
if absent := [name for name, file in (NEEDED | {"chromium": BROWSER}).items() if file is None]:
    pytest.exit(
        f"missing: {', '.join(absent)}; install them, on Debian or Ubuntu: sudo apt-get install {' '.join(absent)}", 1
    )

from playwright.sync_api import Page, sync_playwright  # noqa: E402 - after the packages that pip does not have

FLAGS = (
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"),
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
)
PICTURES = os.environ.get("OHIF_PICTURES")
SHAPE = (128, 128, 32)
CASES = {"CT": (1, 2), "MR": (3, 4)}

LOADED = "() => cornerstone.cache._volumeCache.size && [...cornerstone.cache._volumeCache.values()].every(\
    entry => !entry.volume?.loadStatus || entry.volume.loadStatus.loaded)"
COLOURED = """() => [...document.querySelectorAll('canvas.cornerstone-canvas')].map(canvas => {
    const values = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data;
    let count = 0;
    for (let i = 0; i < values.length; i += 4) count += Math.abs(values[i] - values[i + 2]) > 20;
    return count;
})"""
DRAWN = """() => {
    const volume = services.segmentationService.getLabelmapVolume('1');
    const segments = Object.values(services.segmentationService.getSegmentation('1').segments);
    const values = volume.voxelManager.getCompleteScalarDataArray();
    return {
        dimensions: volume.dimensions, direction: [...volume.direction], origin: [...volume.origin],
        spacing: [...volume.spacing], names: segments.map(segment => [segment.segmentIndex, segment.label]),
        values: Array.from(values, value => String.fromCharCode(48 + value)).join(''),
    };
}"""


class Viewer:
    """OHIF on the studies of `server`."""

    def __init__(self, page: Page, server: Server) -> None:
        self.page, self.server = page, server
        self.address = f"http://127.0.0.1:{server.port}"
        self.elsewhere: set[str] = set()  # hosts
        page.set_default_timeout(TIMEOUT * 300)
        page.on("dialog", lambda dialog: dialog.accept())
        page.on("request", lambda request: self.elsewhere.add(urlsplit(request.url).netloc))

    def list_studies(self) -> list[str]:
        """Return the patients of the list of studies."""
        self.page.goto(f"{self.address}/ohif/")
        names = self.page.get_by_text(re.compile("^Phantom, (CT|MR) [0-9]$"))
        names.first.wait_for()
        return sorted(set(names.all_inner_texts()))

    def open_study(self, patient: str) -> None:
        self.page.get_by_text(patient).first.click()
        hide = self.page.get_by_role("button", name="Confirm and Hide")
        if hide.is_visible():
            hide.click()
        self.picture("ohif_studies.png")
        self.page.get_by_role("button", name="MONAI Label").first.click()
        self.wait()

    def wait(self) -> None:
        """Wait until the series is loaded and the panel is there."""
        self.page.locator("#monailabelServerURL").wait_for()
        self.page.wait_for_function(LOADED)
        self.page.wait_for_timeout(2000)  # the last slices are drawn

    def connect(self) -> None:
        assert not self.connected()
        self.page.locator("#monailabelServerURL").fill(f"{self.address}/")
        self.page.locator(".settingsTable button").click()
        self.page.get_by_text("Auto-Segmentation").wait_for()
        self.page.wait_for_function("() => services.segmentationService.getLabelmapVolume('1')")
        self.page.wait_for_timeout(3000)  # OHIF has set up its views for segments

    def connected(self) -> bool:
        return self.page.get_by_text("Auto-Segmentation").is_visible()

    def tab(self, name: str) -> Any:
        """Open a tab of the panel, and return it."""
        self.page.locator("label.tab-label", has_text=name).click()
        return self.page.locator("div.tab", has=self.page.locator("label.tab-label", has_text=name))

    def drawn(self) -> tuple[np.ndarray, np.ndarray]:
        """The drawn label `[X, Y, Z]` with the values of `CLASS_NAMES`, and its affine in RAS+."""
        found = self.page.evaluate(DRAWN)
        values = np.frombuffer(found["values"].encode(), np.uint8) - 48
        lookup = np.zeros(256, np.uint8)
        for index, name in found["names"]:
            lookup[index] = CLASS_NAMES.index(name)
        affine = np.eye(4)
        affine[:3, :3] = np.reshape(found["direction"], (3, 3)).T * found["spacing"]
        affine[:3, 3] = found["origin"]
        return lookup[values].reshape(found["dimensions"], order="F"), np.diag([-1, -1, 1, 1]) @ affine

    def picture(self, name: str) -> None:
        if PICTURES and "CT" in self.server.folder.name:
            self.page.wait_for_timeout(1000)
            self.page.screenshot(path=Path(PICTURES, name))


@pytest.fixture(scope="module")
def orthanc(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Orthanc]:
    folder = tmp_path_factory.mktemp("orthanc")
    server = Orthanc(folder)
    for modality, cases in CASES.items():
        for case in cases:
            server.upload(write_series(folder / f"{modality}{case}", case, modality, SHAPE, compress=modality == "CT"))
    yield server
    server.stop()


@pytest.fixture(scope="module", params=CASES)
def modality(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def viewer(modality: str, orthanc: Orthanc, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Viewer]:
    folder = tmp_path_factory.mktemp(f"server_{modality}")
    if PICTURES and modality == "CT":
        model = Path(os.environ["OHIF_MODEL"])
    else:
        model = write_model(folder / "bundle", modality=modality).parents[1]
    server = Server(folder, model, f"{orthanc.address}/dicom-web", CUDA_VISIBLE_DEVICES="")
    server.start()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=BROWSER, args=FLAGS)
        yield Viewer(browser.new_page(viewport={"width": 1200, "height": 720}), server)
        browser.close()
    if server.process.poll() is None:
        server.stop()


def test_a_study_is_opened_from_the_list(viewer: Viewer, modality: str):
    assert viewer.list_studies() == [f"Phantom, {name} {case}" for name, cases in CASES.items() for case in cases]
    viewer.open_study(f"Phantom, {modality} {CASES[modality][0]}")
    dates = viewer.page.get_by_text(re.compile("^[0-9]{2}-Jan-2026$")).all_inner_texts()
    assert dates == [f"{CASES[modality][0]:02d}-Jan-2026"]  # no study of another patient is beside it
    assert max(viewer.page.evaluate(COLOURED)) == 0


def test_a_point_segments_its_slice(viewer: Viewer, modality: str, tmp_path: Path):
    viewer.connect()
    tab = viewer.tab("Point Prompts")
    tab.locator("tr.clickable-row", has_text="liver").click()
    box = viewer.page.locator("canvas.cornerstone-canvas").first.bounding_box()
    viewer.page.mouse.click(box["x"] + box["width"] / 4, box["y"] + box["height"] / 2)
    viewer.page.wait_for_timeout(2000)  # OHIF waits whether a second click makes it a double one
    with viewer.page.expect_request(re.compile("/infer/samora_click[?]")) as sent:
        tab.get_by_role("button", name="Run").click()
    viewer.page.get_by_text("Running Inference for Point Prompts - Successful").wait_for()
    viewer.page.wait_for_function(f"() => ({COLOURED})()[0] > 10")
    viewer.picture("ohif_point.png")
    params = json.loads(re.search(r"{.*}", sent.value.post_data).group())
    drawn, _ = viewer.drawn()
    assert np.unique(np.nonzero(drawn)[2]).tolist() == [params["foreground"][0][2]]
    file = tmp_path / "label.nii.gz"
    given = {"foreground": params["foreground"], "background": []}
    series = series_uid(CASES[modality][0], modality)
    answer = viewer.server.form("POST", "/infer/samora_click", given=given, image=series, output="image")
    file.write_bytes(answer.body)
    assert np.array_equal(drawn, CLASS_NAMES.index("liver") * np.asanyarray(nib.load(file).dataobj))


def test_the_drawn_label_equals_that_of_the_command_line(
    viewer: Viewer, modality: str, orthanc: Orthanc, tmp_path: Path
):
    viewer.tab("Auto-Segmentation").get_by_role("button", name="Run").click()
    viewer.page.get_by_text("Running Segmentation - Successful").wait_for()
    viewer.page.wait_for_function(f"() => ({COLOURED})().every(count => count > 100)")
    viewer.picture("ohif_segmentation.png")
    drawn, affine = viewer.drawn()
    series = orthanc.folder / f"{modality}{CASES[modality][0]}"
    command = [sys.executable, "-m", "samora_monai.pipeline", "predict", viewer.server.served, series, tmp_path]
    subprocess.run([*map(str, command), "--device", "cpu"], check=True, cwd=tmp_path)
    expected = nib.load(tmp_path / f"{series.name}_seg.nii.gz")
    to_expected = np.linalg.inv(expected.affine) @ affine
    voxels = np.indices(drawn.shape).reshape(3, -1)
    places = to_expected[:3, :3] @ voxels + to_expected[:3, 3:]
    np.testing.assert_allclose(places, places.round(), atol=1e-3)
    assert expected.shape == drawn.shape and len(np.unique(drawn)) > 2
    assert np.array_equal(np.asanyarray(expected.dataobj)[tuple(places.round().astype(int))], drawn.ravel())


def test_a_training_without_labels_is_refused(viewer: Viewer, modality: str):
    tab = viewer.tab("Active Learning")
    tab.get_by_role("button", name="Update Model").click()
    viewer.page.get_by_text("Failed to RUN training").wait_for()
    assert "there are 0: label more scans" in viewer.server.log.read_text()


def store_label(server: Server, series: str, file: Path) -> np.ndarray:
    """Submit the model's label of a series as its final one."""
    label = np.asanyarray(nib.load(server.infer(series, file)).dataobj)
    answer = server.form("PUT", "/datastore/label", {"label": file}, image=series, tag="final")
    assert answer.status == 200, answer.body
    return label


def names_of_segments(orthanc: Orthanc, case: int, modality: str) -> list[list[str]]:
    """Of each DICOM SEG of the study, the names of its segments."""
    study = f"/dicom-web/studies/{study_uid(case, modality)}"
    found = [seg["0020000E"]["Value"][0] for seg in orthanc.get(f"{study}/series?Modality=SEG")]
    parts = [part for series in found for part in orthanc.get(f"{study}/series/{series}/metadata")]
    return [[segment["00620005"]["Value"][0] for segment in part["00620002"]["Value"]] for part in parts]


def test_a_stored_label_is_a_dicom_seg(viewer: Viewer, modality: str, orthanc: Orthanc, tmp_path: Path):
    case = CASES[modality][0]
    label = store_label(viewer.server, series_uid(case, modality), tmp_path / "label.nii.gz")
    assert names_of_segments(orthanc, case, modality) == [[CLASS_NAMES[value] for value in np.unique(label) if value]]
    assert viewer.server.get("/info/").json["datastore"]["completed"] == 1


def test_next_sample_opens_the_other_study_of_the_modality(viewer: Viewer, modality: str):
    tab = viewer.page.locator("div.tab", has_text="Active Learning").first
    tab.locator("select").select_option("mixed")
    tab.get_by_role("button", name="Next Sample").click()
    viewer.page.get_by_text("Series Instance UID").wait_for()
    viewer.picture("ohif_next_sample.png")
    viewer.page.get_by_role("button", name="OK").click()
    viewer.page.wait_for_url(f"**StudyInstanceUIDs={study_uid(CASES[modality][1], modality)}")
    viewer.wait()
    assert not viewer.connected()
    viewer.connect()


def test_a_training_on_stored_labels_is_served(viewer: Viewer, modality: str, tmp_path: Path):
    server, series = viewer.server, [series_uid(case, modality) for case in CASES[modality]]
    second = store_label(server, series[1], tmp_path / "label.nii.gz")
    before = (server.served / "models" / "model.pt").read_bytes()
    task = server.train(max_epochs=1, val_split=0.5)
    assert task["status"] == "DONE", task["details"]
    assert (server.served / "models" / "model.pt").read_bytes() != before
    (read,) = server.folder.glob(f"home/.cache/monailabel/dicom/*/labels/final/{series[1]}.nii.gz")
    assert np.array_equal(np.asanyarray(nib.load(read).dataobj), second)  # by the training, from the DICOM SEG
    viewer.tab("Auto-Segmentation").get_by_role("button", name="Run").click()
    viewer.page.get_by_text("Running Segmentation - Successful").wait_for()


def test_only_fonts_are_asked_of_other_servers(viewer: Viewer):
    """And the page works without them: here no name of the internet is resolved."""
    assert viewer.elsewhere <= {urlsplit(viewer.address).netloc, "", "fonts.googleapis.com"}


def test_without_a_model_a_dicom_seg_has_the_given_names(
    viewer: Viewer, modality: str, orthanc: Orthanc, tmp_path: Path
):
    """And not those of the model that was served from the same folder before."""
    viewer.server.stop()
    options = ("--labels", "tumour,cyst")
    server = Server(viewer.server.folder, Path("none"), viewer.server.studies, *options, CUDA_VISIBLE_DEVICES="")
    server.start()
    series, case = series_uid(CASES[modality][1], modality), CASES[modality][1]
    image = nib.load(next(server.folder.glob(f"home/.cache/monailabel/dicom/*/{series}.nii.gz")))
    label = np.zeros(image.shape, np.uint8)
    label[5:9, 5:9, 5:9], label[15:19, 15:19, 5:9] = 1, 2
    nib.save(nib.Nifti1Image(label, image.affine), tmp_path / "label.nii.gz")
    answer = server.form("PUT", "/datastore/label", {"label": tmp_path / "label.nii.gz"}, image=series, tag="final")
    server.stop()
    assert answer.status == 200, answer.body
    assert ["tumour", "cyst"] in names_of_segments(orthanc, case, modality)
