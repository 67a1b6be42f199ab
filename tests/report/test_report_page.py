"""`report.html` in a parser and in a browser: complete, self-contained, escaped, accessible."""

from __future__ import annotations

import base64
import hashlib
import io
import re
import shlex
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ignite.engine import Engine
from monai.data import MetaTensor
from PIL import Image

from benchmarks.pictures import BROWSER_FLAGS, BROWSERS, find_browser
from samora_monai import __version__
from samora_monai.checkpoints.model_settings import ModelSettings
from samora_monai.data.datalist import Cases
from samora_monai.pictures.overlay import TINT, class_colors
from samora_monai.report.case_report import CaseReport
from samora_monai.report.provenance import Provenance, command_line

VOID = {"meta", "link", "img", "br"}
NAMES = ["background", "liver", '<b>"left" & right</b></script>', "never"]
BROWSER = find_browser()


class Page(HTMLParser):
    """Parse tags with their attributes and text, and check that they are nested correctly."""

    def __init__(self, source: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.texts: dict[str, list[str]] = {}  # by enclosing tag
        self.open: list[str] = []
        self.feed(source)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        assert len(dict(attrs)) == len(attrs), f"an attribute of {tag} is given twice"
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: Any) -> None:
        self.handle_starttag(tag, attrs)
        self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open:
            self.texts.setdefault(self.open[-1], []).append(data)

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attrs for name, attrs in self.tags if name == tag]


def item(path: str, shift: int = 0, classes: tuple[int, ...] = (1, 2)) -> dict[str, MetaTensor]:
    affine = torch.diag(torch.tensor([-1.0, -1.0, 2.0, 1.0]))
    label, pred = torch.zeros(1, 32, 32, 6), torch.zeros(1, 32, 32, 6)
    for index in classes:
        label[0, 4:12, 14 * index - 10 : 14 * index, 1:4] = index
        pred[0, 4 + shift : 12 + shift, 14 * index - 10 : 14 * index, 1:4] = index
    image = MetaTensor(torch.full((1, 32, 32, 6), 0.2), affine=affine, meta={"filename_or_obj": path})
    return {"image": image, "label": MetaTensor(label, affine=affine), "pred": MetaTensor(pred, affine=affine)}


def report(folder: Path, items: list[dict[str, MetaTensor]], names: list[str] = NAMES) -> str:
    weights = folder / "model.pt"
    weights.write_bytes(b"weights")
    model = ModelSettings.from_dict({"encoder": "tiny", "class_names": names})
    provenance = Provenance(Cases((), ({},) * len(items), (), None, None, "/data/<x>"), weights, model, "cpu")
    engine: Any = Engine(lambda engine, batch: batch)
    CaseReport(folder, model, provenance).attach(engine)
    engine.run([[one] for one in items])
    return (folder / "report.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Five cases: shifted by 0 to 3 voxels, and one without a class."""
    odd = "/d/\"><script>alert(1)' \u202e\udcff\x07.nii.gz"
    items = [item(f"/d/case{shift}.nii.gz", shift) for shift in range(3)]
    return report(tmp_path_factory.mktemp("report"), [*items, item(odd, 6), item("/d/empty.nii.gz", classes=())])


def test_page_is_complete_and_self_contained(source: str):
    page = Page(source)
    assert source.startswith("<!DOCTYPE html>") and page.all("html") == [{"lang": "en"}]
    assert not {"script", "iframe", "object", "form", "base"} & {tag for tag, _ in page.tags}
    for tag, attributes in page.tags:
        for name in ("src", "href", "srcset", "action", "data"):
            assert attributes.get(name, "data:").startswith("data:"), (tag, name)
        assert not [name for name in attributes if name.startswith("on")]
    assert not re.search(r"@import|url\(|http", "".join(page.texts["style"]))
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids)) and {a["aria-labelledby"] for a in page.all("section")} == set(ids)


def test_pictures_decode_and_are_described(source: str):
    images = Page(source).all("img")
    assert len(images) == 9
    for image in images:
        head, data = image["src"].split(",")
        picture = Image.open(io.BytesIO(base64.b64decode(data, validate=True)))
        assert head == "data:image/png;base64"
        assert picture.size == (int(image["width"]), int(image["height"])) == (640, 640)
        assert image["alt"].endswith(".")
    assert images[0]["alt"].startswith('Scan of case "><script>alert(1)')
    assert images[1]["alt"] == f"Reference on the same slice: liver, {NAMES[2]}."


def test_tables_have_headers(source: str):
    page = Page(source)
    tables = page.all("table")
    assert len(tables) == len(page.all("caption")) == 2 + 3 + 2
    assert all(header["scope"] in ("col", "row") for header in page.all("th"))
    assert [h for h in ("h1", "h2", "h3") for _ in page.all(h)] == ["h1"] + ["h2"] * 4 + ["h3"] * 3


def test_tables_have_the_metrics(source: str):
    """A shift by one of the 8 rows leaves an overlap of 7 / 8, by two 6 / 8, by six 2 / 8."""
    dice, hd95 = re.findall(r"<tbody role.*?</tbody>", source, re.DOTALL)
    rows = [re.findall(r'class="number.*?">(.*?)</td>', row) for row in dice.splitlines() if "<tr" in row]
    assert rows[0] == rows[1] == ["4", "0", "0", "0.719", "0.812"]
    assert rows[2] == ["0", "0", "0", "\u2013", "\u2013"] and "<svg" not in dice.splitlines()[3]
    hd_rows = [re.findall(r'class="number.*?">(.*?)</td>', row) for row in hd95.splitlines() if "<tr" in row]
    assert hd_rows[0] == ["4", "2.2", "1.5"] and hd_rows[2] == ["0", "\u2013", "\u2013"]
    assert dice.count('role="img"') == hd95.count('role="img"') == 2


def test_cases_are_ranked_and_explained(source: str):
    page = Page(source)
    assert [re.sub(", mean.*", "", text) for text in re.findall(r"<h3>(.*?): <bdi>", source)] == [
        "Worst case", "Median case", "Best case",
    ]  # fmt: skip
    assert page.texts["h3"] == [
        "Worst case: ", ", mean Dice 0.250", "Median case: ", ", mean Dice 0.750", "Best case: ", ", mean Dice 1.000",
    ]  # fmt: skip
    assert page.texts["bdi"][2:] == ["case2", "case2", "case0", "case0"]
    shown = "".join(page.texts["p"])
    assert (
        "Axial slice 2 of 6, counted from the feet: the slice where prediction and reference differ most in liver, "
        in shown
    )
    assert "(Dice 0.250, the lowest of this case), by 240 pixels." in shown  # 2 classes x 12 columns x 10 rows
    assert "Not ranked, as no class is in their reference: empty." in shown
    remarks = re.findall(r'<td class="remark.*?">(.*?)</td>', source)
    assert remarks == ["", "", "absent from reference and prediction"] * 3


def test_odd_names_are_escaped(source: str):
    page = Page(source)
    assert page.texts["bdi"][0] == "\"><script>alert(1)' \u202e\\udcff\ufffd"
    assert NAMES[2] in page.texts["th"] and not page.all("b")


def test_run_is_described(source: str):
    facts = dict(re.findall(r'<tr><th scope="row">(.*?)</th><td><code>(.*?)</code>', source))
    assert facts["Data set"] == "/data/&lt;x&gt;" and facts["Scans"] == "5 (validation)"
    assert facts["Checkpoint SHA-256"] == hashlib.sha256(b"weights").hexdigest()
    assert facts["Checkpoint"].endswith("/model.pt") and re.match(r"\d{4}-\d\d-\d\d ", facts["Checkpoint written"])
    assert f"samora_monai {__version__}, monai " in facts["Versions"] and "cpu (" in facts["Device"]
    assert (facts["encoder"], facts["window"]) == ("tiny", "[-125, 275]")


def test_command_line_can_be_repeated(monkeypatch: pytest.MonkeyPatch):
    words = ["run", "--config_file", "['a b.yaml','c']", "--x", "it's $HOME", "--y", 'a "b"', "--z", ""]
    monkeypatch.setattr("sys.argv", ["/lib/monai/bundle/__main__.py", *words])
    assert command_line().startswith("python -m monai.bundle run --config_file \"['a b.yaml','c']\" ")
    assert shlex.split(command_line()) == ["python", "-m", "monai.bundle", *words]
    monkeypatch.setattr("sys.argv", ["own.py", "1"])
    assert command_line() == "own.py 1"


def test_missed_classes_and_false_alarms_are_remarked(tmp_path: Path):
    """One case: class 1 is missed, class 2 is a false alarm."""
    broken = item("/d/a.nii.gz", classes=(1, 2))
    broken["label"][broken["label"] == 2] = 0
    broken["pred"][broken["pred"] == 1] = 0
    source = report(tmp_path, [broken])
    assert "The only case" in source and "in liver (Dice 0.000, the lowest of this case), by 80 pix" in source
    assert re.findall(r'<td class="remark bad">(.*?)</td>', source) == ["missed", "false alarm"]
    assert len(Page(source).all("img")) == 3


def test_page_without_ranked_cases(tmp_path: Path):
    source = report(tmp_path, [item("/d/a.nii.gz", classes=())])
    assert (
        not Page(source).all("img")
        and "Not ranked, as no class is in their reference: a." in source
        and "mean Dice \u2013" in source
    )


def test_page_of_twenty_classes(tmp_path: Path):
    names = ["background", *(f"organ {index}" for index in range(1, 21))]
    rows = Page(report(tmp_path, [item("/d/a.nii.gz"), item("/d/b.nii.gz", 1)], names)).texts["th"]
    assert rows.count("organ 20") == 2 and rows.count("20 organ 20") == 2


# ---- in a browser


def browse(*arguments: str) -> subprocess.CompletedProcess[str]:
    assert BROWSER is not None
    return subprocess.run([BROWSER, *BROWSER_FLAGS, *arguments], capture_output=True, text=True, timeout=60, check=True)


@pytest.mark.skipif(BROWSER is None, reason=f"none of {', '.join(BROWSERS)} is installed, nor is CHROME_BIN set")
def test_in_chromium(source: str, tmp_path: Path):
    """The page renders without console messages, shows the picture of the worst case, and fits a phone's width."""
    file, picture = tmp_path / "report.html", tmp_path / "page.png"
    file.write_text(source, encoding="utf-8")
    told = browse(f"--screenshot={picture}", "--window-size=1200,2400", file.as_uri()).stderr
    assert "CONSOLE" not in told, told
    pixels = np.asarray(Image.open(picture).convert("RGB")).reshape(-1, 3)
    tint = np.round(255 * (0.2 * (1 - TINT) + TINT * class_colors(3)[1]))
    assert (np.abs(pixels - tint).max(-1) <= 2).sum() > 10_000
    assert ((pixels == 51).all(-1)).sum() > 100_000  # the scan around it

    probe = """<script>window.onload = () => { const found = JSON.stringify([
      [...document.images].every(i => i.complete && i.naturalWidth === 640),
      document.images.length, document.documentElement.scrollWidth]);
      document.body.setAttribute("data-probe", found); parent.postMessage(found, "*"); }</script></body>"""
    allowed = re.sub(r"<meta http-equiv=.*?>", "", source)
    file.write_text(allowed.replace("</body>", probe), encoding="utf-8")
    phone = tmp_path / "phone.html"  # a window cannot be as narrow as a phone
    phone.write_text(
        """<body><script>window.onmessage = e => document.body.setAttribute("data-found", e.data)</script>
        <iframe src="report.html" width="390" height="800" style="border: 0"></iframe></body>""",
        encoding="utf-8",
    )
    dom = browse("--dump-dom", "--virtual-time-budget=5000", phone.as_uri()).stdout
    assert re.search(r'data-found="(.*?)"', dom)[1] == "[true,9,390]"  # type: ignore[index]

    file.write_text(source.replace("</body>", probe), encoding="utf-8")  # the page's policy blocks scripts
    finished = browse("--dump-dom", file.as_uri())
    assert "CONSOLE" in finished.stderr and "data-probe=" not in finished.stdout
