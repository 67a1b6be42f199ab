"""A trained model outside of this package: its ONNX and `torch.export` files give its logits."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch

from samora_monai.networks import LEVELS, PRESETS, build_segmenter
from tests.bundles.command_line import Bundle
from tests.label.models import write_model
from tests.tiny import TINY, image, randomise

SIZE = 64
ONE_WINDOW = TINY | {"window_size": 14}  # as vit_b at 224: the token grid is not larger than a window
SAMED: dict[str, Any] = {"encoder": ONE_WINDOW, "experts": ["task"], "fusion": None}
SAMORA: dict[str, Any] = {"encoder": ONE_WINDOW, "experts": list(LEVELS), "fusion": "attention"}
HIERARCHICAL = SAMED | {"decoder": "hierarchical"}
HSAMORA = SAMORA | {"encoder": ONE_WINDOW | {"depth": 1}, "decoder": "hierarchical"}
SAM2 = PRESETS["sam2_mini"] | {"stages": (1, 1, 1, 1), "global_att_blocks": ()}
# as the README gives it
CONVERTER = (
    "{'dynamo':True,'external_data':False,'input_names':['image'],'output_names':['pred'],"
    "'dynamic_axes':{'image':{0:'batch'}}}"
)


def network(settings: Mapping[str, Any]) -> torch.nn.Module:
    """The one that `write_model` writes."""
    net = build_segmenter(image_size=SIZE, num_classes=6, **settings)
    randomise(net)
    return net.eval()


def channels(settings: Mapping[str, Any]) -> int:
    """A slice, with `context` its neighbours too."""
    return 2 * settings.get("context", 0) + 1


def logits(settings: Mapping[str, Any], x: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return network(settings)(x)


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param(SAMORA | {"encoder": ONE_WINDOW | {"depth": 1}}, id="SAMora, one block"),
        pytest.param(SAMED | {"encoder": "sam2_mini"}, id="SAMed on SAM 2", marks=pytest.mark.slow),
        pytest.param(SAMED, id="SAMed", marks=pytest.mark.slow),
        pytest.param(SAMED | {"context": 1}, id="SAMed, neighbouring slices", marks=pytest.mark.slow),
        pytest.param(SAMORA, id="SAMora", marks=pytest.mark.slow),
        pytest.param(
            SAMORA | {"encoder": SAM2, "experts": ["image", "patch"]}, id="SAMora on SAM 2", marks=pytest.mark.slow
        ),
        pytest.param(HIERARCHICAL, id="H-SAM", marks=pytest.mark.slow),
        pytest.param(HIERARCHICAL | {"encoder": "sam2_mini"}, id="H-SAM on SAM 2", marks=pytest.mark.slow),
        pytest.param(SAMORA | {"encoder": TINY}, id="padded windows", marks=pytest.mark.slow),
    ],
)
def test_onnx_gives_the_logits_of_torch(bundle: Bundle, settings: Mapping[str, Any]):
    """Of one file, with batches of other sizes than it was exported with."""
    write_model(bundle.root, **settings)
    words = (
        "--config_file",
        "configs/inference.json",
        "--ckpt_file",
        "models/model.pt",
        "--filepath",
        "models/model.onnx",
    )
    words += (
        "--use_trace",
        "True",
        "--input_shape",
        f"[2,{channels(settings)},{SIZE},{SIZE}]",
        "--converter_kwargs",
        CONVERTER,
    )
    finished = bundle.command_line("onnx_export", "network_def", *words, cwd=bundle.root)
    assert finished.code == 0, finished
    file = bundle.root / "models" / "model.onnx"
    assert sorted(path.name for path in file.parent.iterdir()) == ["model.json", "model.onnx", "model.pt"]
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    assert [node.name for node in session.get_inputs() + session.get_outputs()] == ["image", "pred"]
    for batch in (1, 3):
        x = image(batch, channels(settings), SIZE, SIZE, seed=batch)
        expected = logits(settings, x).numpy()
        (pred,) = session.run(None, {"image": x.numpy()})
        assert np.abs(expected).max() > 0.1
        np.testing.assert_allclose(pred, expected, rtol=0, atol=1e-3)


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param(HSAMORA, id="H-SAMora, one block"),
        pytest.param(
            SAMED | {"encoder": SAM2, "context": 1}, id="SAMed on SAM 2, neighbouring slices", marks=pytest.mark.slow
        ),
        pytest.param(HSAMORA | {"encoder": SAM2}, id="H-SAMora on SAM 2", marks=pytest.mark.slow),
        pytest.param(SAMED, id="SAMed", marks=pytest.mark.slow),
        pytest.param(SAMORA, id="SAMora", marks=pytest.mark.slow),
        pytest.param(HIERARCHICAL, id="H-SAM", marks=pytest.mark.slow),
    ],
)
def test_exported_program_gives_the_logits(settings: Mapping[str, Any], tmp_path: Path):
    """Saved and loaded, for any number of slices; in float64, where nothing but rounding is left of a difference."""
    net = network(settings).double()
    shapes = {"x": {0: torch.export.Dim("batch")}}
    program = torch.export.export(net, (image(2, channels(settings), SIZE, SIZE).double(),), dynamic_shapes=shapes)
    torch.export.save(program, tmp_path / "model.pt2")
    exported = torch.export.load(tmp_path / "model.pt2").module()
    with torch.no_grad():
        for batch in (1, 3):
            x = image(batch, channels(settings), SIZE, SIZE, seed=batch).double()
            torch.testing.assert_close(exported(x), net(x), rtol=0, atol=1e-9)
