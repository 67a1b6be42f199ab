"""H-SAM against its reference implementation, through `load_sam` and `load_hsam` from files."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from samora_monai.checkpoints import load_hsam, load_sam
from samora_monai.checkpoints.hsam import without_unused
from samora_monai.losses import second_stage_weight
from samora_monai.networks import Segmenter, build_segmenter
from samora_monai.schedules import WarmupPolyLR
from tests.goldens import INDEX, Golden, names, seeded

DTYPES = [torch.float32, torch.float64]
NOISE = names("hsam_224_c9_noise")
FORWARD = [
    pytest.param(name, marks=pytest.mark.slow) if INDEX["cases"][name].get("slow") else name
    for name in names("hsam_")
    if "lora_manifest" in INDEX["cases"][name] and name not in NOISE
]


def hsam(golden: Golden, tmp_path, dtype: torch.dtype = torch.float32, **settings) -> Segmenter:
    """H-SAM from its two files, as a user would load it."""
    net = build_segmenter(
        golden.encoder(),
        image_size=golden.config["image_size"],
        in_channels=3,
        num_classes=golden.config["num_classes"] + 1,
        decoder="hierarchical",
        rank=golden.config["lora_rank"],
        **settings,
    )
    torch.save(golden.state(), tmp_path / "sam.pth")
    torch.save(golden.state("lora_manifest"), tmp_path / "lora.pth")
    load_sam(net, tmp_path / "sam.pth")
    load_hsam(net, tmp_path / "lora.pth")
    return net.eval().to(dtype)


def check_if_stored(golden: Golden, name: str, got: torch.Tensor) -> None:
    if name in golden.case["outputs"]:
        golden.check(name, got)


def check_inside(golden: Golden, net: Segmenter) -> None:
    """Compare the tensors between the parts of `net` in every later forward pass."""

    def second_transformer(module, inputs, outputs):
        check_if_stored(golden, "decoder2_src", inputs[0])
        check_if_stored(golden, "decoder2_mask_prior", inputs[3])
        check_if_stored(golden, "decoder2_tokens", outputs[0])

    def check(module: torch.nn.Module, name: str) -> None:
        module.register_forward_hook(lambda m, x, y: check_if_stored(golden, name, y))

    assert net.mask_decoder2 is not None
    net.mask_decoder2.transformer2.register_forward_hook(second_transformer)
    check(net.mask_decoder2.transformer2.final_attn_token_to_image, "attn_out")
    check(net.mask_decoder2.iou_prediction_head, "iou_predictions2")
    check(net.mask_decoder.output_upscaling, "up_embed")
    check(net.image_encoder, "embedding")
    check(net.image_encoder.blocks[-2], "low_tokens")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", FORWARD)
@torch.no_grad()
def test_hsam(name, dtype, tmp_path):
    golden = Golden(name)
    net = hsam(golden, tmp_path, dtype)
    image = golden.input("image").to(dtype)
    check_inside(golden, net)
    logits1, logits2 = net.stage_logits(image)
    check_if_stored(golden, "low_res_logits1", logits1)
    golden.check("low_res_logits2", logits2)
    both = net(image)
    net.stage = 2
    second = net(image)
    assert torch.equal(second, logits2)  # H-SAM's masks2
    check_if_stored(golden, "stage3", both)
    if dtype == torch.float32:  # ties aside, the same class everywhere
        for stage, masks in (("argmax_stage3", both), ("argmax_stage2", second)):
            if stage in golden.arrays:
                assert (masks.argmax(1).numpy() == golden.arrays[stage]).mean() > 0.9999


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", FORWARD)
@torch.no_grad()
def test_first_decoder(name, dtype, tmp_path):
    golden = Golden(name)
    net = hsam(golden, tmp_path, dtype)
    sparse, dense = net.prompt_encoder()
    embedding = net.image_encoder(net.preprocess(golden.input("image").to(dtype)))
    first = net.mask_decoder.decode(embedding, net.prompt_encoder.get_dense_pe(), sparse, dense)
    check_if_stored(golden, "low_res_logits1", first.masks)
    check_if_stored(golden, "iou_predictions1", net.mask_decoder.iou_prediction_head(first.quality_token))
    check_if_stored(golden, "msk_feat", first.mask_tokens @ first.image_tokens.transpose(1, 2))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", NOISE)
@torch.no_grad()
def test_noise_on_the_image_embedding(name, dtype, tmp_path, monkeypatch):
    golden = Golden(name)
    net = hsam(golden, tmp_path, dtype)
    assert net.mask_decoder2 is not None
    net.mask_decoder2.training = True  # the noise of training without its dropout
    noise = golden.input("noise").to(dtype)
    monkeypatch.setattr("samora_monai.networks.hsam.hierarchical_decoder.torch.randn_like", lambda x: noise)
    check_inside(golden, net)
    logits1, logits2 = net.stage_logits(golden.input("image").to(dtype))
    golden.check("low_res_logits1", logits1)
    golden.check("low_res_logits2", logits2)


@pytest.mark.parametrize("name", names("ckpt_hsam"))
@torch.no_grad()
def test_resize_of_a_1024_checkpoint(name, tmp_path):
    golden = Golden(name)
    lora = golden.state("lora_manifest")
    classes = golden.config["num_classes"] + 1
    net = build_segmenter(
        golden.encoder(), golden.config["image_size"], 3, classes, decoder="hierarchical", rank=len(lora["w_a_000"])
    )
    torch.save(golden.state(), tmp_path / "sam.pth")
    report = load_sam(net, tmp_path / "sam.pth")
    loading = golden.case["loading"]
    assert sorted(report.copied) == sorted(loading["copied"])
    assert sorted(report.resized) == sorted(loading["resized"])
    assert sorted(report.dropped) == sorted(loading["ignored_checkpoint_keys"])
    used, _ = without_unused({key: torch.zeros(0) for key in loading["kept_init"]}, name)
    assert sorted(report.kept) == sorted(used)
    for key, value in net.state_dict().items():
        check_if_stored(golden, key, value)
    load_hsam(net, lora)
    logits1, logits2 = net.eval().stage_logits(golden.input("image"))
    golden.check("low_res_logits1", logits1)
    golden.check("low_res_logits2", logits2)


def loss_of(logits: tuple[torch.Tensor, ...], low_res_label: torch.Tensor, label: torch.Tensor, epoch: int):
    """The reference's loss, written out: `DiceCELoss` is not float64 throughout, which five steps of AdamW magnify."""
    losses = []
    for stage, target in zip(logits, (low_res_label.long(), label.long()), strict=True):
        p = stage.softmax(1)
        t = F.one_hot(target, p.shape[1]).permute(0, 3, 1, 2).to(p)
        overlap, size = (p * t).sum((0, 2, 3)), (p * p + t).sum((0, 2, 3))
        dice = (1 - (2 * overlap + 1e-5) / (size + 1e-5)).mean()
        losses.append(0.1 * F.cross_entropy(stage, target) + 0.9 * dice)
    w = second_stage_weight(epoch)
    return (1 - w) * losses[0] + w * losses[1]


@pytest.mark.parametrize("name", names("grads_hsam"))
def test_gradients(name, tmp_path):
    golden = Golden(name)
    net = hsam(golden, tmp_path).double()
    logits = net.stage_logits(golden.input("image").double())
    loss = loss_of(logits, golden.input("low_res_label"), golden.input("label"), golden.case["epoch"])
    loss.backward()
    assert loss.item() == pytest.approx(float(golden.arrays["loss_f64"]), rel=1e-12)
    norms = dict(zip(golden.case["grad_names"], golden.arrays["grad_norm_f64"], strict=True))
    probes = dict(zip(golden.case["grad_names"], golden.arrays["grad_probe_f64"], strict=True))
    seen = set()
    for parameter_name, parameter in net.named_parameters():
        key = parameter_name.replace("attn.experts.task.", "attn.qkv.")
        if parameter.grad is None:
            assert norms.get(key, -1) == -1, f"{parameter_name} got no gradient"
            continue
        seen.add(key)
        if key in golden.case["grad_zero_in_exact_arithmetic"]:
            continue
        assert parameter.grad.norm().item() == pytest.approx(norms[key], rel=1e-6, abs=1e-12)
        probe = seeded.projection("grad:" + key, parameter.grad.numpy())
        assert probe == pytest.approx(probes[key], rel=1e-5, abs=1e-8)
    trained, unused = without_unused({key: torch.zeros(0) for key, norm in norms.items() if norm != -1}, name)
    assert seen == set(trained)
    assert set(unused) <= set(golden.case["grad_zero_in_exact_arithmetic"])  # nothing is lost with them


@pytest.mark.parametrize("name", names("traj_hsam"))
def test_training_trajectory(name, tmp_path):
    golden = Golden(name)
    case = golden.case
    net = hsam(golden, tmp_path).double()
    parameters = [p for p in net.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=case["base_lr"], betas=(0.9, 0.999), weight_decay=0.1)
    schedule = WarmupPolyLR(optimizer, case["warmup"], case["max_iterations"], case["lr_exp"])
    losses = []
    for step in range(case["steps"]):
        logits = net.stage_logits(golden.input(f"image{step % 3}").double())
        labels = (golden.input(f"low_res_label{step % 3}"), golden.input(f"label{step % 3}"))
        loss = loss_of(logits, *labels, epoch=step // case["iters_per_epoch"])
        optimizer.zero_grad()
        loss.backward()
        assert optimizer.param_groups[0]["lr"] == pytest.approx(golden.arrays["lr_used_f64"][step], rel=1e-12)
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    np.testing.assert_allclose(losses, golden.arrays["loss_f64"], rtol=1e-7)
    norms = dict(zip(case["param_names"], golden.arrays["param_norm_f64"], strict=True))
    for parameter_name, parameter in net.named_parameters():
        if parameter.requires_grad:
            key = parameter_name.replace("attn.experts.task.", "attn.qkv.")
            assert parameter.norm().item() == pytest.approx(norms[key], rel=1e-6)
