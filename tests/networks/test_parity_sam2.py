"""SAM 2's networks against the reference implementation, in float32 and in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from samora_monai.checkpoints import load_sam
from samora_monai.networks import Segmenter, build_segmenter
from samora_monai.networks.prompt_encoder import PromptEncoder
from samora_monai.networks.sam2.hiera import HieraEncoder
from samora_monai.networks.sam2.mask_decoder import Sam2MaskDecoder
from tests.goldens import SAM2, Golden, names, seeded
from tests.tiny import IDENTITY

DTYPES = [torch.float32, torch.float64]
PROMPTS: dict[str, tuple[str, ...]] = {  # prompts of each kind: mask, box, points
    "none": (),
    "point": ("point",),
    "points": ("points",),
    "box": ("boxes",),
    "box_point": ("boxes", "box_point"),
    "mask_point": ("mask", "point"),
    "mask": ("mask",),
    "pad": ("pad",),
}


def goldens(prefix: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("name", names(prefix, SAM2))


def part(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors of a part, by their keys in this part."""
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}


def segmenter(golden: Golden, manifest: str = "manifest", tokens: int = 4) -> Segmenter:
    """The network of a case, loaded from a file of Meta's form."""
    net = build_segmenter(golden.encoder(), golden.config["image_size"], 3, tokens, experts=(), train="all", **IDENTITY)
    report = load_sam(net, {"model": golden.state(manifest)})
    assert report.kept == report.resized == []
    return net.eval()


@pytest.mark.parametrize("dtype", DTYPES)
@goldens("trunk_")
@torch.no_grad()
def test_trunk(name, dtype):
    """Tokens before the first block, after every block, and of each stage; one image is not square."""
    golden = Golden(name, SAM2)
    encoder = HieraEncoder(width=None, **golden.encoder())
    encoder.trunk.load_state_dict(part(golden.state(), "image_encoder.trunk."))
    encoder.to(dtype)
    image = golden.input("image").to(dtype)
    outputs = {"tokens_in": encoder.embed(image)}
    outputs |= {f"block_{i}": tokens for i, tokens in enumerate(encoder.tokens(image, range(sum(encoder.stages))))}
    outputs |= {f"stage_{i + 1}": outputs[f"block_{tap}"].permute(0, 3, 1, 2) for i, tap in enumerate(encoder.taps)}
    assert set(golden.case["outputs"]) <= set(outputs)
    for key in golden.case["outputs"]:
        golden.check(key, outputs[key])


@pytest.mark.parametrize("dtype", DTYPES)
@goldens("encoder_")
@torch.no_grad()
def test_neck_and_high_resolution_features(name, dtype):
    golden = Golden(name, SAM2)
    net = build_segmenter(golden.encoder(), golden.config["image_size"], 3, 4, experts=(), **IDENTITY)
    state = golden.state()
    assert set(part(state, "image_encoder.")) == set(net.image_encoder.state_dict())
    net.load_state_dict(net.state_dict() | state)
    net.to(dtype)
    image = golden.input("image").to(dtype)
    encoded, decoder = net.image_encoder.features(image), net.mask_decoder
    golden.check("fpn_s16", encoded.embedding)
    golden.check("fpn_s4", encoded.skips[0])
    golden.check("fpn_s8", encoded.skips[1])
    golden.check("high_res_s0", decoder.conv_s0(encoded.skips[0]))
    golden.check("high_res_s1", decoder.conv_s1(encoded.skips[1]))
    golden.check("image_embed", net._features(image).embedding)


@pytest.mark.parametrize("dtype", DTYPES)
@goldens("prompt_")
@torch.no_grad()
def test_prompt_encoder(name, dtype):
    golden = Golden(name, SAM2)
    grid, size = golden.config["image_embedding_size"][0], golden.config["input_image_size"][0]
    net, as_sam = (PromptEncoder(256, grid, size, corners_are_points=sam2).to(dtype) for sam2 in (True, False))
    for encoder in (net, as_sam):
        encoder.load_state_dict(part(golden.state(), "sam_prompt_encoder."))
    points, masks = (golden.input(key).to(dtype) for key in ("points", "masks"))
    labels, boxes = (torch.from_numpy(golden.arrays[key]) for key in ("point_labels", "boxes"))
    boxes = boxes.to(dtype)
    golden.check("dense_pe", net.get_dense_pe())
    sparse, dense = net()
    assert sparse.shape == (1, 0, 256)
    golden.check("none_dense", dense[:, :, 3, 5])
    golden.check("points_sparse", net((points, labels))[0])
    golden.check("box_points_sparse", net(boxes=boxes)[0])
    golden.check("box_and_points_sparse", net((points, labels), boxes)[0])
    golden.check("boxes_sparse", as_sam(boxes=boxes)[0])
    golden.check("masks_dense", net(masks=masks)[1])


class Skip(torch.nn.Module):
    """Replace the convolution of a skip by the map that it would give."""

    def __init__(self, value: Tensor) -> None:
        super().__init__()
        self.value = value

    def forward(self, x: Tensor) -> Tensor:
        return self.value


@pytest.mark.parametrize("dtype", DTYPES)
@goldens("maskdec_")
@torch.no_grad()
def test_mask_decoder(name, dtype):
    """One image, three prompts; the case gives the maps after `conv_s0` and `conv_s1`."""
    golden = Golden(name, SAM2)
    decoder = Sam2MaskDecoder(256, golden.config["num_outputs"])
    decoder.load_state_dict(part(golden.state(), "sam_mask_decoder."))
    decoder.to(dtype)
    inputs = {key: golden.input(key).to(dtype) for key in golden.case["inputs"]}
    decoder.conv_s0, decoder.conv_s1 = Skip(inputs["high_res_s0"]), Skip(inputs["high_res_s1"])
    given = (inputs["image_embeddings"], inputs["image_pe"], inputs["sparse"], inputs["dense"])
    skips = (inputs["high_res_s0"], inputs["high_res_s1"])

    def check_transformer(module, inputs, outputs):
        golden.check("tokens", outputs[0])
        golden.check("image_tokens", outputs[1])

    hook = decoder.transformer.register_forward_hook(check_transformer)
    decoded = decoder.decode(*given, skips)
    hook.remove()
    golden.check("masks_all", decoded.masks)
    golden.check("object_score", decoder.pred_obj_score_head(decoded.first_tokens[:, 0]))
    golden.check("iou_all", decoder.predict_masks(*given, skips)[1])
    for kind, multimask in (("multi", True), ("single", False)):
        masks, iou = decoder(*given, multimask, skips)
        golden.check(f"masks_{kind}", masks)
        golden.check(f"iou_{kind}", iou)


def record(golden: Golden, kind: str, dtype: torch.dtype) -> dict[str, Any]:
    """An image with the prompts of `kind`, as `Segmenter.predict_masks` takes it."""
    prompts: dict[str, Any] = {
        "image": golden.input("image")[0].to(dtype),
        "original_size": tuple(golden.case["original_size"]),
    }
    for name in PROMPTS[kind]:
        if name == "boxes":
            prompts["boxes"] = torch.from_numpy(golden.arrays["boxes"]).to(dtype)
        elif name == "mask":
            prompts["mask_inputs"] = golden.input("mask").to(dtype)
        elif name == "pad":
            prompts |= {"point_coords": torch.zeros(1, 1, 2, dtype=dtype), "point_labels": -torch.ones(1, 1)}
        else:
            prompts["point_coords"] = golden.input(name).to(dtype)
            prompts["point_labels"] = torch.from_numpy(golden.arrays[f"{name}_labels"])
    return prompts


@pytest.mark.parametrize("dtype", DTYPES)
@goldens("image_")
@torch.no_grad()
def test_image_with_prompts(name, dtype):
    golden = Golden(name, SAM2)
    for manifest in golden.case.get("checkpoint_manifests", ["manifest"]):
        net = segmenter(golden, manifest).to(dtype)
        transformed: list[Tensor] = []
        net.mask_decoder.transformer.register_forward_hook(lambda m, x, y, seen=transformed: seen.append(y[0]))
        compared = set()
        for kind in PROMPTS:
            for number, multimask in (("multi", True), ("single", False)):
                out = net.predict_masks([record(golden, kind, dtype)], multimask)[0]
                outputs = {
                    f"low_res_{kind}_{number}": out["low_res_logits"],
                    f"iou_{kind}_{number}": out["iou_predictions"],
                    f"masks_{kind}_{number}": out["mask_logits"],
                    f"object_score_{kind}": net.mask_decoder.pred_obj_score_head(transformed[-1][:, 0]),
                }
                for key in outputs.keys() & golden.case["outputs"].keys():
                    golden.check(key, outputs[key])
                    compared.add(key)
        assert compared == set(golden.case["outputs"])


@pytest.mark.parametrize("dtype", DTYPES)
@goldens("classes_")
@torch.no_grad()
def test_classes_without_prompts(name, dtype):
    golden = Golden(name, SAM2)
    net = segmenter(golden, tokens=golden.config["num_outputs"]).to(dtype)
    image, decoder = golden.input("image").to(dtype), net.mask_decoder
    features = net._features(net.preprocess(image))
    embedding, skips = features
    golden.check("image_embed", embedding)
    sparse, dense = net.prompt_encoder()
    decoded = decoder.decode(embedding, net.prompt_encoder.get_dense_pe(), sparse, dense, skips)
    golden.check("iou_predictions", decoder._iou(decoded.quality_token))
    golden.check("object_score", decoder.pred_obj_score_head(decoded.first_tokens[:, 0]))
    net._features = lambda x: features  # computed once
    golden.check("low_res_logits", net.low_res_logits(image))
    golden.check("masks", net(image))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.float64, 1e-7)])
@goldens("grads_")
def test_gradients(name, dtype, tolerance):
    """Of every parameter, by name; those without a gradient in the reference have none here."""
    golden = Golden(name, SAM2)
    case, arrays = golden.case, golden.arrays
    net = segmenter(golden, tokens=golden.config["num_outputs"]).to(dtype).requires_grad_(True)
    loss = net.low_res_logits(golden.input("image").to(dtype)).square().mean()
    loss.backward()
    assert loss.item() == pytest.approx(float(arrays["loss_f64"]), rel=tolerance)
    gradients = {key: parameter.grad for key, parameter in net.named_parameters()}
    assert set(gradients) == set(case["grad_names"])
    norms = dict(zip(case["grad_names"], arrays["grad_norm_f64"], strict=True))
    probes = dict(zip(case["grad_names"], arrays["grad_probe_f64"], strict=True))
    assert {key for key, gradient in gradients.items() if gradient is None} == {k for k, n in norms.items() if n == -1}
    for key, gradient in gradients.items():
        if gradient is None or key in case["grad_zero_in_exact_arithmetic"]:
            continue
        gradient = gradient.double()  # a float32 sum over millions of squares would be off by 2e-4
        assert gradient.norm().item() == pytest.approx(norms[key], rel=tolerance), key
        probe = seeded.projection("grad:" + key, gradient.numpy())
        assert probe == pytest.approx(probes[key], abs=tolerance * max(norms[key], 1e-3)), key
