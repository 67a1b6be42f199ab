"""H-SAM's decoders in the network: every size and class count, training, evaluation, class-balanced attention."""

from __future__ import annotations

import itertools
import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from samora_monai.losses import HierarchicalLoss
from samora_monai.networks import LEVELS, Segmenter, build_segmenter
from samora_monai.networks.hsam.class_balanced_attention import ClassBalancedAttention, class_noise
from tests.networks import literal_hierarchical as literal
from tests.tiny import IDENTITY, TINY, image, refused, tiny

SIZES = [224, 256, 320, pytest.param(512, marks=pytest.mark.slow), pytest.param(1024, marks=pytest.mark.slow)]


def hierarchical(*args, **settings) -> Segmenter:
    return tiny(*args, decoder="hierarchical", **settings)


def labels(classes: int, size: int, batch: int = 2, seed: int = 0) -> torch.Tensor:
    """Blobs of every class."""
    noise = torch.rand(batch, classes, 5, 5, generator=torch.Generator().manual_seed(seed))
    return F.interpolate(noise, (size, size), mode="bilinear").argmax(1, keepdim=True)


@pytest.mark.parametrize(("classes", "size"), [(2, 64), (4, 48), (5, 96), (9, 16)])
@torch.no_grad()
def test_decoders_compute_what_h_sam_writes(classes, size):
    net = hierarchical(size, 3, classes, **IDENTITY).eval().double()
    x = image(2, 3, size, size).double()
    logits1, logits2 = net.stage_logits(x)
    embeddings = net.image_encoder(x).numpy()
    pe, dense = net.prompt_encoder.get_dense_pe()[0].numpy(), net.prompt_encoder()[1][0].numpy()
    p1, p2 = ({k: v.numpy() for k, v in d.state_dict().items()} for d in (net.mask_decoder, net.mask_decoder2))
    for embedding, first, second in zip(embeddings, logits1.numpy(), logits2.numpy(), strict=True):
        logits, upscaled = literal.first_stage(p1, embedding, pe, dense)
        np.testing.assert_allclose(first, logits, rtol=0, atol=1e-11)
        expected = literal.second_stage(p2, embedding, pe, dense, logits, upscaled)
        np.testing.assert_allclose(second, expected, rtol=0, atol=1e-11)


@pytest.mark.parametrize("classes", [2, 5])
@pytest.mark.parametrize("size", SIZES)
def test_every_size_and_class_count_runs_and_trains(size, classes):
    """DistributedDataParallel waits for the gradient of every parameter that trains."""
    net = hierarchical(size, 1, classes, encoder={"window_size": 14, "out_chans": 128})
    label = labels(classes, size)
    x = (label + image(2, 1, size, size)) / classes
    with torch.no_grad():
        logits = net.eval()(x[..., :181])
        assert logits.shape == (2, classes, size, 181)
        assert logits.std((0, 2, 3)).min() > 0.01  # every class has a map of its own
        torch.testing.assert_close(logits[1:], net(x[1:, ..., :181]), rtol=0, atol=1e-4)
    net.train()
    torch.manual_seed(0)
    optimizer = torch.optim.AdamW([p for p in net.parameters() if p.requires_grad], lr=1e-3)
    loss_function, losses = HierarchicalLoss(), []
    for _ in range(8):
        stages = net(x)
        assert [list(s.shape) for s in stages] == [[2, classes, size // 4, size // 4], [2, classes, size, size]]
        loss = loss_function(stages, label)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.015
    trained = {n: p.grad for n, p in net.named_parameters() if p.requires_grad}
    assert [n for n, gradient in trained.items() if gradient is None] == []
    assert [n for n, gradient in trained.items() if not gradient.any() and "k_proj.bias" not in n] == []
    assert all(gradient.isfinite().all() for gradient in trained.values())


@pytest.mark.parametrize("gate", [False, True])
@pytest.mark.parametrize(
    "settings",
    [
        {"experts": ()},
        {"experts": ("task",)},
        {"experts": LEVELS, "fusion": "attention"},
        {"experts": LEVELS, "fusion": "block"},
        {"experts": ("task",), "train": "decoder"},
        {"experts": LEVELS, "train": "all"},
    ],
)
def test_what_trains(settings, gate):
    """All of the decoders but the quality heads, and what trains with SAM's decoder."""
    net = hierarchical(num_classes=3, class_balanced_attention=gate, **settings).train()
    plain = tiny(num_classes=3, **settings)
    trains = {name for name, p in net.named_parameters() if p.requires_grad}
    second = {n for n in net.state_dict() if n.startswith("mask_decoder2.")}
    quality = {n for n in second if ".iou_prediction_head." in n}
    assert len(quality) == 6
    assert trains == {name for name, p in plain.named_parameters() if p.requires_grad} | second - quality
    sum(s.square().mean() for s in net(image(2, 1, 64, 64), labels(3, 64))).backward()
    assert {name for name, p in net.named_parameters() if p.grad is not None} == trains


def test_as_many_parameters_as_h_sam_trains():
    """H-SAM at 224 with 9 classes and rank 5, without unused prompts and parameters without gradient."""
    with torch.device("meta"):
        net = build_segmenter("vit_b", 224, num_classes=9, decoder="hierarchical", rank=5)
    trained = sum(p.numel() for p in net.parameters() if p.requires_grad)
    assert trained == 12_520_004 - 1_114_750 - 9_832 - 267_794 - 7_756


@pytest.mark.parametrize("size", [(64, 64), (40, 100)])
@torch.no_grad()
def test_stage_in_evaluation(size):
    net = hierarchical(64).eval()
    x = image(2, 1, *size)
    first, second = (F.interpolate(s, size, mode="bilinear") for s in net.stage_logits(x))
    torch.testing.assert_close(net(x), (first + second) / 2, rtol=0, atol=1e-6)
    net.stage = 2
    assert torch.equal(net(x), second)
    assert (first - second).abs().max() > 0.1
    assert torch.equal(net.low_res_logits(x), net.stage_logits(x)[0])


@torch.no_grad()
def test_noise_and_dropout_are_for_training_only():
    net = hierarchical(64)
    x = image(2, 1, 64, 64)
    clean = net.eval().stage_logits(x)
    assert all(torch.equal(a, b) for a, b in zip(clean, net.stage_logits(x), strict=True))
    trained = net.train().stage_logits(x)
    assert torch.equal(trained[0], clean[0])  # the first stage sees the embedding as it is
    assert (trained[1] - clean[1]).abs().max() > 0.1

    second = net.mask_decoder2
    assert second is not None
    for module in second.modules():
        if isinstance(module, torch.nn.Dropout):
            assert module.p == (0.2 if module is not second else 0)
            module.eval()
    assert (net.stage_logits(x)[1] - clean[1]).abs().max() > 0.1  # the noise alone
    second.embedding_noise = 0.0
    assert torch.equal(net.stage_logits(x)[1], clean[1])


@torch.no_grad()
def test_embedding_noise_is_relative_to_the_range():
    """0.2 (max - min) N(0, 1), twice of which reaches the transformer."""
    net = hierarchical(128, embedding_noise=0.2)
    inputs = []
    assert net.mask_decoder2 is not None
    net.mask_decoder2.transformer2.register_forward_pre_hook(lambda module, args: inputs.append(args[0]))
    x = image(2, 1, 128, 128)
    net.eval().stage_logits(x)
    net.train().stage_logits(x)
    embedding = net.image_encoder(net.preprocess(x))
    noise = (inputs[1] - inputs[0]) / 2 / (embedding.max() - embedding.min())
    assert noise.std().item() == pytest.approx(0.2, rel=0.05)
    assert noise.mean().item() == pytest.approx(0, abs=0.02)


def test_one_image_gets_a_gradient_through_both_stages():
    """The prior and the upscaled embedding are not detached: the second loss trains the first decoder."""
    net = hierarchical(64).eval()
    net.stage_logits(image(1, 1, 64, 64))[1].square().mean().backward()
    first = [p.grad for n, p in net.mask_decoder.named_parameters() if "iou" not in n]
    assert all(gradient is not None for gradient in first)
    hyper = net.mask_decoder.output_hypernetworks_mlps[0].layers[0].weight.grad  # reached through the prior only
    assert hyper.abs().max() > 0


def gated(**settings) -> tuple[Segmenter, ClassBalancedAttention]:
    net = hierarchical(num_classes=4, class_balanced_attention=True, **settings)
    assert net.mask_decoder2 is not None and net.mask_decoder2.class_attention is not None
    return net, net.mask_decoder2.class_attention


@pytest.mark.parametrize("size", [64, 96])
@torch.no_grad()
def test_new_class_balanced_attention_is_the_release(size):
    net, attention = gated(image_size=size)
    torch.nn.init.zeros_(attention.gate.weight)
    release = hierarchical(size, num_classes=4)
    release.load_state_dict({k: v for k, v in net.state_dict().items() if ".class_attention." not in k})
    x = image(2, 1, size, size)
    torch.testing.assert_close(net.eval()(x), release.eval()(x), rtol=0, atol=1e-5)
    with torch.device("meta"):
        new = build_segmenter(TINY, 64, decoder="hierarchical", class_balanced_attention=True)
    assert new.mask_decoder2 is not None and new.mask_decoder2.class_attention is not None


def test_class_balanced_attention_changes_the_output_and_learns():
    """What the release's CMAttn does not: other weights give other masks, and every one has a gradient."""
    net, attention = gated()
    x, label = image(2, 1, 64, 64), labels(4, 64)
    net.eval()
    gates = []
    attention.register_forward_hook(lambda module, args, gate: gates.append(gate))
    before = net(x)
    gate = gates[-1]
    assert gate.shape == (2, 1, 4, 4)
    torch.testing.assert_close(gate.mean((1, 2, 3)), torch.ones(2))  # normalised over space
    assert gate.min() >= 0 and gate.std() > 0.05
    for name, parameter in attention.named_parameters():
        with torch.no_grad():
            kept = parameter.clone()
            parameter += torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
            change = (net(x) - before).abs().max()
            parameter.copy_(kept)
        assert change > 1e-4 or name.endswith(("k_proj.bias", "norm2.bias")), name  # no softmax sees a constant
    net.train()
    HierarchicalLoss()(net(x, label), label).backward()
    for name, parameter in attention.named_parameters():
        assert parameter.grad is not None
        assert parameter.grad.abs().max() > 1e-9 or name.endswith(("k_proj.bias", "norm2.bias")), name


def test_class_noise_follows_the_frequencies():
    label = torch.zeros(2, 1, 64, 64)
    label[0, :, :32, :32] = 2  # 1024 pixels
    label[1, :, 48:, 48:] = 1  # 256 pixels; no pixel of class 3
    noise = class_noise(label, 4, 4, noise=0.5).reshape(2, 4, 4)
    pixels = {0: 2 * 64 * 64 - 1024 - 256, 1: 256, 2: 1024}
    of_class = {c: 0.5 * np.log(pixels[0] / n) / np.log(pixels[0] / 256) for c, n in pixels.items()}
    assert (of_class[0], of_class[1]) == (0, 0.5)
    expected = torch.zeros(2, 4, 4)
    expected[0, :2, :2] = of_class[2]
    expected[1, 3, 3] = of_class[1]
    torch.testing.assert_close(noise, expected)
    # at another resolution a token has the mean over its pixels
    torch.testing.assert_close(class_noise(label, 4, 1, 0.5).flatten(), expected.mean((1, 2)))
    assert not class_noise(torch.zeros(1, 1, 8, 8), 4, 4).any()  # one class, or all equally common
    assert not class_noise(torch.arange(4).reshape(1, 1, 2, 2), 4, 4).any()


@torch.no_grad()
def test_class_noise_needs_training_and_a_label():
    _, attention = gated()
    tokens, keys, label = torch.randn(2, 4, 32), torch.randn(2, 16, 32), labels(4, 64)
    clean = attention.eval()(tokens, keys)
    assert torch.equal(attention(tokens, keys, label), clean)
    attention.train()
    assert (attention(tokens, keys, label) - clean).abs().max() > 1e-3
    assert torch.equal(attention(tokens, keys, torch.zeros_like(label)), clean)  # one class only
    with pytest.warns(UserWarning, match=r"call network\(image, label\)"):
        assert torch.equal(attention(tokens, keys), clean)
    net = hierarchical(num_classes=4).train()  # the release's decoder needs none, and says nothing
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        net(image(1, 1, 64, 64))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"decoder_rank": 4}, ("decoder_rank is 4", "decoder_rank=0")),
        ({"stage": 1}, ("stage is 1", "3 (mean of both stages) or 2")),
        ({"embedding_noise": -0.1}, ("embedding_noise is -0.1", "at least 0")),
        ({"decoder": "sam", "class_balanced_attention": True}, ("class_balanced_attention", "decoder='hierarchical'")),
        ({"decoder": "h-sam"}, ("'h-sam'", "'sam' or 'hierarchical'")),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings, words):
    with refused(*words), torch.device("meta"):
        build_segmenter(**{"encoder": "tiny", "decoder": "hierarchical", **settings})


def test_prompts_are_refused():
    with refused("no prompts", "decoder='sam'"):
        hierarchical(64, 3).predict_masks([{"image": torch.zeros(3, 64, 64)}], multimask_output=False)


@pytest.mark.parametrize(("gate", "stage"), itertools.product([False, True], [2, 3]))
def test_describe_names_the_decoder(gate, stage):
    with torch.device("meta"):
        net = build_segmenter("tiny", num_classes=9, decoder="hierarchical", class_balanced_attention=gate, stage=stage)
    attention = " with class-balanced attention" if gate else ""
    assert net.describe().endswith(f"; hierarchical decoder{attention}, stage {stage}, 9 classes")
    assert net.decoder == "hierarchical"
    assert tiny().decoder == "sam"


@torch.no_grad()
def test_half_precision():
    """Under bfloat16 autocast the masks stay within its rounding."""
    net = hierarchical(64, class_balanced_attention=True, encoder={"out_chans": 256}).eval()
    x = image(2, 1, 64, 64)
    exact = net(x)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = net(x)
    assert (rounded - exact).std() < 0.05 * exact.std()
