"""The layout of SimCLRv2's checkpoints as converted to PyTorch (`r50_2x_sk1.pth`), and its names in this package.

`{"resnet": state_dict, "head": state_dict}`, flat keys such as `resnet.net.0.0.weight`. The keys are those of the files
that github.com/Separius/SimCLRv2-Pytorch writes; its code is not used.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

_BLOCK = r"resnet\.net\.([1-4])\.blocks\.(\d+)\."
# Every key matches exactly one rule; "" drops it. ResNet-50 has 444 keys under `resnet`, and the head has 18.
RULES = {
    r"resnet\.net\.0\.0\.weight": "stem.conv1.weight",
    r"resnet\.net\.0\.1\.0\.(\w+)": r"stem.bn1.\1",
    r"resnet\.net\.0\.2\.weight": "stem.conv2.weight",
    r"resnet\.net\.0\.3\.0\.(\w+)": r"stem.bn2.\1",
    r"resnet\.net\.0\.4\.weight": "stem.conv3.weight",
    r"resnet\.net\.0\.5\.0\.(\w+)": r"stem.bn3.\1",
    _BLOCK + r"projection\.shortcut\.2\.weight": r"layer\1.\2.shortcut.conv.weight",
    _BLOCK + r"projection\.bn\.0\.(\w+)": r"layer\1.\2.shortcut.bn.\3",
    _BLOCK + r"net\.0\.weight": r"layer\1.\2.conv1.weight",
    _BLOCK + r"net\.1\.0\.(\w+)": r"layer\1.\2.bn1.\3",
    _BLOCK + r"net\.2\.main_conv\.0\.weight": r"layer\1.\2.sk.conv.weight",
    _BLOCK + r"net\.2\.main_conv\.1\.0\.(\w+)": r"layer\1.\2.sk.bn.\3",
    _BLOCK + r"net\.2\.mixing_conv\.0\.weight": r"layer\1.\2.sk.reduce.weight",
    _BLOCK + r"net\.2\.mixing_conv\.1\.0\.(\w+)": r"layer\1.\2.sk.reduce_bn.\3",
    _BLOCK + r"net\.2\.mixing_conv\.2\.weight": r"layer\1.\2.sk.select.weight",
    _BLOCK + r"net\.3\.weight": r"layer\1.\2.conv3.weight",
    _BLOCK + r"net\.4\.0\.(\w+)": r"layer\1.\2.bn3.\3",
    r"resnet\.fc\.(weight|bias)": "",  # the linear classifier of ImageNet's 1000 classes
    r"head\.layers\.0\.weight": "head.linear1.weight",
    r"head\.layers\.1\.(\w+)": r"head.bn1.\1",
    r"head\.layers\.3\.weight": "head.linear2.weight",
    r"head\.layers\.4\.(\w+)": r"head.bn2.\1",
    r"head\.layers\.6\.weight": "head.linear3.weight",
    r"head\.layers\.7\.(\w+)": r"head.bn3.\1",
}


def _resnet(key: str) -> str:
    return re.sub(r"^encoder\.(?=net\.|fc\.)", "resnet.", key)


def our_names(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """Rename the tensors of a converted file; return them and the dropped keys. Unknown keys keep their names."""
    ours: dict[str, Tensor] = {}
    dropped = []
    for key, value in state.items():
        name = _resnet(key)
        for pattern, replacement in RULES.items():
            if match := re.fullmatch(pattern, name):
                name = match.expand(replacement)
                break
        if name:
            ours[name] = value
        else:
            dropped.append(key)
    return ours, dropped


def sizes_of(state: Mapping[str, Tensor]) -> tuple[int, tuple[int, ...], bool] | None:
    """Width after the stem, blocks of each group, and whether kernels are selective; None for another kind of file."""
    names = {_resnet(key): value for key, value in state.items()}
    blocks = {(m[1], m[2]) for key in names if (m := re.match(_BLOCK, key))}
    selective = any("main_conv" in key for key in names)
    last = names.get("resnet.net.0.4.weight" if selective else "resnet.net.0.0.weight")
    if last is None or last.ndim != 4 or not blocks:
        return None
    groups = sorted({group for group, _ in blocks})
    return len(last), tuple(sum(g == group for g, _ in blocks) for group in groups), selective
