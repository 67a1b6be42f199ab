"""`python -m monai.bundle ...` without its seven seconds of imports, and the bundle that it is run on.

Every command runs in a process of its own, forked from one that has imported everything and computed nothing.
"""

from __future__ import annotations

import atexit
import multiprocessing
import os
import runpy
import shutil
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
BUNDLES = ROOT / "bundles"
BUNDLE = BUNDLES / "samora_segmentation"
EXPERT_BUNDLES = {level: BUNDLES / f"samora_{level}_expert" for level in ("image", "patch", "pixel")}
CONFIGS = {
    "training": ("train.yaml",),
    "teacher": ("train.yaml", "teacher.yaml"),
    "evaluating": ("train.yaml", "evaluate.yaml"),
    "inference": ("inference.json",),
}
TIMEOUT = 120  # seconds for one command
# a network that trains for two epochs in a second; it hardly learns, so that its predictions hold every class
FAST: dict[str, Any] = {
    "encoder": "tiny",
    "image_size": 64,
    "sam_checkpoint": "none",
    "trainable": "all",
    "epochs": 2,
    "warmup": 2,
    "batch_size": 4,
    "val_interval": 1,
    "learning_rate": 1e-6,
    "seed": 2,  # of random weights that predict every class
}

# the same for the expert bundles: some steps of a tiny student, of a tiny teacher, and of both
FAST_RUN: dict[str, Any] = {"image_size": 64, "epochs": 2, "warmup": 2, "batch_size": 8}
FAST_TEACHER: dict[str, dict[str, Any]] = {
    "image": FAST_RUN | {"teacher_network": "tiny", "view_size": 32},
    "patch": FAST_RUN | {"teacher_network": "tiny"},
}
FAST_EXPERT: dict[str, dict[str, Any]] = {
    "image": FAST_RUN | {"encoder": "tiny", "teacher_network": "tiny"},
    "patch": FAST_RUN | {"encoder": "tiny", "teacher_network": "tiny"},
    "pixel": FAST_RUN | {"encoder": "tiny", "decoder_features": 4},
}


@dataclass(frozen=True)
class Finished:
    """What a command left: its exit code, and what it printed."""

    code: int
    out: str
    err: str

    @property
    def complaints(self) -> list[str]:
        """Lines on stderr, without MONAI's security notice that comes with every run."""
        return [line for line in self.err.splitlines() if not line.startswith("parsing config_file")]


def refused(finished: Finished, *words: str) -> None:
    """One line on stderr that holds all `words`, exit code 1, and no other word of an error."""
    assert finished.code == 1, finished
    assert len(finished.complaints) == 1, finished
    (line,) = finished.complaints
    assert line.startswith("error: ") and len(line) < 700
    assert not any(word in finished.out for word in ("ERROR", "Traceback", "terminating")), finished.out
    for word in words:
        assert str(word) in line, f"{word!r} not in: {line}"


class CommandLine:
    """Runs `python -m monai.bundle ARGUMENTS` in forked processes.

    Args:
        folder: where the output of the commands is kept.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.count = 0
        os.environ["OMP_NUM_THREADS"] = "1"  # the server inherits it
        self.context = multiprocessing.get_context("forkserver")
        self.context.set_forkserver_preload(
            ["monai.bundle", "samora_monai", "torch._dynamo", "torch.utils.tensorboard", "ignite.handlers"]
        )

    def start(
        self, *arguments: object, cwd: Path, env: Mapping[str, str] | None = None
    ) -> tuple[BaseProcess, Callable[[], Finished]]:
        """The started process, and a function that waits for its end."""
        self.count += 1
        out, err = (self.folder / f"{self.count}.{name}" for name in ("out", "err"))
        call = ([str(a) for a in arguments], str(cwd), str(out), str(err), dict(env or {}))
        process = self.context.Process(target=_command, args=call)
        process.start()

        def wait() -> Finished:
            process.join(TIMEOUT)
            text = out.read_text(), err.read_text()
            if process.exitcode is None:
                process.kill()
                raise TimeoutError(f"still running: {text}")
            return Finished(process.exitcode, *text)

        return process, wait

    def __call__(self, *arguments: object, cwd: Path) -> Finished:
        return self.start(*arguments, cwd=cwd)[1]()


def _command(arguments: Sequence[str], cwd: str, out: str, err: str, env: Mapping[str, str]) -> None:
    """What the interpreter does with `-m monai.bundle ARGUMENTS`, in the forked process."""
    for descriptor, file in ((1, out), (2, err)):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), descriptor)
    multiprocessing.set_start_method(None, force=True)  # of data loaders' workers: the platform's, not this server's
    os.environ.update(env)
    os.chdir(cwd)
    sys.path.insert(0, cwd)
    import monai.bundle

    sys.argv = [str(Path(monai.bundle.__file__).with_name("__main__.py")), *arguments]
    code = 0
    try:
        runpy.run_module("monai.bundle", run_name="__main__")
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BaseException:
        code = 1
        sys.excepthook(*sys.exc_info())  # type: ignore[arg-type]
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


class Bundle:
    """A copy of a bundle in a folder of its own, and its commands.

    Args:
        root: where to copy it to.
        command_line: what runs the commands.
        source: the bundle.
    """

    def __init__(self, root: Path, command_line: CommandLine, source: Path = BUNDLE) -> None:
        self.root = root
        self.command_line = command_line
        shutil.copytree(source, root, ignore=shutil.ignore_patterns("eval", "models"))
        (root / "models").mkdir()

    @property
    def model(self) -> Path:
        return self.root / "models" / "model.pt"

    def configs(self, *names: str) -> list[str]:
        return [str(self.root / "configs" / name) for name in names]

    def arguments(self, workflow: str, *overlays: str, **settings: object) -> list[str]:
        """`run WORKFLOW --config_file ... --bundle_root ... --KEY VALUE ...`"""
        config_file = str(self.configs(*CONFIGS[workflow], *overlays))
        words = ["run", workflow, "--config_file", config_file, "--bundle_root", str(self.root)]
        for key, value in settings.items():
            words += [f"--{key}", str(value)]
        return words

    def start(
        self, workflow: str, *overlays: str, env: Mapping[str, str] | None = None, **settings: object
    ) -> tuple[BaseProcess, Callable[[], Finished]]:
        words = self.arguments(workflow, *overlays, **settings)
        return self.command_line.start(*words, cwd=self.root.parent, env=env)

    def __call__(self, workflow: str, **settings: object) -> Finished:
        """Run a workflow from the folder beside the bundle's."""
        return self.start(workflow, **settings)[1]()


def files(folder: Path) -> dict[str, tuple[int, int]]:
    """Every file below `folder`, hidden ones too, with its size and time of change."""
    found = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): (path.stat().st_size, path.stat().st_mtime_ns) for path in found}


def wait_until(condition: Callable[[], bool], process: BaseProcess) -> None:
    """Poll `condition` while `process` runs."""
    end = time.monotonic() + TIMEOUT
    while not condition():
        assert process.is_alive() and time.monotonic() < end, "it did not happen"
        time.sleep(0.01)
