"""Expert files: small, for any slot, of one base."""

from __future__ import annotations

import json

import pytest
import torch

from samora_monai.checkpoints import load_expert, load_sam, save_expert
from samora_monai.checkpoints.experts import base_sha256
from samora_monai.networks import LEVELS, Segmenter, build_segmenter
from tests.tiny import IDENTITY, randomise, refused, tiny, untouched


def on_base(**settings) -> Segmenter:
    """A network whose base encoder is always the same; everything else is of `settings` and random."""
    net, sam = tiny(**settings), tiny(num_classes=4, experts=())
    randomise(net, 1)
    load_sam(net, {key: value for key, value in sam.state_dict().items() if not key.startswith("pixel_")})
    return net


def randomise_experts(net: Segmenter, seed: int) -> None:
    for name, module in net.image_encoder.named_modules():
        if name.endswith(".experts"):
            randomise(module, seed)


def expert(net: Segmenter, name: str) -> dict[str, torch.Tensor]:
    return {
        key.replace(f".experts.{name}.", "."): value.clone()
        for key, value in net.state_dict().items()
        if f".experts.{name}." in key
    }


def rewrite(path, **fields) -> None:
    """Other fields in the meta of a file."""
    content = torch.load(path, weights_only=True)
    content["meta"] = json.dumps(json.loads(content["meta"]) | fields)
    torch.save(content, path)


@pytest.fixture
def path(tmp_path):
    """The file of a "patch" expert that was the only one of its network."""
    save_expert(on_base(experts=("patch",)), tmp_path / "patch.pt", "patch", teacher="MAE")
    return tmp_path / "patch.pt"


def test_meta_says_what_it_was_made_for(path):
    content = torch.load(path, weights_only=True)
    meta = json.loads(content["meta"])
    net = on_base(experts=("patch",))
    assert len(meta.pop("sha256")) == 64
    assert meta.pop("package_version")
    assert meta == {
        "kind": "expert",
        "format_version": 2,
        "level": "patch",
        "rank": 4,
        "alpha": 4,
        "targets": ["q", "v"],
        "blocks": 2,
        "preset": "ViT 32 wide, 2 deep, 2 heads",
        "windows": [3, 0],
        "image_size": 64,
        "base_sha256": base_sha256(net),
        "base_sha256_before": None,
        "teacher": "MAE",
    }
    assert list(content["state_dict"]) == [
        f"blocks.{i}.linear_{part}.weight" for i in range(2) for part in ("a_q", "b_q", "a_v", "b_v")
    ]


@pytest.mark.parametrize(
    ("settings", "slot"),
    [
        ({"experts": ("patch",)}, "patch"),
        ({"experts": ("task",)}, "task"),  # the only expert of a network takes any level
        ({"experts": LEVELS}, "patch"),
        ({"experts": LEVELS, "fusion": "block", "num_classes": 7, "decoder_rank": 2}, "patch"),
        ({"experts": ("patch", "pixel"), "fusion": "attention", "image_size": 96, **IDENTITY}, "patch"),
    ],
)
def test_a_file_fits_its_slot_in_any_network_on_the_same_base(settings, slot, path):
    """Another input size, class count or decoder does not matter; nothing else is changed."""
    net, made = on_base(**settings), on_base(experts=("patch",))
    randomise_experts(net, 7)
    before = {key: value.clone() for key, value in net.state_dict().items() if f".experts.{slot}." not in key}
    report = load_expert(net, path, "patch")
    assert len(report.copied) == 8
    loaded, state = expert(net, slot), net.state_dict()
    for key, value in expert(made, "patch").items():
        assert torch.equal(loaded[key], value), key
    assert all(torch.equal(state[key], value) for key, value in before.items())
    save_expert(net, path.with_name("again.pt"), "patch", teacher="MAE")
    first, again = (torch.load(p, weights_only=True)["state_dict"] for p in (path, path.with_name("again.pt")))
    assert list(first) == list(again)
    assert all(torch.equal(first[key], again[key]) for key in first)


def test_three_files_fill_three_slots_with_what_was_trained(tmp_path):
    net = on_base(experts=LEVELS)
    for seed, level in enumerate(LEVELS):
        single = on_base(experts=("task",))
        randomise_experts(single, seed)
        save_expert(single, tmp_path / f"{level}.pt", level)
        load_expert(net, tmp_path / f"{level}.pt", level)
        loaded = expert(net, level)
        assert all(torch.equal(loaded[key], value) for key, value in expert(single, "task").items())
    image, pixel = (expert(net, name)["image_encoder.blocks.0.attn.linear_a_q.weight"] for name in ("image", "pixel"))
    assert not torch.equal(image, pixel)


def test_the_base_is_the_same_at_every_input_size_but_not_after_a_change():
    digest = base_sha256(on_base(image_size=64))
    assert base_sha256(on_base(image_size=96, experts=LEVELS, fusion="block", num_classes=9)) == digest
    net = on_base()
    with torch.no_grad():
        net.get_parameter("image_encoder.blocks.1.mlp.lin1.weight")[3, 5] += 1e-3
    assert base_sha256(net) != digest


def test_another_level_is_refused(path):
    net = on_base(experts=LEVELS)
    with refused("'patch.pt' is of level patch", "expected one of level pixel"), untouched(net):
        load_expert(net, path, "pixel")


def test_a_level_that_the_network_has_not_is_refused(path):
    net = on_base(experts=("image", "pixel"))
    with refused("no expert 'patch'", "('image', 'pixel')"), untouched(net):
        load_expert(net, path, "patch")
    with refused("no expert 'patch'"):
        save_expert(net, path, "patch")


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"rank": 8}, ("made for rank 4", "the network has 8", "build it with rank 4")),
        ({"encoder": {"depth": 3}}, ("preset ViT 32 wide, 2 deep, 2 heads", "3 deep")),
        ({"encoder": {"num_heads": 4}}, ("2 heads", "4 heads")),
        ({}, ("base_sha256", "load the SAM checkpoint it was trained on first")),
    ],
)
def test_another_rank_encoder_or_base_is_refused(settings, words, path):
    net = tiny(experts=("patch",), **settings)
    randomise(net, 5)
    with refused("expert file 'patch.pt'", *words), untouched(net):
        load_expert(net, path, "patch")


def test_a_later_format_is_refused(path):
    net = on_base(experts=("patch",))
    rewrite(path, format_version=3)
    with refused("'patch.pt' has format 3, expected 2", "update samora_monai"), untouched(net):
        load_expert(net, path, "patch")


def test_other_tensors_are_refused(path):
    net = on_base(experts=("patch",))
    content = torch.load(path, weights_only=True)
    content["state_dict"]["blocks.0.linear_a_q.weight"][0, 0] += 1
    torch.save(content, path)
    with refused("'patch.pt' is damaged", "checksum"), untouched(net):
        load_expert(net, path, "patch")


def test_an_adapter_file_is_no_expert_file(path):
    net = on_base(experts=("patch",))
    rewrite(path, kind="adapter")
    with refused("'patch.pt' is an adapter file", "expected an expert file"), untouched(net):
        load_expert(net, path, "patch")


def test_a_rotted_byte_anywhere_is_refused_or_harmless(path):
    """Either the sentence, or exactly what was saved (bytes between the records, names of no meaning)."""
    net = on_base(experts=("patch",))
    good = path.read_bytes()
    refusals = 0
    for position in range(0, len(good), 61):
        rotted = bytearray(good)
        rotted[position] ^= 1 << position % 8
        path.write_bytes(rotted)
        with untouched(net):  # the network holds what the file holds
            try:
                load_expert(net, path, "patch")
            except ValueError as e:
                refusals += 1
                assert "patch.pt" in str(e) and "\n" not in str(e)
    assert refusals > 0.6 * len(good) / 61
    with refused("damaged"), untouched(net):
        path.write_bytes(good[: len(good) // 2])
        load_expert(net, path, "patch")


def test_under_one_megabyte_for_vit_b(tmp_path):
    with torch.device("meta"):
        net = build_segmenter("vit_b", 224, experts=("image",))
    net.to_empty(device="cpu")
    with torch.no_grad():
        for tensor in net.state_dict().values():
            tensor.fill_(0.5)
    save_expert(net, tmp_path / "image.pt", "image")
    assert 24 * 2 * 4 * 768 * 4 < (tmp_path / "image.pt").stat().st_size < 1_000_000
    meta = json.loads(torch.load(tmp_path / "image.pt", weights_only=True)["meta"])
    assert (meta["preset"], meta["blocks"]) == ("vit_b", 12)
    assert len(load_expert(net, tmp_path / "image.pt", "image").copied) == 48
