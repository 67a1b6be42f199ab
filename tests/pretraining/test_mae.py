"""MAE against MONAI's `MaskedAutoEncoderViT`, which holds the same network under other names, and its files."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from samora_monai.pretraining.mae import (
    MAE_PRESETS,
    MAETeacher,
    MaskedPretraining,
    load_mae,
    normalise,
    patchify,
    sincos_positions,
)
from tests.pretraining.small import MAE as SMALL
from tests.tiny import image, randomise, refused, untouched


def small(seed: int = 0, **sizes: int) -> MAETeacher:
    net = MAETeacher(SMALL | sizes)
    randomise(net, seed)
    return net.eval()


def theirs(key: str) -> str:
    """Our (Meta's) key -> MONAI's."""
    key = re.sub(r"^norm\.", f"blocks.{SMALL['depth']}.", key)
    key = re.sub(r"^decoder_norm\.", f"decoder_blocks.{SMALL['decoder_depth']}.", key)
    key = key.replace("patch_embed.proj", "patch_embedding.patch_embeddings").replace("attn.proj", "attn.out_proj")
    return key.replace("mlp.fc", "mlp.linear").replace("mask_token", "mask_tokens")


@pytest.fixture
def pair(monkeypatch):
    """Our network and MONAI's with the same random weights, in float64."""
    pytest.importorskip("einops")
    from monai.networks.nets import MaskedAutoEncoderViT

    ours = small().double()
    oracle = MaskedAutoEncoderViT(
        in_channels=3,
        img_size=SMALL["image_size"],
        patch_size=SMALL["patch_size"],
        hidden_size=SMALL["embed_dim"],
        mlp_dim=4 * SMALL["embed_dim"],
        num_layers=SMALL["depth"],
        num_heads=SMALL["num_heads"],
        decoder_hidden_size=SMALL["decoder_embed_dim"],
        decoder_mlp_dim=4 * SMALL["decoder_embed_dim"],
        decoder_num_layers=SMALL["decoder_depth"],
        decoder_num_heads=SMALL["decoder_num_heads"],
        spatial_dims=2,
        qkv_bias=True,
    )
    oracle = oracle.double().eval()
    state = {theirs(key): value for key, value in ours.state_dict().items()}
    state["patch_embedding.position_embeddings"] = state.pop("pos_embed")[:, 1:]
    state["decoder_pos_embedding"] = state.pop("decoder_pos_embed")[:, 1:]
    for name in ("patch_embedding.position_embeddings", "decoder_pos_embedding"):  # MONAI's own tables agree
        torch.testing.assert_close(oracle.state_dict()[name], state[name], rtol=0, atol=1e-6)
    missing, unexpected = oracle.load_state_dict(state, strict=False)
    assert not unexpected and all("cross_attn" in key for key in missing)  # MONAI 1.5 has it but does not use it
    for module in oracle.modules():
        if isinstance(module, nn.LayerNorm):
            module.eps = 1e-6  # MONAI's is PyTorch's 1e-5, MAE's is 1e-6
    return ours, oracle


@torch.no_grad()
def test_tokens_are_those_of_monai(pair):
    ours, oracle = pair
    x = image(2, 3, 32, 32).double()
    tokens = oracle.patch_embedding(normalise(x))
    expected = oracle.blocks(torch.cat([oracle.cls_token.expand(2, -1, -1), tokens], 1))[:, 1:]
    torch.testing.assert_close(ours(x), expected, rtol=1e-10, atol=1e-10)


@torch.no_grad()
def test_masked_prediction_is_that_of_monai(pair, monkeypatch):
    ours, oracle = pair
    x, noise = image(2, 3, 32, 32).double(), image(2, 16, seed=1)
    keep = noise.argsort(1)[:, :4]
    mask = torch.ones(2, 16).scatter(1, keep, 0)
    rows = torch.arange(2)[:, None]
    monkeypatch.setattr(oracle, "_masking", lambda tokens, masking_ratio: (tokens[rows, keep], keep, mask))
    expected, _ = oracle(normalise(x))
    prediction, our_mask = ours.masked(x, 0.75, noise)
    assert torch.equal(our_mask, mask) and our_mask.sum(1).tolist() == [12, 12]
    torch.testing.assert_close(prediction, expected, rtol=1e-10, atol=1e-10)


@torch.no_grad()
def test_masked_patches_have_no_effect():
    net, x = small(), image(1, 1, 32, 32)
    noise = torch.arange(16.0).flip(0)[None]  # the last four patches, the lowest row, stay
    prediction, mask = net.masked(x, 0.75, noise)
    assert mask.tolist() == [[1.0] * 12 + [0.0] * 4]
    changed = x.clone()
    changed[..., :24, :] = 0
    assert torch.equal(net.masked(changed, 0.75, noise)[0], prediction)
    changed[..., 24:, :] = 0
    assert (net.masked(changed, 0.75, noise)[0] - prediction).abs().max() > 1e-3


def test_position_table_is_the_papers():
    """A literal transcription: meshgrid with the column first, each half of the numbers for one coordinate."""

    def one_axis(dim, positions):
        omega = np.arange(dim // 2, dtype=np.float64)
        omega /= dim / 2.0
        omega = 1.0 / 10000**omega
        angles = np.einsum("m,d->md", positions.reshape(-1), omega)
        return np.concatenate([np.sin(angles), np.cos(angles)], axis=1)

    for grid, dim in ((14, 1024), (3, 16)):
        columns, rows = np.meshgrid(np.arange(grid, dtype=np.float32), np.arange(grid, dtype=np.float32))
        table = np.concatenate([one_axis(dim // 2, columns), one_axis(dim // 2, rows)], axis=1)
        expected = np.concatenate([np.zeros([1, dim]), table], axis=0)
        got = sincos_positions(grid, dim)[0]
        assert got.dtype == torch.float32
        np.testing.assert_allclose(got.numpy(), expected, rtol=0, atol=1e-7)


def test_patches_and_pixels_are_in_maes_order():
    x = image(2, 3, 8, 12)
    patches = patchify(x, 4)
    assert patches.shape == (2, 6, 48)
    for n in range(6):
        for p in range(4):
            for q in range(4):
                expected = x[:, :, n // 3 * 4 + p, n % 3 * 4 + q]
                assert torch.equal(patches[:, n, (p * 4 + q) * 3 : (p * 4 + q) * 3 + 3], expected)


@torch.no_grad()
def test_grey_and_colour_images_of_any_size_are_resized_to_the_input_size():
    net, x = small(), image(2, 1, 50, 41)
    resized = F.interpolate(x, (32, 32), mode="bilinear", antialias=True).repeat(1, 3, 1, 1)
    torch.testing.assert_close(net(x), net(resized))
    grey = normalise(torch.full((1, 1, 1, 1), 0.5)).flatten().tolist()
    assert grey == pytest.approx([0.015 / 0.229, 0.044 / 0.224, 0.094 / 0.225], rel=1e-5)
    assert (net.grid, net.out_dim, net(x).shape) == (4, 32, (2, 16, 32))
    with refused("[B, 1 or 3, H, W]", "[2, 2, 32, 32]"):
        net(image(2, 2, 32, 32))


@torch.no_grad()
def test_tokens_come_row_by_row():
    """With blocks that add nothing, a change of one patch changes its token alone."""
    net = small()
    for block in net.blocks:
        for layer in (block.attn.proj, block.mlp.fc2):
            layer.weight.zero_()
    x = image(1, 1, 32, 32)
    changed = x.clone()
    changed[..., 8:16, 24:32] += 0.5  # row 1, column 3
    assert (net(x) - net(changed)).abs().amax((0, 2)).nonzero().flatten().tolist() == [1 * 4 + 3]


def test_sizes_of_the_published_network():
    with torch.device("meta"):
        net = MAETeacher("vit_l")
    state = net.state_dict()
    encoder = sum(v.numel() for k, v in state.items() if not k.startswith(("decoder", "mask_token")))
    assert (round(encoder / 1e6, 2), round(sum(v.numel() for v in state.values()) / 1e6, 2)) == (303.30, 329.54)
    assert (net.out_dim, net.grid, net.preset) == (1024, 14, "vit_l")


def test_initialisation():
    torch.manual_seed(0)
    net = MAETeacher("tiny")
    for weight in (net.patch_embed.proj.weight.flatten(1), net.blocks[0].mlp.fc1.weight, net.decoder_pred.weight):
        bound = (6 / sum(weight.shape)) ** 0.5
        assert 0.98 * bound < weight.abs().max() <= bound
    assert net.cls_token.std().item() == pytest.approx(0.02, rel=0.2)
    assert net.blocks[0].attn.qkv.bias.eq(0).all()
    assert sum(p.numel() for p in net.parameters()) < 1.1e6


def test_pretraining_draws_new_masks_and_trains_all_parameters():
    net = MaskedPretraining(small(), mask_ratio=0.5)
    x = image(2, 1, 32, 32)
    torch.manual_seed(0)
    prediction, mask = net(x)
    assert mask.sum(1).tolist() == [8, 8]
    assert not torch.equal(net(x)[1], mask)
    prediction.square().sum().backward()
    assert [name for name, parameter in net.named_parameters() if parameter.grad is None] == []
    assert "teacher.pos_embed" in net.state_dict() and "teacher.pos_embed" not in dict(net.named_parameters())
    with refused("mask_ratio is 1"):
        MaskedPretraining(small(), mask_ratio=1)


def public_keys(depth: int, decoder_depth: int) -> list[str]:
    """The keys of Meta's full file."""

    def pair(name):
        return [f"{name}.weight", f"{name}.bias"]

    def blocks(prefix, n):
        parts = ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2")
        return [key for i in range(n) for part in parts for key in pair(f"{prefix}.{i}.{part}")]

    encoder = ["cls_token", "pos_embed", *pair("patch_embed.proj"), *blocks("blocks", depth), *pair("norm")]
    decoder = ["mask_token", "decoder_pos_embed", *pair("decoder_embed"), *blocks("decoder_blocks", decoder_depth)]
    return [*encoder, *decoder, *pair("decoder_norm"), *pair("decoder_pred")]


def test_keys_are_metas():
    with torch.device("meta"):
        net = MAETeacher("vit_l")
    assert sorted(net.state_dict()) == sorted(public_keys(24, 8))
    assert len(net.state_dict()) == 294 + 104
    assert list(net.state_dict()["decoder_pred.weight"].shape) == [768, 512]


def test_full_and_encoder_only_files_load(tmp_path):
    source, x = small(1), image(1, 1, 32, 32)
    full = {key: source.state_dict()[key] for key in public_keys(2, 2)}
    torch.save({"model": full}, tmp_path / "full.pth")
    net, noise = small(2), image(1, 16)
    report = load_mae(net, tmp_path / "full.pth")
    assert (len(report.copied), report.kept) == (len(full), [])
    assert torch.equal(net.masked(x, 0.75, noise)[0], source.masked(x, 0.75, noise)[0])

    torch.save({"model": {k: v for k, v in full.items() if not k.startswith(("decoder", "mask"))}}, tmp_path / "e.pth")
    net = small(2)
    decoder = {key: value.clone() for key, value in net.state_dict().items() if key.startswith(("decoder", "mask"))}
    report = net.load_weights(tmp_path / "e.pth")
    assert sorted(report.kept) == sorted(decoder)
    assert sorted(report.copied + report.kept) == sorted(full)
    assert torch.equal(net(x), source(x))
    assert all(torch.equal(net.state_dict()[key], value) for key, value in decoder.items())


def test_other_sizes_are_refused_by_name():
    with torch.device("meta"):
        large = MAETeacher("vit_l")
    file = {"model": {k: torch.zeros(()).expand(v.shape) for k, v in large.state_dict().items()}}
    tiny = MAETeacher("tiny")
    with untouched(tiny):
        with refused("1024 wide, 24 deep", "128 wide, 4 deep", "build the teacher with preset 'vit_l'"):
            tiny.load_weights(file)
        encoder = {"model": {k: v for k, v in file["model"].items() if not k.startswith(("decoder", "mask"))}}
        with refused("1024 wide, 24 deep", "preset 'vit_l'"):
            tiny.load_weights(encoder)
        with refused("ViT 32 wide, 2 deep, patches of 8", "give a file of the network's size"):
            tiny.load_weights(small().state_dict())
        other_grid = MAETeacher(MAE_PRESETS["tiny"] | {"image_size": 64})
        with refused("pos_embed is [1, 17, 128], expected [1, 197, 128]"):
            tiny.load_weights(other_grid.state_dict())


def test_other_files_are_refused_by_name(tmp_path):
    net, one = small(), torch.zeros(1)
    full = net.state_dict()
    with untouched(net):
        for words, content in {
            ("a converted SimCLRv2 checkpoint",): {"encoder": {"net.0.0.weight": one}, "head": {}},
            ("a SAM checkpoint",): {"image_encoder.patch_embed.proj.weight": one},
            ("a LoRA file of SAMed",): {"w_a_000": one},
            ("empty",): {},
            ("an MAE teacher's training",): {"model": MaskedPretraining(net).state_dict(), "epoch": 3},
            ("head.weight", "not expected"): {**full, "head.weight": one},
            ("norm.bias", "missing"): {k: v for k, v in full.items() if k != "norm.bias"},
        }.items():
            torch.save(content, tmp_path / "other.pth")
            with refused("'other.pth'", *words):
                net.load_weights(tmp_path / "other.pth")


def test_unknown_preset():
    with refused("'vit_b'", "vit_l, tiny"):
        MAETeacher("vit_b")
