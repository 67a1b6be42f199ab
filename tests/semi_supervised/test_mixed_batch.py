"""What the network gets of labelled and unlabelled slices."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from ignite.engine import Engine
from monai.engines import PrepareBatchExtraInput
from torch import Tensor, nn

from samora_monai.handlers import WeightAverage
from samora_monai.semi_supervised import MixedBatch
from samora_monai.semi_supervised.mixed_batch import ramp, random_boxes
from tests.tiny import refused

SIZE = 12


class Threshold(nn.Module):
    """Class 1 with the probability of the grey value; the weight is a factor of that probability."""

    def __init__(self) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        p = (x.mean(1, keepdim=True) * self.factor).clamp(1e-6, 1 - 1e-6)
        return torch.cat([1 - p, p], 1).log()


def teacher(done: int = 0, total: int = 10) -> WeightAverage:
    """An average in the middle of a training."""
    average = WeightAverage(Threshold(), decay=0.99)
    engine = Engine(lambda engine, batch: None)
    average.attach(engine)
    engine.state.max_epochs, engine.state.epoch_length, average.updates = 1, total, done
    return average


def batch(count: int = 5, channels: int = 1) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    image, strong, weak = (torch.rand(count, channels, SIZE, SIZE, generator=generator) for _ in range(3))
    label = torch.randint(0, 2, (count, 1, SIZE, SIZE), generator=generator, dtype=torch.uint8)
    return {"image": image, "label": label, "unlabeled": strong, "weak": weak}


@pytest.mark.parametrize("channels", [1, 3])
def test_is_the_equation_slice_by_slice(channels: int):
    """With the boxes of the same seed: half of them pasted inwards, the others outwards."""
    data = batch(channels=channels)
    prepare = MixedBatch(teacher(done=5), unlabeled_weight=0.4, confidence=0.7, ramp_up=1.0)
    torch.manual_seed(1)
    images, target, args, _ = prepare(data)
    torch.manual_seed(1)
    boxes = random_boxes(5, (SIZE, SIZE))
    assert images.shape == (10, channels, SIZE, SIZE) and target.shape == (10, 2, SIZE, SIZE)
    assert torch.equal(images[:5], data["image"]) and torch.equal(target[:5, :1], data["label"].float())
    assert bool((target[:5, 1] == 1).all())
    assert len(args) == 1 and torch.equal(args[0].float(), target[:, :1])
    for i in range(5):
        for row in range(SIZE):
            for column in range(SIZE):
                inside = bool(boxes[i, 0, row, column])
                own = inside if i < 2 else not inside
                probability = float(data["weak"][i, :, row, column].mean())
                label, weight = float(data["label"][i, 0, row, column]), 1.0
                if not own:
                    label = float(probability > 0.5)
                    weight = 0.4 * math.exp(-1.25) * (max(probability, 1 - probability) >= 0.7)
                source = data["image" if own else "unlabeled"]
                assert torch.equal(images[5 + i, :, row, column], source[i, :, row, column])
                assert target[5 + i, :, row, column].tolist() == pytest.approx([label, weight])


def test_the_average_teaches_and_gets_no_gradient():
    """Not the network, whose weights were changed in the meantime."""
    average = teacher()
    assert isinstance(average.module, Threshold)
    average.module.factor.fill_(0.1)  # never class 1
    _, target, _, _ = MixedBatch(average, ramp_up=0.0)(batch())
    pseudo = target[5:, 1] < 1
    assert not target[5:, 0][pseudo].any() and not target.requires_grad
    assert set(target[5:, 1].unique().tolist()) == {0.5, 1.0}  # all count from the start


def test_without_unlabelled_slices_it_is_monais():
    data = {key: value for key, value in batch().items() if key in ("image", "label")}
    state = torch.get_rng_state()
    found: Any = MixedBatch(WeightAverage(Threshold()))(data)
    expected = PrepareBatchExtraInput("label")(data)
    assert torch.equal(torch.get_rng_state(), state)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    assert MixedBatch(teacher(), extra_keys=[])(batch())[2] == ()


def test_amp_is_bfloat16_for_the_teacher_alone():
    class Convolution(nn.Conv2d):
        dtype: torch.dtype

        def forward(self, x: Tensor) -> Tensor:
            y = super().forward(x)
            self.dtype = y.dtype
            return y

    average = WeightAverage(Convolution(1, 3, 1), decay=0.99)
    average.attach(engine := Engine(lambda engine, batch: None))
    engine.state.max_epochs, engine.state.epoch_length = 1, 10
    for amp, dtype in ((False, torch.float32), ("true", torch.bfloat16)):
        images, target, _, _ = MixedBatch(average, amp=amp)(batch())
        assert average.module.dtype == dtype
        assert images.dtype == target.dtype == torch.float32


def test_needs_a_teacher():
    with refused("ema null", "--ema 0.99"):
        MixedBatch(WeightAverage(Threshold()))(batch())


@pytest.mark.parametrize(
    ("progress", "length", "expected"),
    [(0, 0.5, math.exp(-5)), (0.25, 0.5, math.exp(-1.25)), (0.5, 0.5, 1), (0.9, 0.5, 1), (0, 0, 1)],
)
def test_ramp_is_that_of_the_mean_teacher(progress: float, length: float, expected: float):
    assert ramp(progress, length) == pytest.approx(expected)


def test_boxes_have_two_thirds_of_each_side_and_lie_anywhere():
    boxes = random_boxes(400, (9, 12))
    assert boxes.shape == (400, 1, 9, 12) and boxes.dtype == torch.bool
    assert boxes.flatten(1).sum(1).tolist() == [6 * 8] * 400
    rows, columns = boxes[:, 0].any(2), boxes[:, 0].any(1)
    assert set(rows.float().argmax(1).tolist()) == {0, 1, 2, 3}
    assert set(columns.float().argmax(1).tolist()) == {0, 1, 2, 3, 4}
    assert torch.equal(boxes[:, 0], rows[:, :, None] & columns[:, None, :])
