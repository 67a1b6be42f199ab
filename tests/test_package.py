"""The structure of the package: which room may import which, and how large its parts may be."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from itertools import pairwise
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = "samora_monai"
NO_FILES_NO_ENGINES = {"ignite", "os", "pathlib", "shutil", "io", "json", "tempfile"}


def module_name(path: Path) -> str:
    """`samora_monai/data/slices.py` -> `samora_monai.data.slices`; an `__init__.py` has the name of its folder."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {module_name(path): path for path in sorted((ROOT / PACKAGE).rglob("*.py"))}


def imported_names(path: Path) -> Iterator[str]:
    """Every module that a file imports, anywhere in its code."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path} has a relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from (name if name in MODULES else str(node.module) for name in names)


IMPORTS = {module: set(imported_names(path)) for module, path in MODULES.items()}
OWN_IMPORTS = {module: {name for name in names if name in MODULES} for module, names in IMPORTS.items()}


def room(module: str) -> str:
    """The folder or file at the top of the package that a module belongs to."""
    return module.split(".")[1]


def drawn_arrows() -> dict[str, set[str]]:
    """The allowed arrows between rooms: the second diagram of docs/architecture.md is the rule."""
    diagram = re.findall(r"```mermaid\n(.*?)```", (ROOT / "docs" / "architecture.md").read_text(), re.DOTALL)[1]
    arrows: dict[str, set[str]] = {}
    for line in diagram.splitlines()[1:]:
        source, _, targets = line.strip().partition(" --> ")
        arrows.setdefault(source, set()).update(targets.split(" & ") if targets else ())
    for target in set().union(*arrows.values()):
        arrows.setdefault(target, set())
    return arrows


def below(source: str, arrows: dict[str, set[str]]) -> set[str]:
    """Every room that arrows lead to from `source`."""
    return set().union(*({target} | below(target, arrows) for target in arrows[source]))


def test_the_drawn_arrows_run_downwards_and_name_every_room():
    arrows = drawn_arrows()
    tuple(TopologicalSorter(arrows).static_order())  # raises CycleError where arrows form a circle
    assert set(arrows) == {room(module) for module in MODULES if module != PACKAGE}


def test_the_drawn_arrows_keep_networks_and_data_apart():
    arrows = drawn_arrows()
    assert below("networks", arrows) == {"strict", "settings", "errors"}
    assert below("data", arrows) == {"replacing", "settings", "errors"}
    order = ["demo", "workflow", "handlers", "pretraining", "checkpoints", "networks", "settings", "errors"]
    for upper, lower in pairwise(order):
        assert lower in below(upper, arrows), f"no way from {upper} down to {lower}"
        assert upper not in below(lower, arrows)


@pytest.mark.parametrize("module", MODULES)
def test_a_module_imports_its_own_room_and_those_below(module: str):
    others = OWN_IMPORTS[module] - {PACKAGE}  # the root holds the version, which everything may read
    if module == PACKAGE:
        assert not others, "the root of the package imports its rooms when they are first used"
        return
    arrows = drawn_arrows()
    wrong = [name for name in others if room(name) not in {room(module)} | below(room(module), arrows)]
    assert not wrong, f"{module} imports {wrong}, against the arrows of docs/architecture.md"


def test_no_modules_import_each_other_in_a_circle():
    try:
        tuple(TopologicalSorter(OWN_IMPORTS).static_order())
    except CycleError as e:
        pytest.fail(f"imports form a circle: {' <- '.join(e.args[1])}")


def test_everything_outside_the_package_imports_modules_that_exist():
    for folder in ("benchmarks", "label", "tests"):
        for path in (ROOT / folder).rglob("*.py"):
            wrong = {name for name in imported_names(path) if name.split(".")[0] == PACKAGE} - MODULES.keys()
            assert not wrong, f"{path.relative_to(ROOT)} imports {wrong}"


def test_the_root_offers_every_room():
    import samora_monai

    rooms = {room(module) for module in MODULES if module != PACKAGE}
    unlisted = {"bundles", "demo", "download", "errors", "pipeline", "replacing", "strict"}  # not for configs
    assert rooms == set(samora_monai.ROOMS) | unlisted


def test_networks_use_neither_engines_nor_files():
    for module in MODULES:
        if module.startswith(f"{PACKAGE}.networks"):
            outside = {name.split(".")[0] for name in IMPORTS[module]}
            assert not outside & NO_FILES_NO_ENGINES, f"{module} imports {outside & NO_FILES_NO_ENGINES}"


@pytest.mark.parametrize(
    ("folders", "most"), [((PACKAGE,), 300), (("tests", "benchmarks"), 400)], ids=["package", "tests"]
)
def test_no_file_is_two(folders: tuple[str, ...], most: int):
    """A module past 300 lines and a test file past 400 hold two ideas."""
    files = {path: len(path.read_text().splitlines()) for folder in folders for path in (ROOT / folder).rglob("*.py")}
    assert len(files) > 40
    assert not [f"{path.relative_to(ROOT)} has {lines} lines" for path, lines in files.items() if lines > most]


def test_no_folder_is_two():
    """A folder past 15 modules holds two ideas."""
    folders = [path.parent for path in MODULES.values() if path.name != "__init__.py"]
    assert not [folder.name for folder in set(folders) if folders.count(folder) > 15]
