"""The line that inference logs for a finished scan."""

from __future__ import annotations

import re
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from ignite.engine import Engine
from monai.data import MetaTensor
from monai.engines import IterationEvents
from monai.utils import MetaKeys

from samora_monai.checkpoints.model_settings import ModelSettings
from samora_monai.inference import InferenceLog
from samora_monai.inference.uncertainty import ENTROPY

MODEL = ModelSettings.from_dict({"encoder": "tiny", "class_names": ["background", "liver", "spleen"], "slice_axis": 1})


def test_line_has_slices_seconds_and_volumes(caplog: pytest.LogCaptureFixture):
    """600 voxels of 0.5 x 1 x 4 mm are 1.2 ml; slices are counted along the model's axis of the scan in RAS.

    The entropy is that of the inferer, which the postprocessing drops.
    """
    caplog.set_level("INFO", "samora_monai")
    pred = MetaTensor(torch.zeros(1, 12, 10, 7), affine=torch.diag(torch.tensor([-0.5, 1.0, 4.0, 1.0])))
    pred.meta |= {"filename_or_obj": "a.nii.gz", MetaKeys.SAVED_TO: "eval/a_seg.nii.gz"}
    empty = pred.clone()
    pred[0, :, :, :5] = 1
    items = [{"image": torch.zeros(1, 7, 10, 12), "pred": label} for label in (pred, empty)]

    def step(engine: Any, batch: Any) -> list[Any]:
        predicted = batch["pred"].clone()
        predicted.meta[ENTROPY] = torch.tensor([0.25])
        engine.state.output = {"pred": predicted}
        engine.fire_event(IterationEvents.FORWARD_COMPLETED)
        return [batch]

    engine: Any = Engine(step)
    engine.register_events(*IterationEvents)
    scans: Any = SimpleNamespace(taken=3, total=12)
    InferenceLog(MODEL, scans).attach(engine)
    engine.run(items)
    assert [re.sub(r"\d+\.\d s", "0.0 s", line) for line in caplog.messages] == [
        "[3/12] a.nii.gz -> eval/a_seg.nii.gz  10 slices, 0.0 s  liver 1.2 ml, entropy 0.25",
        "[3/12] a.nii.gz -> eval/a_seg.nii.gz  10 slices, 0.0 s  nothing found",
    ]
