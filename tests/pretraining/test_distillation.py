"""The image and patch students: their outputs and trained parameters, and a teacher outside the student."""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from monai.engines import SupervisedTrainer
from torch import Tensor, nn

from samora_monai.checkpoints import base_sha256
from samora_monai.pretraining.distillation import DistillationStudent, EncoderFeatures, TeacherTarget
from tests.tiny import image, tiny


class Teacher(nn.Module):
    """Features of four patches, each from its four quarters; BatchNorm and dropout act only in training mode."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 6)
        self.norm = nn.BatchNorm1d(4)
        self.dropout = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        patches = F.adaptive_avg_pool2d(x, 4).unfold(2, 2, 2).unfold(3, 2, 2).reshape(len(x), 4, 4)
        return self.linear(self.dropout(self.norm(patches)))


def student(pooled: bool, level: str = "patch") -> DistillationStudent:
    torch.manual_seed(0)
    grid = None if pooled else 2
    return DistillationStudent(tiny(experts=(level,), train="experts"), out_dim=6, pooled=pooled, grid=grid)


def standardised(t: Tensor) -> Tensor:
    """LayerNorm without parameters, literally."""
    return (t - t.mean(-1, keepdim=True)) / (t.var(-1, unbiased=False, keepdim=True) + 1e-5).sqrt()


def test_pooled_features_are_the_mean_over_the_last_blocks_tokens():
    net = tiny(experts=())
    x = image(2, 1, 50, 70)
    tokens = []
    hook = net.image_encoder.blocks[-1].register_forward_hook(lambda *args: tokens.append(args[-1]))
    features = EncoderFeatures(net, pooled=True)(x)
    hook.remove()
    torch.testing.assert_close(features, tokens[0].flatten(1, 2).mean(1))
    assert features.shape == (2, 32)


def test_tokens_come_row_by_row_and_go_to_the_teachers_grid():
    net = student(pooled=False)
    x = image(2, 1, 64, 64)
    tokens = EncoderFeatures(net.features.segmenter)(x)  # [2, 32, 4, 4]
    rows = F.interpolate(tokens, (2, 2), mode="bilinear", antialias=True, align_corners=False)
    expected = torch.stack([net.head(standardised(rows[:, :, r, c])) for r in range(2) for c in range(2)], 1)
    torch.testing.assert_close(net(x), expected)


def test_tokens_on_the_teachers_grid_are_not_resized():
    net = tiny()
    x = image(1, 1, 64, 64)
    assert torch.equal(EncoderFeatures(net, grid=4)(x), EncoderFeatures(net)(x))


def test_the_target_is_the_normalised_output_of_the_teacher_in_evaluation_mode():
    teacher = Teacher().train()
    x = image(3, 1, 64, 64)
    with torch.no_grad():
        raw = copy.deepcopy(teacher).eval()(x)
    batch, target = TeacherTarget(teacher)({"image": x}, "cpu")
    assert torch.equal(batch, x)
    torch.testing.assert_close(target, standardised(raw))
    torch.testing.assert_close(TeacherTarget(teacher, normalize=False)({"image": x})[1], raw)
    assert not target.requires_grad
    assert not teacher.training


def train(net: DistillationStudent, steps: int) -> tuple[SupervisedTrainer, list[float]]:
    losses: list[float] = []
    trainer = SupervisedTrainer(
        device=torch.device("cpu"),
        max_epochs=steps,
        train_data_loader=[{"image": image(4, 1, 64, 64)}],
        network=net,
        optimizer=torch.optim.AdamW([p for p in net.parameters() if p.requires_grad], lr=1e-2, weight_decay=0),
        loss_function=nn.MSELoss(),
        prepare_batch=TeacherTarget(Teacher()),
        decollate=False,
    )
    trainer.add_event_handler("ITERATION_COMPLETED", lambda engine: losses.append(engine.state.output["loss"].item()))
    trainer.run()
    return trainer, losses


def test_only_the_expert_and_the_head_train_and_the_base_is_bitwise_unchanged():
    net = student(pooled=False)
    segmenter = net.features.segmenter
    trains = {name for name, parameter in net.named_parameters() if parameter.requires_grad}
    factors = [f"linear_{part}.weight" for part in ("a_q", "a_v", "b_q", "b_v")]
    prefix = "features.segmenter.image_encoder.blocks"
    experts = {f"{prefix}.{i}.attn.experts.patch.{factor}" for i in range(2) for factor in factors}
    assert trains == experts | {"head.weight", "head.bias"}

    before = {name: value.clone() for name, value in net.state_dict().items()}
    sha256 = base_sha256(segmenter)
    _, losses = train(net, 30)
    changed = {name for name, value in net.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == trains
    assert base_sha256(segmenter) == sha256
    assert losses[-1] < 0.7 * losses[0]


def test_the_teacher_is_in_neither_the_state_dict_nor_the_optimiser():
    net = student(pooled=False)
    parameters = {id(p) for p in net.parameters()}
    names = set(net.state_dict())
    target = TeacherTarget(Teacher())
    trainer, _ = train(net, 1)
    assert set(net.state_dict()) == names
    held = {id(p) for group in trainer.optimizer.param_groups for p in group["params"]}
    assert held < parameters
    assert not any(p.requires_grad for p in target.teacher.parameters())


def test_the_first_step_changes_b_but_not_a():
    """B of a new expert is zero, so the gradient of A is zero; frozen parameters have none."""
    torch.manual_seed(0)
    segmenter = tiny(experts=("image",), train="experts")
    for block in segmenter.image_encoder.blocks:
        expert = block.attn.experts["image"]
        for linear in (expert.linear_b_q, expert.linear_b_v):
            nn.init.zeros_(linear.weight)
    net = DistillationStudent(segmenter, out_dim=6, pooled=True)
    net(image(2, 1, 64, 64)).square().mean().backward()
    for name, parameter in net.named_parameters():
        if ".linear_b" in name or name.startswith("head"):
            assert parameter.grad is not None and parameter.grad.any(), name
        elif ".linear_a" in name:
            assert parameter.grad is not None and not parameter.grad.any(), name
        else:
            assert parameter.grad is None, name
