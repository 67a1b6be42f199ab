"""Loading and saving of SAMed's files."""

from __future__ import annotations

import hashlib
import math

import pytest
import torch

from samora_monai.checkpoints import load_samed, save_samed
from samora_monai.checkpoints.samed import samed_keys
from samora_monai.networks import LEVELS, build_segmenter
from tests.tiny import IDENTITY, randomise, refused, tiny, untouched

# tensors, numbers, hash of the sorted lines "key shape" of files that SAMed's code wrote: rank 4, 9 classes
SAMED_FILES = {
    ("vit_b", 0): (215, 4_913_877, "8896ff19a5e1e67c61528f34b320bd87eb10314b8a954b87843cd18b1e64a7ed"),
    ("vit_h", 0): (295, 5_421_781, "036a77f11cfdd1fd57092f98379bd31edd6dc86a6ecf1e5af50cda38d2426b91"),
    ("vit_b", 4): (161, 1_646_165, "55cedad265b8fd390513d667d1236422ea615f0a6775c6ea6d0b817286cdd117"),
}


@pytest.mark.parametrize(("encoder", "decoder_rank"), SAMED_FILES)
def test_the_file_is_samed_key_for_key(encoder, decoder_rank):
    with torch.device("meta"):
        net = build_segmenter(encoder, 224, num_classes=9, decoder_rank=decoder_rank)
    state = net.state_dict()
    shapes = {theirs: list(state[ours].shape) for theirs, ours in samed_keys(net).items()}
    lines = "\n".join(sorted(f"{key} {shape}" for key, shape in shapes.items()))
    numbers = sum(math.prod(shape) for shape in shapes.values())
    expected = SAMED_FILES[encoder, decoder_rank]
    assert (len(shapes), numbers, hashlib.sha256(lines.encode()).hexdigest()) == expected


def test_numbers_of_the_tensors():
    """Anchors that a change of names or of order would break."""
    keys = samed_keys(tiny(experts=("task",), decoder_rank=2))
    transformer = "mask_decoder.transformer"
    assert keys["w_a_000"] == "image_encoder.blocks.0.attn.experts.task.linear_a_q.weight"
    assert keys["w_b_003"] == "image_encoder.blocks.1.attn.experts.task.linear_b_v.weight"
    assert keys["sa_a_002"] == f"{transformer}.layers.1.self_attn.expert.linear_a_q.weight"
    assert keys["cti_b_001"] == f"{transformer}.layers.0.cross_attn_token_to_image.expert.linear_b_v.weight"
    assert keys["cit_a_003"] == f"{transformer}.layers.1.cross_attn_image_to_token.expert.linear_a_v.weight"
    assert keys["fati_qa"] == f"{transformer}.final_attn_token_to_image.expert.linear_a_q.weight"
    assert keys["fati_vb"] == f"{transformer}.final_attn_token_to_image.expert.linear_b_v.weight"
    assert keys["mask_decoder.iou_token.weight"] == "mask_decoder.iou_token.weight"
    assert not any("transformer" in key for key in keys)


@pytest.mark.parametrize("decoder_rank", [0, 2])
def test_round_trip(decoder_rank, tmp_path):
    """A loaded file is saved again bit for bit, and nothing else changes in the network."""
    first = tiny(64, 1, 5, rank=3, decoder_rank=decoder_rank, **IDENTITY)
    randomise(first, 1)
    save_samed(first, tmp_path / "a.pth")
    second = tiny(64, 1, 5, rank=3, decoder_rank=decoder_rank, experts=("image",))
    before = {key: value.clone() for key, value in second.state_dict().items()}
    report = load_samed(second, tmp_path / "a.pth")
    save_samed(second, tmp_path / "b.pth")
    a, b = (torch.load(tmp_path / name, weights_only=True) for name in ("a.pth", "b.pth"))
    assert list(a) == list(b)
    assert all(torch.equal(a[key], b[key]) for key in a)
    assert len(report.copied) == len(a)
    assert set(report.copied) | set(report.kept) | {"pixel_mean", "pixel_std"} == set(before)
    after = second.state_dict()
    assert all(torch.equal(after[key], before[key]) for key in report.kept)


def test_pixel_statistics_become_samed_s(tmp_path):
    save_samed(tiny(**IDENTITY), tmp_path / "lora.pth")
    net = tiny()
    with refused("pixel mean 0 and std 1", "pixel_std=(1, 1, 1)"):
        save_samed(net, tmp_path / "never.pth")
    assert not (tmp_path / "never.pth").exists()
    load_samed(net, tmp_path / "lora.pth")
    assert torch.equal(net.pixel_mean, torch.zeros(3, 1, 1))
    assert torch.equal(net.pixel_std, torch.ones(3, 1, 1))


@pytest.mark.parametrize(
    ("made", "words"),
    [
        ({"rank": 5}, ("[5, 32], expected [4, 32]", "rank=5, num_classes=3, decoder_rank=0")),
        ({"num_classes": 9}, ("output_hypernetworks_mlps.3", "rank=4, num_classes=9, decoder_rank=0")),
        ({"num_classes": 2}, ("output_hypernetworks_mlps.2", "rank=4, num_classes=2, decoder_rank=0")),
        ({"decoder_rank": 4}, ("not expected (sa_a_000", "decoder_rank=4; build the network with these")),
        ({"encoder": {"depth": 3}}, ("not expected (w_a_004", "an encoder with 3 blocks")),
        ({"encoder": {"embed_dim": 64}}, ("[4, 64], expected [4, 32]",)),
    ],
)
def test_files_of_other_networks_are_refused(made, words, tmp_path):
    save_samed(tiny(**({"num_classes": 3} | made | IDENTITY)), tmp_path / "lora.pth")
    net = tiny(64, 1, 3)
    with refused("'lora.pth'", *words), untouched(net):
        load_samed(net, tmp_path / "lora.pth")


def test_a_samed_file_does_not_fit_samed_s(tmp_path):
    save_samed(tiny(**IDENTITY), tmp_path / "lora.pth")
    net = tiny(decoder_rank=4)
    with (
        refused("28 keys missing (mask_decoder.transformer.layers.0.self_attn.expert", "decoder_rank=0"),
        untouched(net),
    ):
        load_samed(net, tmp_path / "lora.pth")


def test_a_sam_file_is_no_lora_file():
    net = tiny()
    with refused("keys missing", "expected a LoRA file of SAMed"), untouched(net):
        load_samed(net, tiny(64, 3, 4, experts=()).state_dict())


@pytest.mark.parametrize("settings", [{"experts": ()}, {"experts": LEVELS}, {"experts": LEVELS, "fusion": "block"}])
def test_only_networks_with_one_expert_are_samed(settings, tmp_path):
    net = tiny(**settings, **IDENTITY)
    with refused("exactly one expert", f"the network has {len(settings['experts'])}"):
        save_samed(net, tmp_path / "lora.pth")
    with refused("exactly one expert"), untouched(net):
        load_samed(net, tmp_path / "lora.pth")
