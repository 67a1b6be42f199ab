"""SimCLRv2 against its TensorFlow definition, and its files.

`goldens/simclr_w1_tf.npz` was made with tensorflow-cpu 2.21 (legacy Keras) and google-research/simclr @be265c2,
`tf2/resnet.py` and `ProjectionHead` of `tf2/model.py`: `Resnet(BottleneckBlock, [3, 4, 6, 3], 1)` under the flags
sk_ratio 0.0625, global_bn False, three projection layers of which the last has 128 outputs. Every tensor, BatchNorm
statistics too, was set to `seeded` of our key name, kernels transposed from [out, in, h, w] to [h, w, in, out], the
head's from [out, in]; the images are `seeded_image`. Stored for an even and an odd grid, in float32: h, z, and of the
stem (every 8th channel) and the first group (every 32nd) the lower right corner of 8 x 8 pixels.
"""

from __future__ import annotations

import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from samora_monai.pretraining.simclr import SIMCLR_PRESETS, ContrastivePretraining, SimCLRTeacher, load_simclr
from samora_monai.pretraining.simclr_checkpoint import RULES, our_names
from tests.pretraining.small import SIMCLR as SMALL
from tests.tiny import image, randomise, refused, untouched

GOLDEN = np.load(Path(__file__).parents[1] / "goldens" / "simclr_w1_tf.npz")
BATCH_NORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


def seeded(key: str, shape: tuple[int, ...]) -> np.ndarray:
    """The tensor of this name: kernels of variance 1 / fan-in, BatchNorms around one and zero."""
    rng = np.random.default_rng(zlib.crc32(key.encode()))
    if key.endswith("running_var") or (len(shape) == 1 and key.endswith("weight")):
        return rng.uniform(0.5, 1.5, shape).astype(np.float32)
    if len(shape) == 1:
        return rng.normal(0, 0.1, shape).astype(np.float32)
    return rng.standard_normal(shape, np.float32) * np.float32((1 / np.prod(shape[1:])) ** 0.5)


def seeded_image(height: int, width: int) -> torch.Tensor:
    rng = np.random.default_rng(zlib.crc32(f"image {height}x{width}".encode()))
    return torch.from_numpy(rng.random((1, 3, height, width), np.float32))


@pytest.fixture(scope="module")
def width_1() -> SimCLRTeacher:
    """ResNet-50 at width 1 with the seeded weights of the stored activations."""
    with torch.device("meta"):
        net = SimCLRTeacher({"width": 64, "depths": (3, 4, 6, 3), "image_size": 224})
    net = net.to_empty(device="cpu").eval()
    for key, value in net.state_dict().items():
        if key == "head.bn3.bias" or key.endswith("num_batches_tracked"):
            value.zero_()
        else:
            value.copy_(torch.from_numpy(seeded(key, tuple(value.shape))))
    return net


@torch.no_grad()
def errors(net: SimCLRTeacher, height: int, width: int) -> dict[str, float]:
    """Relative L2 distance from each stored activation."""
    stages = {}
    hooks = [
        net.get_submodule(name).register_forward_hook(lambda m, x, y, name=name: stages.update({name: y}))
        for name in ("stem", "layer1")
    ]
    h = net.features(seeded_image(height, width))
    got = {"h": h, "z": net.head(h)}
    got |= {name: y[:, :: 8 if name == "stem" else 32, -8:, -8:] for name, y in stages.items()}
    for hook in hooks:
        hook.remove()
    distances = {}
    for name, value in got.items():
        expected = torch.from_numpy(GOLDEN[f"{height}x{width}/{name}"])
        assert value.shape == expected.shape
        distances[name] = ((value - expected).norm() / expected.norm()).item()
    return distances


@pytest.mark.parametrize(("height", "width"), [(64, 64), (70, 96)])  # grids 16, 8, 4, 2 and 18x24, 9x12, 5x6, 3x3
def test_features_and_projection_equal_tensorflows(width_1, height, width):
    assert width_1.preset == "r50_1x_sk1"
    found = errors(width_1, height, width)
    assert max(found.values()) < 3e-6, found


@pytest.mark.parametrize(
    ("mode", "usual"),
    [
        ("constant", (1, 1, 1, 1)),  # PyTorch's max pool: a border on both sides
        ("replicate", (0, 1, 0, 1)),  # its average pool: the border's zeros count
    ],
)
def test_the_stored_activations_detect_wrong_padding(width_1, monkeypatch, mode, usual):
    """With PyTorch's usual padding at either place, the errors are far above the tolerance."""

    def pad(x, padding, padding_mode="constant", pad=F.pad):
        broken = (padding, padding_mode) == ((0, 1, 0, 1), mode)
        return pad(x, usual) if broken else pad(x, padding, padding_mode)

    monkeypatch.setattr(F, "pad", lambda x, padding, mode="constant": pad(x, padding, mode))
    found = errors(width_1, 64, 64)
    assert found["h"] > 5e-3 and found["layer1"] > 0.05, found


def test_sizes_of_the_published_network():
    with torch.device("meta"):
        net = SimCLRTeacher("r50_2x_sk1")
    counts = {"head": 0, "backbone": 0}
    for name, parameter in net.named_parameters():
        counts["head" if name.startswith("head.") else "backbone"] += parameter.numel()
    assert round(counts["backbone"] / 1e6, 2) == 140.31
    assert round(counts["head"] / 1e6, 2) == 34.10
    assert (net.out_dim, net.preset, net.image_size) == (4096, "r50_2x_sk1", 224)
    assert [net.get_submodule(f"layer{n}.0.sk.reduce").out_channels for n in (1, 2, 3, 4)] == [32, 32, 32, 64]


def test_initialisation():
    torch.manual_seed(0)
    net = SimCLRTeacher("tiny")
    assert all(block.bn3.weight.eq(0).all() for n in (1, 2, 3, 4) for block in net.get_submodule(f"layer{n}"))
    assert net.layer1[0].bn1.weight.eq(1).all()
    assert net.head.linear1.weight.std().item() == pytest.approx(0.01, rel=0.01)
    kernel = net.layer4[0].sk.conv.weight
    bound = kernel[0].numel() ** -0.5
    assert kernel.std().item() == pytest.approx(bound, rel=0.01)
    assert kernel.abs().max().item() <= 2 * bound / 0.8796 * 1.0001
    assert sum(p.numel() for p in net.parameters()) < 1.4e6


def small(seed: int = 0) -> SimCLRTeacher:
    net = SimCLRTeacher(SMALL)
    randomise(net, seed)
    return net


@torch.no_grad()
def test_grey_and_colour_images_of_any_size_are_resized_to_the_input_size():
    net = small().eval()
    x = image(2, 1, 50, 41)
    resized = F.interpolate(x, (32, 32), mode="bilinear", antialias=True)
    torch.testing.assert_close(net(x), net.features(resized.expand(-1, 3, -1, -1)))
    assert net(x).shape == (2, net.out_dim) == (2, 256)
    assert (net(x) - net.features(x)).abs().max() > 1e-3
    with refused("[B, 1 or 3, H, W]", "[2, 2, 32, 32]"):
        net(image(2, 2, 32, 32))


def test_views_share_the_batch_statistics_and_keep_their_order():
    net = small()
    views = image(3, 2, 1, 32, 48)
    z = ContrastivePretraining(net)(views)
    assert z.shape == (3, 2, 128)
    expected = net.head(net.features(views.reshape(6, 1, 32, 48))).reshape(3, 2, 128)
    torch.testing.assert_close(z, expected)


def test_all_parameters_but_the_last_bias_train():
    net = ContrastivePretraining(small())
    net(image(2, 2, 1, 32, 32)).square().sum().backward()
    without = [name for name, parameter in net.named_parameters() if parameter.grad is None]
    assert without == ["teacher.head.bn3.bias"]
    nn.SyncBatchNorm.convert_sync_batchnorm(net)
    assert not net.teacher.head.bn3.bias.requires_grad


def public_keys(depths: tuple[int, ...]) -> dict[str, list[str]]:
    """The keys of a converted file's two parts, as in the public files."""
    resnet = [f"net.0.{i}.weight" for i in (0, 2, 4)]
    resnet += [f"net.0.{i}.0.{entry}" for i in (1, 3, 5) for entry in BATCH_NORM]
    for group, depth in enumerate(depths, 1):
        for i in range(depth):
            block = f"net.{group}.blocks.{i}."
            parts, norms = ["net.0", "net.2.main_conv.0", "net.2.mixing_conv.0", "net.2.mixing_conv.2", "net.3"], []
            norms += ["net.1.0", "net.2.main_conv.1.0", "net.2.mixing_conv.1.0", "net.4.0"]
            if i == 0:
                parts, norms = [*parts, "projection.shortcut.2"], [*norms, "projection.bn.0"]
            resnet += [f"{block}{part}.weight" for part in parts]
            resnet += [f"{block}{norm}.{entry}" for norm in norms for entry in BATCH_NORM]
    head = [f"layers.{i}.weight" for i in (0, 3, 6)] + [f"layers.{i}.{e}" for i in (1, 4, 7) for e in BATCH_NORM]
    return {"resnet": [*resnet, "fc.weight", "fc.bias"], "head": head}


def public_file(net: SimCLRTeacher, depths: tuple[int, ...]) -> dict[str, dict[str, torch.Tensor]]:
    """The converted file that holds the weights of `net`."""
    state, content = net.state_dict(), {}
    for part, keys in public_keys(depths).items():
        names = {key: next(iter(our_names({f"{part}.{key}": torch.zeros(0)})[0]), "") for key in keys}
        content[part] = {key: state[name].clone() if name else torch.zeros(1000) for key, name in names.items()}
    return content


def test_every_public_key_matches_one_rule_and_one_parameter():
    keys = public_keys((3, 4, 6, 3))
    assert (len(keys["resnet"]), len(keys["head"]), len(RULES)) == (444, 18, 24)
    with torch.device("meta"):
        net = SimCLRTeacher("r50_2x_sk1")
    ours, dropped = our_names({f"{part}.{key}": torch.zeros(0) for part in keys for key in keys[part]})
    assert dropped == ["resnet.fc.weight", "resnet.fc.bias"]
    assert len(ours) == 444 + 18 - 2
    assert sorted(ours) == sorted(net.state_dict())


@pytest.mark.parametrize("part", ["resnet", "encoder"])
def test_a_converted_file_loads(tmp_path, part):
    source, net = small(1).eval(), small(2).eval()
    content = public_file(source, SMALL["depths"])
    content = {part: content["resnet"], "head": content["head"]}
    torch.save(content, tmp_path / "r50.pth")
    report = load_simclr(net, tmp_path / "r50.pth")
    assert len(report.copied) == len(net.state_dict())
    assert report.dropped == [f"{part}.fc.weight", f"{part}.fc.bias"]
    x = image(1, 3, 32, 32)
    assert torch.equal(net.head(net(x)), source.head(source(x)))


def test_known_names_of_a_converted_file_are_renamed():
    """Pairs of names that were derived from the order of modules in the file, independently of the rules."""
    one = torch.zeros(0)
    expected = {
        "resnet.net.0.2.weight": "stem.conv2.weight",
        "resnet.net.0.5.0.running_var": "stem.bn3.running_var",
        "resnet.net.3.blocks.5.net.0.weight": "layer3.5.conv1.weight",
        "resnet.net.3.blocks.5.net.2.main_conv.1.0.bias": "layer3.5.sk.bn.bias",
        "resnet.net.3.blocks.5.net.2.mixing_conv.0.weight": "layer3.5.sk.reduce.weight",
        "resnet.net.3.blocks.5.net.2.mixing_conv.2.weight": "layer3.5.sk.select.weight",
        "resnet.net.3.blocks.5.net.3.weight": "layer3.5.conv3.weight",
        "resnet.net.4.blocks.0.projection.shortcut.2.weight": "layer4.0.shortcut.conv.weight",
        "head.layers.4.running_mean": "head.bn2.running_mean",
    }
    assert list(our_names(dict.fromkeys(expected, one))[0]) == list(expected.values())


def test_other_sizes_are_refused_by_name():
    with torch.device("meta"):
        net, narrow = SimCLRTeacher("r50_2x_sk1"), SimCLRTeacher({"width": 64, "depths": (3, 4, 6, 3), "image_size": 1})
    tensors = {
        part: {key: torch.zeros((), dtype=value.dtype).expand(value.shape) for key, value in entries.items()}
        for part, entries in public_file(narrow, (3, 4, 6, 3)).items()
    }
    with refused("r50_1x_sk1", "r50_2x_sk1"):
        net.load_weights(tensors)
    tensors["resnet"] = {k: v for k, v in tensors["resnet"].items() if "main_conv" not in k}
    tensors["resnet"]["net.0.0.weight"] = torch.zeros(1).expand(128, 3, 7, 7)
    with refused("r50_2x_sk0", "r50_2x_sk1"):
        net.load_weights(tensors)
    tiny = SimCLRTeacher("tiny")
    with refused("is of tiny", "build the teacher with preset 'tiny'"):
        net.load_weights(public_file(tiny, SIMCLR_PRESETS["tiny"]["depths"]))


def test_other_files_are_refused_by_name(tmp_path):
    net = small()
    whole = public_file(net, SMALL["depths"])
    one = torch.zeros(1)
    with untouched(net):
        for words, content in {
            ("an MAE checkpoint",): {"model": {"cls_token": one, "mask_token": one, "pos_embed": one}},
            ("an MAE checkpoint without decoder",): {"model": {"cls_token": one, "pos_embed": one}},
            ("a SAM checkpoint",): {"image_encoder.patch_embed.proj.weight": one},
            ("a LoRA file of SAMed",): {"w_a_000": one},
            ("a torchvision ResNet",): {"conv1.weight": one, "layer1.0.conv1.weight": one},
            ("bare state dict",): net.state_dict(),
            ("a SimCLR teacher's training",): {"model": ContrastivePretraining(net).state_dict(), "epoch": 3},
            ("conv.weight",): {"conv.weight": one},
            ("holds a int",): {"epoch": 3},
            ("head.linear1.weight", "missing", "head"): {"resnet": whole["resnet"]},
            ("resnet.extra.weight", "not expected"): {**whole, "resnet": {**whole["resnet"], "extra.weight": one}},
            ("layer1.0.conv1.weight", "[8, 8, 1, 1]"): {
                **whole,
                "resnet": {**whole["resnet"], "net.1.blocks.0.net.0.weight": one},
            },
        }.items():
            torch.save(content, tmp_path / "other.pth")
            with refused("'other.pth'", *words):
                net.load_weights(tmp_path / "other.pth")


def test_unknown_preset():
    with refused("'r50'", "r50_2x_sk1, tiny"):
        SimCLRTeacher("r50")
