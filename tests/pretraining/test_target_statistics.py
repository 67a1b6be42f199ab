"""Standardised targets, dense targets of the image level, and what a constant vector explains."""

from __future__ import annotations

import logging

import pytest
import torch
import torch.nn.functional as F
from ignite.engine import Events
from monai.engines import SupervisedEvaluator
from torch import Tensor, nn

from samora_monai.handlers import ConstantTarget
from samora_monai.handlers.last_checkpoint import TrainableState
from samora_monai.pretraining import (
    DistillationLoss,
    DistillationStudent,
    SimCLRTeacher,
    TeacherTarget,
    measure_targets,
)
from samora_monai.pretraining.distillation import BATCHES
from samora_monai.pretraining.target_statistics import TargetStatistics
from tests.pretraining.small import SIMCLR
from tests.tiny import image, randomise, tiny


class Tokens(nn.Module):
    """Four tokens of five channels with different means and scales; the last channel hardly varies."""

    def forward(self, x: Tensor) -> Tensor:
        patches = F.adaptive_avg_pool2d(x, (2, 10)).reshape(len(x), 4, 5)
        return patches * torch.tensor([1, 5, 0.1, 3, 1e-7]) + torch.tensor([10.0, 0, -3, 1, 2])


BATCHES_OF_IMAGES = [{"image": image(3, 1, 8, 20, seed=i)} for i in range(BATCHES + 2)]


def student(**settings) -> DistillationStudent:
    return DistillationStudent(tiny(experts=("image",), train="experts"), out_dim=5, grid=2, **settings)


@pytest.mark.parametrize("normalize", [False, True])
def test_targets_have_mean_0_and_variance_1_over_the_first_batches(normalize):
    statistics = student(standardise=True).statistics
    target = TeacherTarget(Tokens(), normalize, statistics=statistics)
    assert target(BATCHES_OF_IMAGES[0])[1].isnan().all()  # not measured
    measure_targets(target, BATCHES_OF_IMAGES, "cpu")
    tokens = torch.cat([target(batch)[1] for batch in BATCHES_OF_IMAGES[:BATCHES]]).flatten(0, 1).double()
    varying = slice(0, 5 if normalize else 4)
    torch.testing.assert_close(tokens.mean(0), torch.zeros(5).double(), rtol=0, atol=1e-4)
    torch.testing.assert_close(tokens.std(0, correction=0)[varying], torch.ones(5).double()[varying], rtol=1e-4, atol=0)
    if not normalize:  # noise is not amplified
        assert statistics.std[0, 4] == pytest.approx(0.01 * float(statistics.std[0].mean()), rel=0.02)
        raw = TeacherTarget(Tokens(), False)(BATCHES_OF_IMAGES[0])[1]
        expected = (raw - statistics.mean[0]) / statistics.std[0]
        torch.testing.assert_close(target(BATCHES_OF_IMAGES[0])[1], expected)


def test_the_statistics_are_part_of_the_last_checkpoint():
    first, second = student(standardise=True), student(standardise=True)
    measure_targets(TeacherTarget(Tokens(), statistics=first.statistics), BATCHES_OF_IMAGES, "cpu")
    TrainableState(second).load_state_dict(TrainableState(first).state_dict())
    assert torch.equal(second.statistics.std, first.statistics.std) and not second.statistics.std.isnan().any()
    assert student().statistics is None and not [key for key in student().state_dict() if "statistics" in key]
    measure_targets(TeacherTarget(Tokens()), [], "cpu")  # nothing to measure


def test_the_pooled_vector_has_statistics_of_its_own():
    statistics, targets = TargetStatistics(3, parts=2), torch.randn(50, 1 + 4, 3) * 2 + 7
    targets[:, 0] = targets[:, 0] / 10 + 1
    statistics.measure([targets[:20], targets[20:]])
    out = statistics(targets)
    for part in (out[:, 0], out[:, 1:].flatten(0, 1)):
        torch.testing.assert_close(part.mean(0), torch.zeros(3), rtol=0, atol=1e-5)
        torch.testing.assert_close(part.std(0, correction=0), torch.ones(3), rtol=1e-5, atol=0)


# ---- dense targets


def test_the_map_of_simclr_averages_to_its_vector():
    teacher = SimCLRTeacher(SIMCLR | {"image_size": 64}).eval()
    randomise(teacher)
    x = image(2, 1, 50, 70)
    tokens = teacher.dense_features(x)
    assert teacher.grid == 2 and tokens.shape == (2, 5, teacher.out_dim)
    torch.testing.assert_close(tokens[:, 0], teacher(x))
    torch.testing.assert_close(tokens[:, 1:].mean(1), teacher(x))
    left = teacher.dense_features(torch.cat([x[..., :35], torch.zeros_like(x[..., 35:])], -1))
    assert (left[:, 2] - tokens[:, 2]).abs().max() > 2 * (left[:, 1] - tokens[:, 1]).abs().max()  # row by row


@pytest.mark.parametrize(("size", "grid"), [(224, 7), (96, 3), (100, 4)])
def test_the_side_of_the_map(size, grid):
    teacher = SimCLRTeacher(SIMCLR | {"image_size": size}).eval()
    assert teacher.grid == grid and teacher.dense_features(image(1, 1, 32, 32)).shape[1] == 1 + grid**2


def test_a_dense_student_predicts_the_vector_first_and_then_the_map():
    net, x = student(pooled=True, dense=True), image(2, 1, 64, 64)
    features = net.segmenter.image_encoder.distilled(net.segmenter.preprocess(x))

    def normalised(t: Tensor) -> Tensor:
        return F.layer_norm(t, t.shape[-1:])

    expected = [net.head(normalised(features.mean((2, 3))))]
    cells = F.interpolate(features, (2, 2), mode="bilinear", antialias=True, align_corners=False)
    expected += [net.map_head(normalised(cells[:, :, y, x])) for y in range(2) for x in range(2)]
    torch.testing.assert_close(net(x), torch.stack(expected, 1))
    assert "pooled features and their map of 2 x 2" in net.describe()
    target = TeacherTarget(SimCLRTeacher(SIMCLR | {"image_size": 64}), dense=True)({"image": x})[1]
    assert target.shape == (2, 5, 256)


def test_half_of_the_dense_loss_is_that_of_the_vector():
    pred, target = torch.randn(3, 5, 4), torch.randn(3, 5, 4)
    expected = ((pred - target)[:, 0].square().mean() + (pred - target)[:, 1:].square().mean()) / 2
    torch.testing.assert_close(DistillationLoss(dense=True)(pred, target), expected)
    assert torch.equal(DistillationLoss()(pred, target), nn.MSELoss()(pred, target))


# ---- what a constant explains


def test_the_log_says_once_what_a_constant_vector_explains(caplog):
    torch.manual_seed(0)
    constant = torch.tensor([3.0, -1, 2])
    batches = [{"image": torch.zeros(n, 1), "label": constant + torch.randn(n, 6, 3)} for n in (400, 300)]
    evaluator = SupervisedEvaluator(
        device=torch.device("cpu"),
        val_data_loader=batches,
        network=nn.Identity(),
        val_handlers=[ConstantTarget()],
        decollate=False,
    )
    seen: list[str] = []
    evaluator.add_event_handler(Events.EPOCH_COMPLETED, lambda: seen.extend(caplog.messages[len(seen) :]))
    with caplog.at_level(logging.INFO, logger="samora_monai"):
        evaluator.run()
        evaluator.run()
    (line,) = [message for message in caplog.messages if message.startswith("targets:")]
    tokens = torch.cat([batch["label"] for batch in batches]).flatten(0, 1)
    left, whole = F.mse_loss(tokens.mean(0).expand_as(tokens), tokens), tokens.square().mean()
    share = f"explains {float(1 - left / whole):.1%} of them"
    assert line == f"targets: a constant vector {share} and leaves a loss of {left:.3g} of {whole:.3g}"
