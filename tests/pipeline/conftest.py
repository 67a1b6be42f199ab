"""Small stages: scripts in place of bundles."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from samora_monai.networks import build_segmenter
from samora_monai.pipeline.record import settings_hash
from samora_monai.pipeline.stages import Stage
from samora_monai.synthetic.phantoms import write_phantoms

# trains for some epochs, each of which adds a line to the result; a last checkpoint is a copy of a prepared one
TRAINING = """
import os, pathlib, sys, time
folder, epochs, seconds, text, prepared, resume = sys.argv[1:]
model, last = pathlib.Path(folder, 'models', 'model.pt'), pathlib.Path(folder, 'eval', 'last.pt')
states = [pathlib.Path(prepared, f'{epoch}.pt').read_bytes() for epoch in range(1, int(epochs) + 1)]
done = states.index(last.read_bytes()) + 1 if resume == 'True' else 0
lines = model.read_text().splitlines()[:done] if done else []

def write(path, content):
    path.parent.mkdir(exist_ok=True)
    path.with_suffix('.new').write_bytes(content)
    os.replace(path.with_suffix('.new'), path)

for epoch in range(done + 1, int(epochs) + 1):
    time.sleep(float(seconds))
    lines.append(f'{text} {epoch}')
    print(f'epoch {epoch}/{epochs}  {100 * epoch / int(epochs):.1f}%  loss 0.5  ETA 00:00:01', flush=True)
    write(model, '\\n'.join(lines).encode())
    write(last, states[epoch - 1])
"""
# copies the results of others and adds a line
SCORING = """
import sys, pathlib
result, *sources = map(pathlib.Path, sys.argv[1:])
result.parent.mkdir(parents=True, exist_ok=True)
result.write_text('+'.join(source.read_text() for source in sources))
"""


@dataclass(frozen=True)
class ScriptStage(Stage):
    """A stage whose command is a script."""

    script: Path = Path()
    arguments: tuple[str, ...] = ()

    def command(self, resume: bool = False) -> list[str]:
        words = [*self.arguments, str(resume)] if self.last else [*self.arguments]
        return [sys.executable, str(self.script), *words]


MakeStages = Callable[..., list[Stage]]


@pytest.fixture
def scan(tmp_path: Path) -> Path:
    """A file that all stages read."""
    path = tmp_path / "scan.nii.gz"
    path.write_text("voxels")
    return path


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The last checkpoints of ten epochs."""
    folder = tmp_path_factory.mktemp("prepared")
    for epoch in range(1, 11):
        torch.save({"trainer": {"iteration": 5 * epoch, "epoch_length": 5}}, folder / f"{epoch}.pt")
    return folder


@pytest.fixture
def make_stages(scan: Path, prepared: Path) -> MakeStages:
    """`make_stages(run)`: an expert, a fine-tuning that needs it, and an evaluation that needs that."""

    def make(
        run: Path, epochs: int = 3, seconds: float = 0.0, script: str = TRAINING, **settings: object
    ) -> list[Stage]:
        def written(text: str) -> Path:
            file = prepared / f"{settings_hash(text)}.py"
            file.write_text(text)
            return file

        def training(name: str, folder: Path, needs: tuple[str, ...]) -> Stage:
            own = {"epochs": epochs} | (settings if name == "fine_tuning" else {})
            return ScriptStage(
                name=name,
                bundle="samora_pixel_expert",
                folder=folder,
                workflow="training",
                configs=("train.yaml",),
                settings=own,
                places={},
                needs=needs,
                scans=(str(scan),),
                results=(folder / "models" / "model.pt",),
                last=folder / "eval" / "last.pt",
                work=float(epochs),
                script=written(script),
                arguments=(str(folder), str(epochs), str(seconds), name, str(prepared)),
            )

        expert = training("pixel_expert", run / "bundles" / "pixel_expert", ())
        tuning = training("fine_tuning", run / "samora", ("pixel_expert",))
        result = run / "results" / "summary.txt"
        evaluation = ScriptStage(
            name="evaluation",
            bundle="samora_pixel_expert",
            folder=tuning.folder,
            workflow="evaluating",
            configs=("train.yaml",),
            settings={},
            places={},
            needs=("fine_tuning",),
            scans=(str(scan),),
            results=(result,),
            work=1.0,
            script=written(SCORING),
            arguments=(str(result), str(expert.results[0]), str(tuning.results[0])),
        )
        return [expert, tuning, evaluation]

    return make


@pytest.fixture(scope="session")
def phantoms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two scans for training, one for validation, two without labels. Not to be changed."""
    folder = tmp_path_factory.mktemp("phantoms")
    write_phantoms(folder, num_training=2, num_validation=1, num_unlabeled=2, shape=(48, 48, 8))
    return folder


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A stand-in with random weights."""
    file = tmp_path_factory.mktemp("base") / "base.pt"
    torch.manual_seed(0)
    torch.save(build_segmenter("sam2_mini", 64, 1, 4, experts=()).state_dict(), file)
    return file
