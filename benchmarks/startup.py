"""Time to import the package, and to run inference on one tiny scan, relative to MONAI alone.

    python -m benchmarks.startup [--repeats 5]

Each command runs in a process of its own. The commands take turns, and the time of each is the minimum over its turns,
which depends least on other programs. Imports are compared with `import torch, monai`, and the inference of a `tiny`
network by the real bundle with `python -m monai.bundle run` of a config that does nothing.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.folder import CONFIG, write_model, write_scans

IMPORTS = {
    "`import torch, monai`": "import torch, monai",
    "`import samora_monai`": "import samora_monai",
    "the same with all rooms": "import samora_monai; [getattr(samora_monai, room) for room in samora_monai.ROOMS]",
}
ENVIRONMENT = {"OMP_WAIT_POLICY": "PASSIVE", **os.environ}


def run_commands(folder: Path) -> dict[str, list[str]]:
    """Write a model, a scan and an empty config to `folder`; the commands that use them, the empty one first."""
    write_scans(folder / "scans", 1, slices=4, side=64)
    write_model(folder / "model.pt", "tiny", 112, "SAMed")
    (folder / "empty.yaml").write_text("run: [$None]\n")
    bundle = [sys.executable, "-m", "monai.bundle", "run"]
    inference = [*bundle, "inference", "--config_file", str(CONFIG), "--checkpoint", str(folder / "model.pt")]
    inference += ["--dataset_dir", str(folder / "scans"), "--output_dir", str(folder / "labels"), "--device", "cpu"]
    return {
        "`monai.bundle run`, empty config": [*bundle, "--config_file", str(folder / "empty.yaml")],
        "`monai.bundle run inference`, one scan": inference,
    }


def seconds(command: list[str]) -> float:
    """Wall time of a command in a process of its own."""
    start = time.perf_counter()
    done = subprocess.run(command, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        raise SystemExit(f"error: {' '.join(command)} ended with code {done.returncode}:\n{done.stdout}")
    return time.perf_counter() - start


def minima(commands: dict[str, list[str]], repeats: int) -> dict[str, float]:
    """The minimum time of each command over `repeats` turns."""
    turns = [{name: seconds(command) for name, command in commands.items()} for _ in range(repeats)]
    return {name: min(turn[name] for turn in turns) for name in commands}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--repeats", type=int, default=5, help="turns of each command (default 5)")
    args = parser.parse_args()
    print("| command | seconds | beyond the first, s | ratio to the first |\n|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        imports = {name: [sys.executable, "-c", code] for name, code in IMPORTS.items()}
        for commands in (imports, run_commands(Path(folder))):
            times = minima(commands, args.repeats)
            first = next(iter(times.values()))
            for name, wall in times.items():
                print(f"| {name} | {wall:.2f} | {wall - first:+.2f} | {wall / first:.2f} |", flush=True)


if __name__ == "__main__":
    main()
