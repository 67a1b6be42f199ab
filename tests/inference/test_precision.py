"""What `--amp auto` chooses, and the numbers that a network then computes in."""

from __future__ import annotations

import pytest
import torch

from samora_monai.inference import AutocastInferer, precision, use_bfloat16
from tests.tiny import refused


class Sized(torch.nn.Module):
    """A network of `millions` million parameters that takes no memory."""

    def __init__(self, millions: float) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.empty(int(millions * 1e6), device="meta"))


def with_capabilities(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: dict.fromkeys(names, True), raising=False)


@pytest.mark.parametrize("native", ["avx512_bf16", "amx_bf16"])
def test_auto_is_bfloat16_for_large_networks_on_processors_that_have_it(monkeypatch, native: str):
    with_capabilities(monkeypatch, "avx512_f", native)
    assert precision("auto", "cpu", Sized(90)) == (True, "bfloat16: the processor has it")
    assert use_bfloat16("auto", "cpu", Sized(32))
    assert not use_bfloat16("auto", "cpu", Sized(14))
    assert not use_bfloat16("auto", "mps", Sized(90))


def test_auto_is_float32_on_other_processors(monkeypatch):
    with_capabilities(monkeypatch, "avx512_f", "avx512_bw")
    assert precision("auto", "cpu", Sized(90)) == (False, "float32: no bfloat16 on this processor")
    monkeypatch.delattr(torch.cpu, "get_capabilities")  # as in an older torch
    assert not use_bfloat16("auto", "cpu", Sized(90))


@pytest.mark.parametrize(("capability", "expected"), [((7, 5), False), ((8, 0), True), ((9, 0), True)])
def test_auto_asks_the_gpu(monkeypatch, capability: tuple[int, int], expected: bool):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert use_bfloat16("auto", "cuda:0", Sized(1)) is expected


def test_a_choice_of_the_user_holds(monkeypatch):
    with_capabilities(monkeypatch)
    assert precision("true", "cpu", Sized(1)) == (True, "bfloat16: --amp true")
    assert precision(False, "cpu", Sized(90)) == (False, "float32: --amp false")
    with refused("amp must be auto, true or false, got 'maybe'; give --amp auto"):
        use_bfloat16("maybe", "cpu", Sized(1))


def test_the_inferer_computes_in_bfloat16_and_returns_float32():
    """Also within lists, as of H-SAM's two decoders, and with gradients of the parameters' own type."""
    torch.manual_seed(0)
    net, x = torch.nn.Linear(64, 8), torch.randn(4, 64)
    inner: list[torch.dtype] = []

    def two(x: torch.Tensor) -> list[torch.Tensor]:
        y = net(x)
        inner.append(y.dtype)
        return [y, y.float()]

    for amp, dtype in ((True, torch.bfloat16), ("false", torch.float32)):
        first, second = AutocastInferer(amp)(x, two)
        assert first.dtype == second.dtype == torch.float32 and inner.pop() == dtype
        torch.testing.assert_close(first, net(x), atol=0.02, rtol=0.02)
        assert torch.equal(first, net(x)) == (dtype == torch.float32)
        first.sum().backward()
        assert net.weight.grad is not None and net.weight.grad.dtype == torch.float32
