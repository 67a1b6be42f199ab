"""The few-shot study: systems and ablations over numbers of labelled scans and seeds."""

from functools import partial
from pathlib import Path

from samora_monai.pipeline.bundle_process import run_process as run_any_process

HERE = Path(__file__).parent
ROOT = HERE.parents[1]

# the overlays name classes of benchmarks.fewshot, which is not installed
run_process = partial(run_any_process, python_path=ROOT)
