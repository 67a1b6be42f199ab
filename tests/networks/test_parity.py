"""The networks against the reference implementations, through `load_sam` and `load_samed` from files."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from samora_monai.checkpoints import load_sam, load_samed
from samora_monai.losses import SegmentationLoss
from samora_monai.networks import Segmenter, build_segmenter
from samora_monai.networks.mask_decoder import MaskDecoder
from samora_monai.networks.prompt_encoder import PromptEncoder
from samora_monai.networks.rel_pos_attention import relative_rows
from samora_monai.schedules import WarmupPolyLR
from tests.goldens import INDEX, Golden, names, seeded

IDENTITY = {"pixel_mean": (0, 0, 0), "pixel_std": (1, 1, 1)}
DTYPES = [torch.float32, torch.float64]
SAMED = [
    pytest.param(name, marks=pytest.mark.slow) if INDEX["cases"][name].get("slow") else name for name in names("samed_")
]


def samed(golden: Golden, tmp_path, dtype: torch.dtype = torch.float32) -> Segmenter:
    """SAMed from its two files, as a user would load it."""
    lora = golden.state("lora_manifest")
    net = build_segmenter(
        golden.encoder(),
        image_size=golden.config["image_size"],
        in_channels=3,
        num_classes=lora["mask_decoder.mask_tokens.weight"].shape[0],
        rank=golden.config["lora_rank"],
        decoder_rank=golden.config["lora_rank"] if "sa_a_000" in lora else 0,
    )
    torch.save(golden.state(), tmp_path / "sam.pth")
    torch.save(lora, tmp_path / "lora.pth")
    load_sam(net, tmp_path / "sam.pth")
    load_samed(net, tmp_path / "lora.pth")
    return net.eval().to(dtype)


@pytest.mark.parametrize("name", names("unit_rel_pos"))
def test_relative_rows(name):
    golden = Golden(name)
    for key in golden.case["inputs"]:
        golden.check(key, relative_rows(golden.input(key), int(key.split("_")[0][1:])))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", names("enc_"))
@torch.no_grad()
def test_encoder(name, dtype):
    golden = Golden(name)
    net = build_segmenter(golden.encoder(), golden.config["img_size"], 3, experts=(), **IDENTITY)
    encoder = net.image_encoder.to(dtype)
    encoder.load_state_dict({k.removeprefix("image_encoder."): v for k, v in golden.state().items()})
    for i, block in enumerate(encoder.blocks):
        block.register_forward_hook(lambda m, x, y, i=i: golden.check(f"block_{i}", y))
    golden.check("embedding", encoder(golden.input("image").to(dtype)))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", names("prompt_"))
@torch.no_grad()
def test_prompt_encoder(name, dtype):
    golden = Golden(name)
    net = PromptEncoder(256, golden.config["image_embedding_size"][0], golden.config["input_image_size"][0])
    net.load_state_dict({k.removeprefix("prompt_encoder."): v for k, v in golden.state().items()})
    net.to(dtype)
    points, boxes, masks = (golden.input(key).to(dtype) for key in ("points", "boxes", "masks"))
    labels = torch.from_numpy(golden.arrays["point_labels"])
    golden.check("dense_pe", net.get_dense_pe())
    sparse, dense = net()
    assert sparse.shape == (1, 0, 256)
    golden.check("none_dense", dense[:, :, 3, 5])
    golden.check("points_sparse", net((points, labels))[0])
    golden.check("boxes_sparse", net(boxes=boxes)[0])
    golden.check("points_boxes_sparse", net((points, labels), boxes)[0])
    golden.check("masks_dense", net(masks=masks)[1])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", names("maskdec_"))
@torch.no_grad()
def test_mask_decoder(name, dtype):
    golden = Golden(name)
    decoder = MaskDecoder(256, golden.config["num_multimask_outputs"] + 1).to(dtype)
    decoder.load_state_dict({k.removeprefix("mask_decoder."): v for k, v in golden.state().items()})
    image, pe, dense = (golden.input(key).to(dtype) for key in ("image_embeddings", "image_pe", "dense"))
    sparse = golden.input("sparse").to(dtype) if "sparse" in golden.case["inputs"] else torch.zeros(1, 0, 256).to(dtype)

    def check_transformer(module, inputs, outputs):
        golden.check("tokens", outputs[0])
        golden.check("image_tokens", outputs[1])

    hook = decoder.transformer.register_forward_hook(check_transformer)
    masks, iou = decoder.predict_masks(image, pe, sparse, dense)
    hook.remove()
    if "masks" in golden.case["outputs"]:
        golden.check("masks", masks)
        golden.check("iou", iou)
        return
    for kind, multimask in (("multi", True), ("single", False)):
        masks, iou = decoder(image, pe, sparse, dense, multimask)
        golden.check(f"masks_{kind}", masks)
        golden.check(f"iou_{kind}", iou)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", names("sam_"))
@torch.no_grad()
def test_sam_with_prompts(name, dtype, tmp_path):
    golden = Golden(name)
    net = build_segmenter(golden.encoder(), golden.config["image_size"], 3, num_classes=4, experts=())
    torch.save(golden.state(), tmp_path / "sam.pth")
    report = load_sam(net, tmp_path / "sam.pth")
    assert not (report.resized or report.kept or report.dropped)
    net = net.eval().to(dtype)
    # float32 statistics / 255 are not float32 statistics: the float64 run starts from SAM's own values
    for buffer, values in ((net.pixel_mean, "pixel_mean"), (net.pixel_std, "pixel_std")):
        buffer.copy_(torch.tensor(golden.config[values]).to(dtype).reshape(3, 1, 1) / 255)
    image0, image1 = (golden.input(f"image{i}").to(dtype) / 255 for i in range(2))
    records = [
        {
            "image": image0,
            "original_size": golden.case["original_size"][0],
            "point_coords": golden.input("points").to(dtype),
            "point_labels": torch.from_numpy(golden.arrays["point_labels"]),
            "boxes": golden.input("boxes").to(dtype),
        },
        {
            "image": image1,
            "original_size": golden.case["original_size"][1],
            "mask_inputs": golden.input("masks").to(dtype),
        },
    ]
    for kind, multimask in (("multi", True), ("single", False)):
        for i, out in enumerate(net.predict_masks(records, multimask)):
            golden.check(f"low_res_logits_{i}_{kind}", out["low_res_logits"])
            golden.check(f"iou_{i}_{kind}", out["iou_predictions"])
            if not multimask:
                golden.check(f"mask_logits_{i}_{kind}", out["mask_logits"])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", SAMED)
@torch.no_grad()
def test_samed(name, dtype, tmp_path):
    golden = Golden(name)
    net = samed(golden, tmp_path, dtype)
    image = golden.input("image").to(dtype)
    golden.check("embedding", net.image_encoder(net.preprocess(image)))
    golden.check("low_res_logits", net.low_res_logits(image))
    masks = net(image)
    golden.check("masks", masks)
    if dtype == torch.float32:  # ties aside, the same class everywhere
        assert (masks.argmax(1).numpy() == golden.arrays["argmax"]).mean() > 0.9999


@pytest.mark.parametrize("name", [n for n in names("ckpt_") if not n.startswith("ckpt_hsam")])
@torch.no_grad()
def test_resize_of_a_1024_checkpoint(name, tmp_path):
    golden = Golden(name)
    net = build_segmenter(golden.encoder(), golden.config["image_size"], 3, golden.config["num_classes"] + 1)
    torch.save(golden.state(), tmp_path / "sam.pth")
    report = load_sam(net, tmp_path / "sam.pth")
    loading = golden.case["loading"]
    assert sorted(report.copied) == sorted(loading["copied"])
    assert sorted(report.resized) == sorted(loading["resized"])
    for key, value in net.state_dict().items():
        if key in golden.case["outputs"]:
            golden.check(key, value)
    load_samed(net, golden.state("lora_manifest"))
    net.eval()
    image = golden.input("image")
    golden.check("low_res_logits", net.low_res_logits(image))


def reference_name(name: str) -> str:
    """Our parameter name as the gradient cases write it."""
    name = name.replace("attn.experts.task.", "attn.qkv.")
    if ".expert." not in name:
        return name
    module, leaf = name.split(".expert.")
    letter, target = leaf.removeprefix("linear_").removesuffix(".weight").split("_")
    if "final_attn" in module:
        return f"i_{target}_proj_{letter.upper()}.weight"
    return f"{module}.{target}_proj.w_{letter}.weight"


@pytest.mark.parametrize("name", names("grads_samed"))
def test_gradients(name, tmp_path):
    golden = Golden(name)
    net = samed(golden, tmp_path).double()
    logits = net.low_res_logits(golden.input("image").double())
    loss = SegmentationLoss()(logits, golden.input("low_res_label")[:, None])
    loss.backward()
    assert loss.item() == pytest.approx(float(golden.arrays["loss_f64"]), rel=1e-7)
    norms = dict(zip(golden.case["grad_names"], golden.arrays["grad_norm_f64"], strict=True))
    probes = dict(zip(golden.case["grad_names"], golden.arrays["grad_probe_f64"], strict=True))
    seen = set()
    for parameter_name, parameter in net.named_parameters():
        key = reference_name(parameter_name)
        if parameter.grad is None:
            assert norms.get(key, -1) == -1, f"{parameter_name} got no gradient"
            continue
        seen.add(key)
        if key in golden.case["grad_zero_in_exact_arithmetic"]:
            continue
        assert parameter.grad.norm().item() == pytest.approx(norms[key], rel=1e-6, abs=1e-12)
        probe = seeded.projection("grad:" + key, parameter.grad.numpy())
        assert probe == pytest.approx(probes[key], rel=1e-5, abs=1e-8)
    assert seen == {key for key, norm in norms.items() if norm != -1}


@pytest.mark.parametrize("name", names("traj_samed"))
def test_training_trajectory(name, tmp_path):
    golden = Golden(name)
    case = golden.case
    net = samed(golden, tmp_path).double()
    parameters = [p for p in net.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=case["base_lr"], betas=(0.9, 0.999), weight_decay=0.1)
    schedule = WarmupPolyLR(optimizer, case["warmup"], case["max_iterations"], case["lr_exp"])
    loss_function, losses = SegmentationLoss(), []
    for step in range(case["steps"]):
        logits = net.low_res_logits(golden.input(f"image{step % 3}").double())
        loss = loss_function(logits, golden.input(f"low_res_label{step % 3}")[:, None])
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
            assert parameter.norm().item() == pytest.approx(norms[reference_name(parameter_name)], rel=1e-6)
