"""SAM 2's networks: input sizes, framing of images, precision, sizes that are refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from samora_monai.networks import LEVELS, build_segmenter
from samora_monai.networks.framing import Padded, Stretched
from tests.tiny import HIERA, IDENTITY, image, refused, tiny_sam2


@pytest.mark.parametrize("size", [32, 64, 96, 224])
@torch.no_grad()
def test_every_multiple_of_32_is_an_input_size(size):
    net = tiny_sam2(size, num_classes=4).eval()
    x = image(2, 1, 50, 70)
    logits = net(x)
    assert logits.shape == (2, 4, 50, 70)
    assert logits.isfinite().all()
    assert logits.std((0, 2, 3)).min() > 0.01  # every class has a map of its own
    torch.testing.assert_close(logits[1:], net(x[1:]), rtol=0, atol=1e-5)
    assert net.train()(x).shape == (2, 4, size // 4, size // 4)


@pytest.mark.parametrize("size", [0, 16, 48, 112, 240])
@pytest.mark.parametrize("encoder", ["sam2_tiny", HIERA])
def test_other_input_sizes_are_refused(encoder, size):
    with refused(f"image_size is {size}", "multiple of 32"):
        build_segmenter(encoder, size)


@torch.no_grad()
def test_the_miniature_runs_as_samora():
    net = build_segmenter("sam2_mini", 64, num_classes=9, experts=LEVELS, fusion="block", fusion_width=16).eval()
    assert net(image(1, 1, 50, 70)).shape == (1, 9, 50, 70)
    assert net.describe() == (
        "Hiera 32 wide, 8 deep, input 64; "
        "experts image, patch, pixel, HL-Attn on block outputs; SAM 2 decoder, 9 classes"
    )


@torch.no_grad()
def test_prompts_and_the_hierarchical_decoder_work_under_bfloat16():
    net = tiny_sam2(64, 3).eval()
    record = {
        "image": image(3, 40, 60),
        "point_coords": torch.tensor([[[20.0, 10.0]]]),
        "point_labels": torch.ones(1, 1),
        "boxes": torch.tensor([[4.0, 5.0, 30.0, 33.0]]),
    }
    exact = net.predict_masks([record], True)[0]["mask_logits"]
    with torch.autocast("cpu", torch.bfloat16):
        mixed = net.predict_masks([record], True)[0]["mask_logits"]
        hierarchical = tiny_sam2(64, decoder="hierarchical").eval()(image(1, 1, 40, 60))
    assert torch.cosine_similarity(exact.flatten(), mixed.float().flatten(), dim=0) > 0.99
    assert hierarchical.isfinite().all() and hierarchical.shape == (1, 3, 40, 60)


def test_framing_of_sam_pads_and_of_sam2_stretches():
    x = image(3, 16, 24)
    padded, stretched = Padded(), Stretched()
    assert torch.equal(padded.frame(x, 32)[:, :16, :24], x)
    assert not padded.frame(x, 32)[:, 16:].any() and not padded.frame(x, 32)[:, :, 24:].any()
    assert padded.scale((16, 24), 32) == (1, 1)
    expected = F.interpolate(x[None], (32, 32), mode="bilinear", align_corners=False)[0]
    torch.testing.assert_close(stretched.frame(x, 32), expected, rtol=0, atol=1e-6)
    assert stretched.scale((16, 24), 32) == (32 / 24, 2)
    with refused("16 x 40", "larger than the network's 32"):
        padded.frame(image(3, 16, 40), 32)
    assert stretched.frame(image(3, 16, 40), 32).shape == (3, 32, 32)


def test_framing_returns_the_mask_to_the_pixels_of_the_image():
    """A ramp along x of the framed square is a ramp along x of the image, over the part that the image fills."""
    ramp = ((torch.arange(8) + 0.5) / 8).expand(1, 1, 8, 8)
    got = Padded().unframe(ramp, (16, 24), 32, (16, 24))[0, 0]
    expected = ((torch.arange(24) + 0.5) / 32).expand(16, 24)
    torch.testing.assert_close(got[:, 2:], expected[:, 2:], rtol=0, atol=1e-6)
    got = Stretched().unframe(ramp, (16, 24), 32, (20, 48))[0, 0]
    expected = ((torch.arange(48) + 0.5) / 48).expand(20, 48)
    torch.testing.assert_close(got[:, 3:-3], expected[:, 3:-3], rtol=0, atol=1e-6)


@torch.no_grad()
def test_prompts_are_in_the_pixels_of_an_image_that_is_not_square():
    """The same prompts, scaled by hand, for the image that is resized by hand."""
    net = tiny_sam2(64, 3).eval()
    x = image(3, 40, 96)
    points, boxes = torch.tensor([[[70.0, 10.0], [5.0, 30.0]]]), torch.tensor([[12.0, 4.0, 90.0, 20.0]])
    labels = torch.tensor([[1, 0]])
    record: dict[str, Any] = {"image": x, "point_coords": points, "point_labels": labels, "boxes": boxes}
    got = net.predict_masks([record | {"original_size": (80, 192)}], True)[0]
    normalised = (x - net.pixel_mean) / net.pixel_std
    square = F.interpolate(normalised[None], (64, 64), mode="bilinear", align_corners=False, antialias=True)[0]
    scale = torch.tensor([64 / 96, 64 / 40])
    by_hand = {
        "image": square * net.pixel_std + net.pixel_mean,
        "point_coords": points * scale,
        "point_labels": labels,
        "boxes": boxes * torch.cat([scale, scale]),
        "original_size": (80, 192),
    }
    expected = net.predict_masks([by_hand], True)[0]
    assert got["mask_logits"].shape == (1, 2, 80, 192)
    for key in ("low_res_logits", "iou_predictions", "mask_logits"):
        torch.testing.assert_close(got[key], expected[key], rtol=0, atol=1e-4)
    wrong = net.predict_masks([record | {"point_coords": points.flip(-1)}], True)[0]
    assert (got["low_res_logits"] - wrong["low_res_logits"]).abs().max() > 1e-3


@torch.no_grad()
def test_low_resolution_logits_are_limited_as_in_the_image_predictor_and_masks_are_not():
    net = tiny_sam2(64, 3).eval()
    record = {"image": image(3, 64, 64)}
    small = net.predict_masks([record], True)[0]
    factor = 100 / small["mask_logits"].abs().max()
    for network in net.mask_decoder.output_hypernetworks_mlps:
        network.layers[-1].weight *= factor
        network.layers[-1].bias *= factor
    large = net.predict_masks([record], True)[0]
    torch.testing.assert_close(large["mask_logits"], factor * small["mask_logits"], rtol=1e-4, atol=1e-3)
    expected = (factor * small["low_res_logits"]).clamp(-32, 32)
    torch.testing.assert_close(large["low_res_logits"], expected, rtol=1e-4, atol=1e-3)
    assert large["low_res_logits"].abs().max() == 32


@torch.no_grad()
def test_several_images_of_different_shapes_are_each_segmented_alone():
    net = tiny_sam2(64, 3, **IDENTITY).eval()
    records = [{"image": image(3, 40, 96)}, {"image": image(3, 80, 30, seed=1)}]
    both = net.predict_masks(records, False)
    assert [tuple(out["mask_logits"].shape) for out in both] == [(1, 1, 40, 96), (1, 1, 80, 30)]
    for record, out in zip(records, both, strict=True):
        alone = net.predict_masks([record], False)[0]
        torch.testing.assert_close(out["mask_logits"], alone["mask_logits"], rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        *(
            ({name: ...}, (f"lacks {name!r}", "embed_dim, num_heads"))
            for name in HIERA
            if name not in ("out_chans", "stages")
        ),
        ({"depth": 5}, ("unknown size 'depth'", "embed_dim, num_heads, stages")),
        ({"stages": (2, 2, 3)}, ("stages is (2, 2, 3)", "4 whole numbers")),
        ({"stages": (2, 2, 3, 0)}, ("stages is (2, 2, 3, 0)", "at least 1")),
        ({"stages": 4}, ("stages is 4", "4 whole numbers")),
        ({"stages": None}, ("stages is None", "4 whole numbers")),
        ({"stages": "2232"}, ("stages is '2232'", "4 whole numbers")),
        ({"stages": (2, 2, 3, 2.0)}, ("stages is (2, 2, 3, 2.0)",)),
        ({"window_spec": (4, 6, 6)}, ("window_spec is (4, 6, 6)", "4 whole numbers")),
        ({"window_spec": {"a": 1}}, ("window_spec is {'a': 1}", "4 whole numbers")),
        ({"window_spec": 8}, ("window_spec is 8", "4 whole numbers")),
        ({"window_spec": (4, 7, 6, 3)}, ("window_spec is (4, 7, 6, 3)", "first three sides must be even")),
        ({"window_spec": (6, 4, 4, 3)}, ("window_spec starts with 6", "2, 4 or 8")),
        ({"window_pos_embed_bkg_spatial_size": 7}, ("window_pos_embed_bkg_spatial_size is 7", "2 whole numbers")),
        ({"window_pos_embed_bkg_spatial_size": (7, 0)}, ("spatial_size is (7, 0)", "at least 1")),
        ({"global_att_blocks": (4,)}, ("global_att_blocks have 4", "first of a stage")),
        ({"global_att_blocks": 5}, ("global_att_blocks is 5", "whole numbers")),
        ({"global_att_blocks": ("5",)}, ("global_att_blocks is ('5',)", "whole numbers")),
        ({"global_att_blocks": (9,)}, ("global_att_blocks is (9,)", "from 0 to 8")),
        ({"global_att_blocks": (-1,)}, ("global_att_blocks is (-1,)", "from 0 to 8")),
        ({"global_att_blocks": None}, ("global_att_blocks is None",)),
        ({"embed_dim": "96"}, ("embed_dim is '96'", "whole number")),
        ({"embed_dim": 0}, ("embed_dim is 0", "at least 1")),
        ({"embed_dim": 17}, ("embed_dim is 17", "multiple of num_heads, 2")),
        ({"num_heads": 0}, ("num_heads is 0", "at least 1")),
        ({"num_heads": None}, ("num_heads is None", "whole number")),
        ({"out_chans": 20}, ("out_chans is 20", "multiple of 16")),
        ({"out_chans": "64"}, ("out_chans is '64'", "multiple of 16")),
    ],
)
def test_sizes_of_hiera_that_do_not_fit_are_refused(change, words):
    sizes = {name: value for name, value in (HIERA | change).items() if value is not ...}
    with refused(*words), torch.device("meta"):
        build_segmenter(sizes, 64)


def test_sizes_may_be_lists_as_in_a_file():
    sizes = {name: list(value) if isinstance(value, tuple) else value for name, value in HIERA.items()}
    net = build_segmenter(sizes, 64)
    assert net.image_encoder.stages == (2, 2, 3, 2)
    assert [block.attn.side for block in net.image_encoder.encoder_blocks()] == [4, 4, 4, 6, 6, 0, 6, 6, 3]


def test_a_fusion_width_that_fits_no_heads_is_refused():
    with refused("fusion_width is 40, which some stage cannot divide into heads; choose 96, 48 or 24"):
        build_segmenter("sam2_tiny", 64, experts=LEVELS, fusion="attention", fusion_width=40)
