"""Groups of parameters: which decay, which train at the rate of experts, and the schedule of each."""

from __future__ import annotations

import copy
import re
from typing import Any

import pytest
import torch
from monai.networks.nets import BasicUNet
from torch import nn

from samora_monai.networks import LEVELS, Segmenter, parameter_groups
from samora_monai.schedules import WarmupPolyLR, warmup_poly
from tests.tiny import image, refused, tiny, tiny_sam2

SAMORA: dict[str, Any] = {"experts": LEVELS, "fusion": "attention", "train": "adapters+experts"}
RECIPE: dict[str, Any] = {"expert_rate": 0.25, "weight_decay_on": "matrices"}


def names_of(net: nn.Module, group: dict[str, Any]) -> set[str]:
    names = {id(parameter): name for name, parameter in net.named_parameters()}
    return {names[id(parameter)] for parameter in group["params"]}


def trained(net: nn.Module) -> set[str]:
    return {name for name, parameter in net.named_parameters() if parameter.requires_grad}


def optimizer_of(net: Segmenter, **settings: Any) -> tuple[torch.optim.Optimizer, WarmupPolyLR]:
    optimizer = torch.optim.AdamW(parameter_groups(net, 0.01, **settings), lr=0.01, weight_decay=0.1)
    return optimizer, WarmupPolyLR(optimizer, warmup=3, max_iterations=10)


def step(net: Segmenter, optimizer: torch.optim.Optimizer, schedule: WarmupPolyLR) -> None:
    optimizer.zero_grad()
    net(image(1, 1, 32, 32)).square().mean().backward()
    optimizer.step()
    schedule.step()


def test_by_default_the_optimiser_gets_one_list_of_all_that_train():
    net = tiny(**SAMORA)
    (group,) = parameter_groups(net, 0.01)
    assert [*group] == ["params"]
    assert [id(p) for p in group["params"]] == [id(p) for p in net.parameters() if p.requires_grad]


@pytest.mark.parametrize("build", [tiny, tiny_sam2])
def test_only_matrices_decay_and_experts_have_their_rate(build):
    net = build(**SAMORA, decoder_rank=2)
    groups = parameter_groups(net, 0.01, **RECIPE)
    names = [names_of(net, group) for group in groups]
    assert set().union(*names) == trained(net) and sum(map(len, names)) == len(trained(net))
    settings = [{key: value for key, value in group.items() if key != "params"} for group in groups]
    kinds = {tuple(sorted(s.items())): n for s, n in zip(settings, names, strict=True)}
    experts = kinds.pop((("lr", 0.0025), ("weight_decay", 0.0)))
    assert experts == {name for name in trained(net) if ".attn.experts." in name}
    kept, decaying = kinds.pop((("weight_decay", 0.0),)), kinds.pop(())
    assert not kinds and "lr" not in settings[0]  # the log shows the rate of the first group
    assert all(name.endswith(".weight") and not re.search(r"expert|norm|token|embed", name) for name in decaying)
    shapes = {name: parameter.ndim for name, parameter in net.named_parameters()}
    assert all(shapes[name] >= 2 for name in decaying)
    assert {name for name in kept if shapes[name] >= 2 and ".expert." not in name} == {
        name for name in trained(net) if re.search(r"(iou|mask|obj_score)_tokens?\.|no_mask_embed", name)
    }


def test_positions_do_not_decay_in_a_training_from_scratch():
    net = tiny(experts=(), train="all")
    decaying = set().union(
        *(names_of(net, g) for g in parameter_groups(net, 1, weight_decay_on="matrices") if "weight_decay" not in g)
    )
    assert "image_encoder.blocks.0.attn.qkv.weight" in decaying and "image_encoder.patch_embed.proj.weight" in decaying
    assert not [name for name in decaying if "pos" in name]


def test_each_group_follows_the_schedule_from_its_own_rate():
    optimizer, schedule = optimizer_of(tiny(**SAMORA), **RECIPE)
    base = [group["initial_lr"] for group in optimizer.param_groups]
    assert sorted(set(base)) == [0.0025, 0.01]
    for i in range(8):
        factor = warmup_poly(i, warmup=3, max_iterations=10, exponent=0.9)
        assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([factor * rate for rate in base])
        optimizer.step()
        schedule.step()


def test_a_parameter_without_gradient_keeps_its_value_unless_it_decays():
    net = tiny(**SAMORA)
    optimizer, _ = optimizer_of(net, **RECIPE)
    before = {name: parameter.clone() for name, parameter in net.named_parameters()}
    for parameter in net.parameters():
        parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
    optimizer.step()
    changed = {name for name, parameter in net.named_parameters() if not torch.equal(parameter, before[name])}
    decaying = {n for g in optimizer.param_groups if g["weight_decay"] for n in names_of(net, g)}
    assert changed == decaying and not [name for name in changed if "expert" in name]


def test_groups_are_restored_by_a_resume():
    net = tiny(**SAMORA, image_size=32)
    parts = optimizer_of(net, **RECIPE)
    for _ in range(3):
        step(net, *parts)
    other = copy.deepcopy(net)
    restored = optimizer_of(other, **RECIPE)
    for part, saved in zip(restored, parts, strict=True):
        part.load_state_dict(copy.deepcopy(saved.state_dict()))
    for network, pair in ((net, parts), (other, restored)):
        step(network, *pair)
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), other.parameters(), strict=True))
    with pytest.raises(ValueError, match="group"):  # LastCheckpoint says so in one line
        optimizer_of(other)[0].load_state_dict(parts[0].state_dict())


def test_a_network_of_another_kind_has_groups_too():
    net = BasicUNet(2, features=(8, 8, 8, 8, 8, 8))
    decaying, kept = parameter_groups(net, 0.01, weight_decay_on="matrices")
    assert "weight_decay" not in decaying and kept["weight_decay"] == 0
    assert {p.ndim for p in decaying["params"]} == {4} and {p.ndim for p in kept["params"]} == {1}


def test_an_unknown_choice_is_refused():
    with refused("'norms'", "choose 'all' or 'matrices'"):
        parameter_groups(tiny(), 0.01, weight_decay_on="norms")
