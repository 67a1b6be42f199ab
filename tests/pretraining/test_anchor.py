"""The anchor of an expert to the embedding of the base: its value, its gradient, and the student beneath it."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from samora_monai.pretraining import AnchoredStudent, DenoisingStudent, DistillationStudent, anchored, anchored_loss
from tests.tiny import image, refused, tiny, tiny_sam2


def student(build=tiny, pixel: bool = False):
    segmenter = build(experts=("image",), train="experts", encoder={"depth": 4} if build is tiny else {})
    return DenoisingStudent(segmenter, 4) if pixel else DistillationStudent(segmenter, out_dim=6, pooled=True)


@pytest.mark.parametrize("build", [tiny, tiny_sam2])
@pytest.mark.parametrize("pixel", [False, True])
def test_the_drift_is_the_distance_of_the_embeddings_relative_to_their_variance(build, pixel):
    own, x = student(build, pixel), image(2, 1, 64, 64)
    output, drift = anchored(own, 0.1)(x)
    assert torch.equal(output, own(x))
    net = own.segmenter
    base = build(experts=(), encoder={"depth": 4} if build is tiny else {}).image_encoder
    base.load_state_dict({key: net.image_encoder.state_dict()[key] for key in base.state_dict()})
    with torch.no_grad():
        embeddings = [encoder(net.preprocess(x)) for encoder in (net.image_encoder, base)]
    channels = embeddings[1].transpose(0, 1).flatten(1)
    variance = (channels - channels.mean(1, keepdim=True)).square().mean()
    expected = (embeddings[0] - embeddings[1]).square().mean() / variance
    assert expected > 1e-3
    torch.testing.assert_close(drift, expected)
    drift.backward()
    trains = {name for name, p in own.named_parameters() if p.grad is not None and p.grad.any()}
    assert trains == {name for name, p in own.named_parameters() if ".experts." in name}
    assert all(block.attn.experts for block in net.image_encoder.encoder_blocks())


def test_a_new_expert_has_not_moved():
    own = student()
    for name, parameter in own.named_parameters():
        if ".linear_b" in name:
            nn.init.zeros_(parameter)
    assert anchored(own, 1)(image(1, 1, 64, 64))[1] == 0


def test_the_loss_adds_the_weighted_drift_and_no_anchor_changes_nothing():
    own, mse, x, target = student(), nn.MSELoss(), image(2, 1, 64, 64), torch.randn(2, 6)
    assert anchored(own, 0) is own and anchored_loss(mse, 0.0) is mse
    net = anchored(own, 0.5)
    output, drift = net(x)
    torch.testing.assert_close(anchored_loss(mse, 0.5)(net(x), target), mse(output, target) + 0.5 * drift)


def test_the_weights_are_kept_once_and_described():
    own = student()
    net = anchored(own, 0.5)
    assert isinstance(net, AnchoredStudent)
    assert list(net.state_dict()) == [f"student.{key}" for key in own.state_dict()]
    assert net.describe() == f"{own.describe()}; anchored to the base's embedding"


@pytest.mark.parametrize("weight", [-1, "strong"])
def test_a_wrong_weight_is_refused(weight):
    with refused("anchor must be a number of at least 0"):
        anchored(student(), weight)
