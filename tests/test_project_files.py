"""Files around the package: versions that stand in several of them, commands, links, and the bundles in a wheel."""

from __future__ import annotations

import configparser
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest
import yaml

import samora_monai
from samora_monai.bundles import bundle_path
from samora_monai.errors import MissingFileError
from tests.tiny import refused

ROOT = Path(__file__).parents[1]
SETUP = configparser.ConfigParser()
SETUP.read(ROOT / "setup.cfg")
PAGES = sorted(
    path
    for pattern in ("*.md", "docs/*.md", "benchmarks/**/*.md", "bundles/*/docs/*.md")
    for path in ROOT.glob(pattern)
)
BUNDLE_PAGES = [ROOT / "README.md", ROOT / "docs" / "bundles.md", *sorted(ROOT.glob("bundles/*/docs/*.md"))]


def required(extra: str) -> list[str]:
    return SETUP["options.extras_require"][extra].split()


def hooks() -> list[dict]:
    return yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"][0]["hooks"]


def recipe(target: str) -> list[str]:
    """The commands of a target of the Makefile."""
    lines = re.search(rf"^{target}:.*\n((?:\t.+\n)+)", (ROOT / "Makefile").read_text(), re.MULTILINE)[1]
    return [line.strip() for line in lines.splitlines()]


def test_pre_commit_runs_the_commands_of_make_lint():
    assert [hook["entry"].replace(".venv/bin/", "") for hook in hooks()] == [
        command.replace("$(BIN)/", "") for command in recipe("lint")
    ]


def test_pre_commit_pins_the_versions_of_setup_cfg():
    pins = {pin for hook in hooks() for pin in hook.get("additional_dependencies", ())}
    assert pins == {pin for pin in required("test") if pin.startswith("ruff==")} != set()


def test_ci_runs_the_commands_of_the_gate():
    gate = [line for line in (ROOT / ".ci" / "run").read_text().splitlines() if re.search(r"\bmake\b", line)]
    jobs = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())["jobs"].values()
    assert [step["run"] for job in jobs for step in job["steps"] if "run" in step] == gate


def test_the_oldest_versions_are_the_lower_bounds():
    bounds = dict(re.findall(r"^([\w-]+)>=([\d.]+)", SETUP["options"]["install_requires"].strip(), re.MULTILINE))
    pins = dict(line.split("==") for line in (ROOT / "tests" / "oldest.txt").read_text().splitlines() if "==" in line)
    assert {name: version for name, version in bounds.items() if name != "torch"}.keys() == pins.keys()
    assert all(f"{pin}.".startswith(f"{bounds[name]}.") for name, pin in pins.items())


def test_the_version_is_the_same_everywhere():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    releases = re.findall(r"^## \[?(\d[\d.]*)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert citation["version"] == releases[0] == samora_monai.__version__


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_and_paths_in_the_documentation_exist(page: Path):
    text = page.read_text()
    links = [link.split("#")[0] for link in re.findall(r"\]\(([^)\s]+)\)", text) if not re.match(r"\w+:|#", link)]
    assert not [link for link in links if not (page.parent / link).exists()]
    for path in re.findall(r"`((?:tests|benchmarks|samora_monai|bundles|docs)/[\w./]+\.\w+)`", text):
        assert (ROOT / path).exists() or (page.parents[1] / path).exists(), f"{page.name} names {path}"


# options of other programs and of `monai.bundle` itself
OTHER_OPTIONS = {
    "run": "config_file args_file tracking tracking_uri experiment_name run_name",
    "monai.bundle": "bundle_path meta_file filepath _meta_ ckpt_file input_shape use_trace converter_kwargs",
    "torchrun": "standalone nnodes nproc_per_node rdzv_id rdzv_backend rdzv_endpoint rdzv_",
    "sbatch": "job-name nodes ntasks-per-node gpus-per-node cpus-per-task gpus time requeue array output",
    "samora": "output hours steps jobs compare dry_run budget",
    "others": "index-url no-deps logdir backend-store-uri conf help",
}


@pytest.mark.parametrize("page", BUNDLE_PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_options_in_the_documentation_exist(page: Path):
    """`--name` is a setting of a bundle, `--name::argument` below one."""
    configs = [*ROOT.glob("bundles/*/configs/**/*.yaml"), *ROOT.glob("bundles/*/configs/inference.json")]
    settings = {key.split("::")[0] for path in configs for key in yaml.load(path.read_text(), yaml.BaseLoader)}
    known = settings | set(" ".join(OTHER_OPTIONS.values()).split())
    named = re.findall(r"(?<![\w-])--(\w[\w-]*)", page.read_text())
    assert set(named) - known == set()


def test_names_of_code_in_the_documentation_exist():
    names = re.findall(r"`(\w+)\.(\w+)`", (ROOT / "docs" / "architecture.md").read_text())
    named = [(room, name) for room, name in names if room in samora_monai.ROOMS and name not in ("json", "yaml")]
    assert len(named) > 20
    for room, name in named:
        assert hasattr(getattr(samora_monai, room), name) or (ROOT / "samora_monai" / room / f"{name}.py").exists()


def test_no_merge_is_half_done():
    suffixes = {".py", ".md", ".yaml", ".yml", ".json", ".cfg", ".toml", ".cff", ".txt", ".conf"}
    folders = ("samora_monai", "bundles", "tests", "benchmarks", "label", "docs")
    files = [*ROOT.glob("*"), *(file for folder in folders for file in (ROOT / folder).rglob("*"))]
    texts = {file: file.read_text() for file in files if file.is_file() and file.suffix in suffixes}
    assert len(texts) > 200
    assert not [file for file, text in texts.items() if re.search(r"^[<>]{7} ", text, re.MULTILINE)]


def test_a_checkout_finds_its_bundles():
    assert bundle_path("samora_pixel_expert") == ROOT / "bundles" / "samora_pixel_expert"
    with refused("no bundle 'samora'", "samora_image_expert, ", error=MissingFileError):
        bundle_path("samora")


def build_wheel(folder: Path) -> Path:
    """A wheel of a copy of this checkout, in which bundles have been used."""
    source = folder / "source"
    for name in ("samora_monai", "bundles"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("*.pt", "*.pth", "eval"))
    for name in ("setup.py", "setup.cfg", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for used in ("models/model.pt", "models/model.json", "eval/report.html"):
        file = source / "bundles" / "samora_segmentation" / used
        file.parent.mkdir(exist_ok=True)
        file.write_text("result of a run")
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*pip, "--wheel-dir", str(folder), str(source)], check=True, capture_output=True, text=True)
    (wheel,) = folder.glob("*.whl")
    return wheel


def test_a_wheel_holds_its_bundles_and_starts_the_demo(tmp_path: Path):
    wheel = build_wheel(tmp_path)
    tracked = {
        str(path.relative_to(ROOT))
        for path in (ROOT / "bundles").rglob("*")
        if path.is_file() and not path.match("eval/*") and (path.parent.name != "models" or path.name == ".gitkeep")
    }
    with zipfile.ZipFile(wheel) as archive:
        packed = {name.removeprefix("samora_monai/") for name in archive.namelist() if "/bundles/" in name}
    assert packed == tracked

    # a fresh environment, with the dependencies of this one
    environment = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(environment)], check=True)
    python = environment / "bin" / "python"
    site = Path(sysconfig.get_path("purelib", vars={"base": str(environment), "platbase": str(environment)}))
    shutil.unpack_archive(wheel, site, "zip")  # a wheel of pure Python is installed by unpacking it
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")

    def run(*arguments: str) -> str:
        without = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        done = subprocess.run([str(python), *arguments], cwd=tmp_path, env=without, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    code = "import samora_monai.bundles as b; print(b.bundle_path('samora_segmentation'))"
    bundle = Path(run("-c", code))
    assert bundle == site / "samora_monai" / "bundles" / "samora_segmentation"
    assert (bundle / "configs" / "recipes" / "samora.yaml").is_file()
    assert "--decoder" in run("-m", "samora_monai.demo", "--help")
