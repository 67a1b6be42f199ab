"""Loading and saving of H-SAM's files."""

from __future__ import annotations

import hashlib
import math
import re

import pytest
import torch

from samora_monai.checkpoints import load_hsam, load_sam, load_samed, save_hsam, save_samed
from samora_monai.checkpoints.hsam import hsam_keys, unused_tensors, without_unused
from samora_monai.networks import LEVELS, Segmenter, build_segmenter
from tests.tiny import IDENTITY, TINY, image, randomise, refused, tiny, untouched

# tensors, numbers, hash of the sorted lines "key shape" of files that H-SAM's code wrote: rank 5
HSAM_FILES = {
    ("vit_b", 224, 9): (489, 12_528_528, "4f830f190f5cba28c930d334e2fa1933c1ab4e42e320edeec78af62a40e479d1"),
    ("vit_b", 512, 9): (489, 24_012_060, "cf1ac6aed89a4c4a15b388b0c496d7a405702b345d15eccd93599c9c22c9cc82"),
    ("vit_b", 224, 2): (377, 9_671_723, "986643cb6ce1fde2a22301fedd9953bf8d4712bf0478839d842d848acf0e8a7a"),
    ("vit_l", 224, 9): (537, 12_835_728, "e9393ee999d1b0ba3629a8bc05198ae77e12ac47fd0ff73fd4bfc89001f67da1"),
    ("vit_h", 512, 9): (569, 24_646_940, "c992acb189b05dcdef2500cd9ee6f67e6a1241f4cc2f5e8594685a27ba934066"),
}


def hierarchical(image_size: int = 224, in_channels: int = 1, num_classes: int = 3, **settings) -> Segmenter:
    settings = {"decoder": "hierarchical", "rank": 5} | IDENTITY | settings
    return tiny(image_size, in_channels, num_classes, **settings)


@pytest.fixture(scope="module")
def file(tmp_path_factory) -> str:
    """The file of a small H-SAM for 224 with 3 classes and rank 5."""
    net = hierarchical()
    randomise(net, 1)
    path = tmp_path_factory.mktemp("hsam") / "lora.pth"
    save_hsam(net, path)
    return str(path)


@pytest.mark.parametrize(("encoder", "image_size", "classes"), HSAM_FILES)
def test_the_file_is_h_sam_key_for_key(encoder, image_size, classes):
    with torch.device("meta"):
        net = build_segmenter(encoder, image_size, num_classes=classes, decoder="hierarchical", rank=5)
        tensors = unused_tensors(net)
    state = net.state_dict()
    tensors |= {theirs: state[ours] for theirs, ours in hsam_keys(net).items()}
    tensors |= {k.replace("_encoder.", "_encoder2."): v for k, v in tensors.items() if k.startswith("prompt_encoder.")}
    shapes = {key: list(value.shape) for key, value in tensors.items()}
    lines = "\n".join(sorted(f"{key} {shape}" for key, shape in shapes.items()))
    numbers = sum(math.prod(shape) for shape in shapes.values())
    expected = HSAM_FILES[encoder, image_size, classes]
    assert (len(shapes), numbers, hashlib.sha256(lines.encode()).hexdigest()) == expected


@pytest.mark.parametrize("classes", [2, 5])
@pytest.mark.parametrize("image_size", [224, 512])
def test_round_trip(image_size, classes, tmp_path):
    """A loaded file is saved again bit for bit, and nothing else changes in the network."""
    first = hierarchical(image_size, num_classes=classes)
    randomise(first, 1)
    save_hsam(first, tmp_path / "a.pth")
    second = hierarchical(image_size, num_classes=classes, experts=("image",))
    before = {key: value.clone() for key, value in second.state_dict().items()}
    report = load_hsam(second, tmp_path / "a.pth")
    save_hsam(second, tmp_path / "b.pth")
    a, b = (torch.load(tmp_path / name, weights_only=True) for name in ("a.pth", "b.pth"))
    assert list(a) == list(b)
    assert all(torch.equal(a[key], b[key]) for key in a)
    assert len(report.copied) + len(report.dropped) == len(a)
    assert set(report.copied) | set(report.kept) | {"pixel_mean", "pixel_std"} == set(before)
    for key in report.kept:
        assert torch.equal(second.state_dict()[key], before[key])
    x = image(1, 1, image_size, image_size)
    base = {k: v for k, v in first.state_dict().items() if ".experts." not in k}
    second.load_state_dict(second.state_dict() | base)
    with torch.no_grad():
        for ours, theirs in zip(first.eval().stage_logits(x), second.eval().stage_logits(x), strict=True):
            assert torch.equal(ours, theirs)


def test_what_h_sam_never_uses_is_dropped_and_written_as_new(file):
    state = torch.load(file, weights_only=True)
    report = load_hsam(hierarchical(), file)
    aliases = {key for key in state if key.startswith("prompt_encoder2.")}
    assert len(aliases) == 24
    for key in aliases:
        assert torch.equal(state[key], state[key.replace("encoder2", "encoder")])
    unused = set(report.dropped) - aliases
    assert {re.sub(r"\d", "#", key).rsplit(".", 1)[0] for key in unused} == {
        "mask_decoder#.med_sel.#",
        "mask_decoder#.mlp.lin#",
        "mask_decoder#.norm#",
        *(f"mask_decoder#.self_attn{n}.{part}_proj" for n in ("", "#") for part in "qkv"),
        *(f"mask_decoder#.self_attn{n}.out_proj" for n in ("", "#")),
        "mask_decoder#.transformer#.layers.#.cross_attn_token_to_image.norm#",
        "mask_decoder#.transformer#.layers.#.cross_attn_image_to_token.norm#",
    }
    for key in unused:
        one = key.endswith("weight") and ".norm" in key
        assert torch.equal(state[key], torch.ones_like(state[key]) if one else torch.zeros_like(state[key]))


@pytest.mark.parametrize("image_size", [64, 512])
def test_files_load_at_every_size(image_size, file):
    """Only tensors that H-SAM never uses depend on the size."""
    net, made = hierarchical(image_size), hierarchical()
    load_hsam(net, file)
    load_hsam(made, file)
    state = net.state_dict()
    for key, value in made.state_dict().items():
        if not key.startswith("image_encoder.") or ".experts." in key:
            assert torch.equal(state[key], value), key


def test_class_balanced_attention_starts_as_the_file_has_it(file):
    net = build_segmenter(TINY, 224, num_classes=3, decoder="hierarchical", rank=5, class_balanced_attention=True)
    plain = build_segmenter(TINY, 224, num_classes=3, decoder="hierarchical", rank=5)
    plain.load_state_dict({k: v for k, v in net.state_dict().items() if ".class_attention." not in k})
    report = load_hsam(net, file)
    load_hsam(plain, file)
    assert any(".class_attention." in key for key in report.kept)
    x = image(1, 1, 224, 224)
    with torch.no_grad():
        torch.testing.assert_close(net.eval()(x), plain.eval()(x), rtol=0, atol=1e-4)
    with refused("no place for class_balanced_attention", "adapter"):
        save_hsam(net, "never.pth")


def test_pixel_statistics_become_h_sam_s(file, tmp_path):
    net = tiny(224, decoder="hierarchical", rank=5)
    with refused("H-SAM's files imply pixel mean 0 and std 1", "pixel_std=(1, 1, 1)"):
        save_hsam(net, tmp_path / "never.pth")
    load_hsam(net, file)
    assert torch.equal(net.pixel_mean, torch.zeros(3, 1, 1))
    assert torch.equal(net.pixel_std, torch.ones(3, 1, 1))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"rank": 4}, ("[5, 32], expected [4, 32]", "rank=5, num_classes=3")),
        ({"num_classes": 9}, ("keys missing (mask_decoder.output_hypernetworks_mlps.3", "num_classes=3")),
        ({"num_classes": 2}, ("not expected (mask_decoder.output_hypernetworks_mlps.2", "num_classes=3")),
        ({"encoder": {"depth": 3}}, ("missing (image_encoder.blocks.2", "an encoder with 2 blocks")),
        ({"encoder": {"embed_dim": 64}}, ("[5, 32], expected [5, 64]",)),
    ],
)
def test_networks_of_another_make_are_refused(settings, words, file):
    net = hierarchical(**settings)
    with refused("'lora.pth'", *words), untouched(net):
        load_hsam(net, file)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"experts": ()}, ("exactly one expert", "the network has 0")),
        ({"experts": LEVELS, "fusion": "block"}, ("H-SAM's files hold exactly one expert", "the network has 3")),
        ({"decoder": "sam"}, ("two decoders", "'sam'", "decoder: hierarchical")),
    ],
)
def test_only_h_sam_has_such_files(settings, words, file, tmp_path):
    net = hierarchical(**settings)
    with refused(*words):
        save_hsam(net, tmp_path / "never.pth")
    with refused(*words), untouched(net):
        load_hsam(net, file)
    assert not (tmp_path / "never.pth").exists()


def test_h_sam_has_two_sizes_only(tmp_path):
    with refused("224 and 512 only", "not of 320", "adapter"):
        save_hsam(hierarchical(320), tmp_path / "never.pth")


def test_a_samed_file_is_no_h_sam_file(file, tmp_path):
    save_samed(tiny(rank=5, **IDENTITY), tmp_path / "samed.pth")
    net = hierarchical()
    with refused("'samed.pth'", "140 keys missing", "expected a LoRA file of H-SAM"), untouched(net):
        load_hsam(net, tmp_path / "samed.pth")
    for use in (load_samed, save_samed):
        with refused("SAM's decoder", "'hierarchical'"):
            use(net, tmp_path / "samed.pth")
    net = tiny(rank=5)
    with refused("not expected (prompt_encoder"), untouched(net):
        load_samed(net, file)


def test_a_prompt_encoder_of_two_minds_is_refused(file):
    state = torch.load(file, weights_only=True)
    state["prompt_encoder2.no_mask_embed.weight"] = state["prompt_encoder2.no_mask_embed.weight"] + 1
    net = hierarchical()
    with refused("damaged", "prompt_encoder2.no_mask_embed.weight differs from prompt_encoder.no_mask"), untouched(net):
        load_hsam(net, state)


def base_file(net: Segmenter) -> dict[str, torch.Tensor]:
    """The state dict of H-SAM's `Sam`: all but experts, with the second prompt encoder and unused tensors."""
    state = {k: v for k, v in net.state_dict().items() if ".experts." not in k and not k.startswith("pixel_")}
    aliases = {k.replace("encoder.", "encoder2."): v for k, v in state.items() if k.startswith("prompt_encoder.")}
    return state | aliases | unused_tensors(net)


def test_sam_leaves_the_second_decoder_as_it_is():
    sam = tiny(1024, 3, 4, experts=())
    randomise(sam, 1)
    state = {k: v for k, v in sam.state_dict().items() if not k.startswith("pixel_")}
    net = hierarchical(num_classes=4, class_balanced_attention=True)
    before = {k: v.clone() for k, v in net.state_dict().items()}
    report = load_sam(net, state)
    points = {f"prompt_encoder.point_embeddings.{i}.weight" for i in range(4, 11)}
    second = {k for k in before if k.startswith("mask_decoder2.")}
    attention = {k for k in second if ".class_attention." in k}  # ours, in no file of theirs
    assert set(report.kept) == points | second - attention
    for key in points | second:
        assert torch.equal(net.state_dict()[key], before[key])
    assert set(report.copied + report.resized) == set(state)
    assert report.dropped == []


def test_h_sam_s_own_base_file():
    made = hierarchical()
    randomise(made, 1)
    state = base_file(made)
    net = hierarchical(512)
    report = load_sam(net, state)
    assert report.kept == []
    assert set(report.copied + report.resized) == {k for k in made.state_dict() if k in state}
    assert set(report.dropped) == set(state) - set(made.state_dict()) == set(without_unused(state, "")[1])
    for key in report.copied:
        assert torch.equal(net.state_dict()[key], state[key])


@pytest.mark.parametrize("key", ["mask_decoder2.mask_tokens.weight", "prompt_encoder.point_embeddings.7.weight"])
def test_a_base_file_with_half_a_second_decoder_is_refused(key):
    state = base_file(hierarchical())
    del state[key]
    net = hierarchical()
    with refused(f"1 keys missing ({key})"), untouched(net):
        load_sam(net, state)


def test_h_sam_s_base_file_does_not_fit_sam_s_decoder():
    net = tiny(224)
    with refused("not expected (", "prompt_encoder.point_embeddings.4"), untouched(net):
        load_sam(net, base_file(hierarchical()))
