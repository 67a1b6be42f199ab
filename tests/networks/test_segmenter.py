"""Logits at the size of the image; which networks can be built and which options are refused."""

from __future__ import annotations

import hashlib
import math

import pytest
import torch
import torch.nn.functional as F

from samora_monai.losses import build_loss
from samora_monai.networks import LEVELS, SegmenterConfig, build_segmenter
from samora_monai.networks.hl_attn import HLAttn
from tests.tiny import IDENTITY, image, refused, tiny, tiny_sam2

# tensors, numbers, hash of the sorted lines "key shape" of Meta's files (the encoding's 256 numbers included)
SAM_FILES = {
    "vit_b": (314, 93_735_728, "8a52dc8da1cd47168964962a4299f26432da2b0759c4b1eeff4fd332da13327e"),
    "vit_l": (482, 312_343_088, "0dfaad986a60197584fffb48c91cd89e8481b8bfc33dad80b972316314b45911"),
    "vit_h": (594, 641_090_864, "f4662fe8084130a47664eb48134a55136a3c7173fee6835cadfb21604cfd7e2b"),
}
SIZES = [(64, 64), (64, 96), (33, 47), (1, 1), (200, 7), (17, 128)]


@pytest.mark.parametrize("encoder", SAM_FILES)
def test_presets_are_sam_key_for_key(encoder):
    with torch.device("meta"):
        net = build_segmenter(encoder, 1024, 3, num_classes=4, experts=())
    state = {key: value for key, value in net.state_dict().items() if key not in ("pixel_mean", "pixel_std")}
    lines = "\n".join(sorted(f"{key} {list(value.shape)}" for key, value in state.items()))
    numbers = sum(math.prod(value.shape) for value in state.values())
    assert (len(state), numbers, hashlib.sha256(lines.encode()).hexdigest()) == SAM_FILES[encoder]
    assert sum(p.numel() for p in net.parameters()) == numbers - 256


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", SIZES)
@torch.no_grad()
def test_logits_have_the_size_of_the_image(size, channels):
    net = tiny(64, channels).eval()
    x = image(2, channels, *size)
    square = F.interpolate(x, (64, 64), mode="bilinear", align_corners=False, antialias=True)
    low_res = net.stage_logits(square if size != (64, 64) else x)[0]
    assert low_res.shape == (2, 3, 16, 16)
    logits = net(x)
    assert torch.equal(logits, F.interpolate(low_res, size, mode="bilinear", align_corners=False))
    assert logits.std() > 0.02
    assert torch.equal(net.train()(x), low_res)


@pytest.mark.parametrize("size", SIZES)
@torch.no_grad()
def test_grey_is_three_equal_channels(size):
    grey, colour = tiny(64, 1).eval(), tiny(64, 3).eval()
    x = image(2, 1, *size)
    torch.testing.assert_close(grey(x), colour(x.repeat(1, 3, 1, 1)), rtol=0, atol=1e-5)


def test_preprocess_is_exact_at_the_size_of_the_network():
    mean, std = (0.1, 0.2, 0.3), (0.5, 0.25, 0.125)
    x = image(2, 3, 64, 64)
    got = tiny(64, 3, pixel_mean=mean, pixel_std=std).preprocess(x)
    for channel in range(3):
        expected = (x[:, channel] - torch.tensor(mean[channel])) / torch.tensor(std[channel])
        assert torch.equal(got[:, channel], expected)
    assert torch.equal(tiny(64, 3, **IDENTITY).preprocess(x), x)


def test_sam_statistics_are_for_images_in_0_to_1():
    net = tiny(64, 3)
    meta = torch.tensor([123.675, 116.28, 103.53]), torch.tensor([58.395, 57.12, 57.375])
    x = image(1, 3, 64, 64)
    expected = (255 * x - meta[0].reshape(3, 1, 1)) / meta[1].reshape(3, 1, 1)
    torch.testing.assert_close(net.preprocess(x), expected, rtol=0, atol=2e-6)


def test_preprocess_shrinks_with_antialiasing_and_along_the_right_axis():
    """A ramp stays a ramp away from the border, noise is averaged."""
    net = tiny(64, 1, **IDENTITY)
    ramp = ((torch.arange(256) + 0.5) / 256).expand(1, 1, 128, 256)
    x = net.preprocess(ramp)
    expected = ((torch.arange(64) + 0.5) / 64).expand(1, 3, 64, 64)
    torch.testing.assert_close(x[..., 2:-2], expected[..., 2:-2], rtol=0, atol=1e-6)
    noise = net.preprocess(image(1, 1, 256, 256))
    assert noise.std() < 0.12  # 0.29 without antialiasing, 0.19 between two neighbours


@pytest.mark.parametrize("fusion", [None, "attention", "block"])
@pytest.mark.parametrize("num_classes", [2, 4, 9])
@pytest.mark.parametrize("image_size", [224, 256, 320])
@torch.no_grad()
def test_every_size_and_class_count(image_size, num_classes, fusion):
    """Windows of 14 on grids of 14, 16 and 20; an image's logits do not depend on its neighbours in the batch."""
    experts = LEVELS if fusion else ("task",)
    net = tiny(
        image_size, 1, num_classes, experts=experts, fusion=fusion, fusion_width=16, encoder={"window_size": 14}
    ).eval()
    x = image(2, 1, 181, 217)
    logits = net(x)
    assert logits.shape == (2, num_classes, 181, 217)
    assert logits.isfinite().all()
    assert logits.std((0, 2, 3)).min() > 0.01  # every class has a map of its own
    torch.testing.assert_close(logits[1:], net(x[1:]), rtol=0, atol=1e-5)
    assert (logits[0] - logits[1]).abs().max() > 0.01
    assert net.train()(x).shape == (2, num_classes, image_size // 4, image_size // 4)


@pytest.mark.parametrize("build", [tiny, tiny_sam2])
@pytest.mark.parametrize("fusion", [None, "attention", "block"])
def test_gradients_under_bfloat16_point_where_those_in_float32_do(fusion, build):
    """The network pads windows with a parameter, which autocast leaves in float32 beside tokens in bfloat16."""
    experts = LEVELS if fusion else ("task",)
    label = (image(2, 1, 64, 64, seed=1) * 3).long()
    gradients = []
    for mixed in (False, True):
        net = build(64, experts=experts, fusion=fusion, train="adapters+experts")
        with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
            loss = build_loss("sam")(net(image(2, 1, 64, 64)), label)
        loss.backward()
        gradients.append(torch.cat([p.grad.flatten() for p in net.parameters() if p.grad is not None]))
    assert torch.cosine_similarity(*gradients, dim=0) > 0.95


@pytest.mark.parametrize("shape", [(2, 3, 64, 64), (1, 64, 64), (2, 1, 8, 64, 64)])
def test_other_images_are_refused(shape):
    with refused("[B, 1, H, W]", str(list(shape))):
        tiny(64, 1)(torch.zeros(shape))


def test_images_larger_than_the_network_are_refused_with_prompts():
    with refused("64 x 80", "64"):
        tiny(64, 3).predict_masks([{"image": torch.zeros(3, 64, 80)}], multimask_output=False)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"encoder": "vit_g"}, ("'vit_g'", "vit_b, vit_l, vit_h, tiny")),
        ({"image_size": 100}, ("image_size is 100", "multiple of 16")),
        ({"image_size": 0}, ("image_size is 0", "multiple of 16")),
        ({"in_channels": 2}, ("in_channels is 2", "1 (grey) or 3")),
        ({"num_classes": 1}, ("num_classes is 1", "background", "at least 2")),
        ({"decoder": "unet"}, ("'unet'", "'sam'")),
        ({"pixel_mean": (123.675, 116.28, 103.53)}, ("[0, 1]", "255")),
        ({"pixel_std": (58.395, 57.12, 57.375)}, ("[0, 1]", "255")),
        ({"pixel_mean": (0.5,)}, ("three values",)),
        ({"pixel_std": (1, 1, 0)}, ("pixel_std",)),
        ({"experts": "image"}, ("'image'", "list")),
        ({"experts": ("image", "image")}, ("different names",)),
        ({"rank": 0}, ("rank is 0", "at least 1")),
        ({"rank": 2.5}, ("rank is 2.5", "must be whole")),
        ({"rank": True}, ("rank is True", "must be whole")),
        ({"rank": 129}, ("rank is 129", "the encoder is 128 wide", "smaller rank")),
        ({"image_size": [224, 224]}, ("image_size is [224, 224]", "multiple of 16")),
        ({"image_size": 224.0}, ("image_size is 224.0", "multiple of 16")),
        ({"encoder": 5}, ("unknown encoder 5", "dict of sizes")),
        ({"encoder": {"width": 32}}, ("unknown size 'width'", "embed_dim, depth")),
        ({"dropout": 0.1}, ("unknown option 'dropout'", "encoder, image_size, ")),
        ({"stage": 4}, ("stage is 4", "3 (mean of both stages)")),
        ({"class_balanced_attention": True}, ("class_balanced_attention", "decoder='hierarchical'")),
        ({"class_balanced_attention": "yes"}, ("true or false for class_balanced_attention", "'yes'")),
        ({"decoder": "hierarchical", "decoder_rank": 4}, ("decoder_rank is 4", "decoder_rank=0")),
        ({"decoder": "hierarchical", "embedding_noise": -0.1}, ("embedding_noise is -0.1", "at least 0")),
        ({"experts": None}, ("experts is None", "list")),
        ({"fusion_order": "image"}, ("fusion_order is 'image'", "list")),
        ({"fusion_order": ["image", "lesion"]}, ("fusion_order has 'lesion'", "image, patch, pixel")),
        ({"fusion_start": "ones"}, ("'ones'", "'zero' or 'random'")),
        ({"decoder_rank": -1}, ("decoder_rank -1", "at least 1 and 0")),
        ({"experts": LEVELS, "fusion": "mean"}, ("'mean'", "'attention', 'block' or null")),
        ({"experts": (), "fusion": "block"}, ("'block'", "needs experts")),
        ({"experts": ("task",), "fusion": "block"}, ("('task',)", "fusion_order")),
        ({"experts": LEVELS, "fusion": "block", "fusion_order": ("image", "patch")}, ("fusion_order", "'patch')")),
        (
            {"experts": ("image",), "fusion": "block", "fusion_order": ("image", "image")},
            ("once in fusion_order",),
        ),
        ({"experts": LEVELS, "fusion": "block", "fusion_width": 0}, ("fusion_width is 0", "at least 1")),
        ({"experts": LEVELS, "fusion": "block", "fusion_width": 100}, ("fusion_width 100", "dim/2")),
        ({"train": "encoder"}, ("'encoder'", "'adapters', 'experts', 'decoder' or 'all'")),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings, words):
    with refused(*words), torch.device("meta"):
        build_segmenter(**{"encoder": "tiny", **settings})


def test_options_as_a_command_line_gives_them():
    """Lists, and true as text."""
    config = SegmenterConfig(
        "tiny", 64, decoder="hierarchical", experts=["image"], fusion="block", class_balanced_attention="true"
    )
    assert config == SegmenterConfig(
        "tiny", 64, decoder="hierarchical", experts=("image",), fusion="block", class_balanced_attention=True
    )
    assert (config.experts, config.levels, config.class_balanced_attention) == (("image",), ("image",), True)
    with torch.device("meta"):
        assert build_segmenter(config).mask_decoder2.class_attention is not None


def test_options_replace_those_of_a_given_config():
    config = SegmenterConfig("tiny", 64, num_classes=5, rank=2)
    with torch.device("meta"):
        net = build_segmenter(config)
        assert (net.image_size, net.num_classes, net.image_encoder.rank) == (64, 5, 2)
        net = build_segmenter(config, 96, rank=3)
        assert (net.image_size, net.num_classes, net.image_encoder.rank) == (96, 5, 3)
    with refused("rank is 0"):
        build_segmenter(config, rank=0)


def test_levels_without_an_expert_are_skipped_in_fusion_order():
    net = tiny(experts=("image", "pixel"), fusion="attention")
    assert [m.order for m in net.modules() if isinstance(m, HLAttn)] == [("pixel", "image")] * 2


def test_describe_names_the_parts():
    with torch.device("meta"):
        net = build_segmenter("vit_b", num_classes=9, experts=LEVELS, fusion="block")
    assert net.describe() == (
        "ViT 768 wide, 12 deep, input 224; "
        "experts image, patch, pixel, HL-Attn on block outputs; SAM decoder, 9 classes"
    )
