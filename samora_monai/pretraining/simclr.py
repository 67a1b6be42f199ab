"""SimCLRv2's ResNet with selective kernels and its projection head: the teacher of the image level.

SimCLRv2 (https://arxiv.org/abs/2006.10029), ResNet-D (https://arxiv.org/abs/1812.01187), selective kernels
(https://arxiv.org/abs/1903.06586); after google-research/simclr, `tf2/resnet.py` (Apache-2.0), its padding included.

Differs from that code in: channels come first; the width is given in channels, so that small networks can be built.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from monai.utils import convert_to_tensor
from torch import Tensor, nn

from samora_monai.checkpoints.files import LoadReport, Source, copy_strictly
from samora_monai.errors import InputError
from samora_monai.networks.framing import resize_image
from samora_monai.pretraining.simclr_checkpoint import our_names, sizes_of
from samora_monai.pretraining.teacher import Teacher, describe_weights, three_channels

SIMCLR_PRESETS: dict[str, dict[str, Any]] = {
    "r50_2x_sk1": {"width": 128, "depths": (3, 4, 6, 3), "image_size": 224},
    "tiny": {"width": 16, "depths": (1, 1, 1, 1), "image_size": 96},
}
_EXPANSION = 4  # of a bottleneck: channels out per channel inside
# blocks of each group -> name in the public files
_DEPTHS: dict[tuple[int, ...], str] = {(3, 4, 6, 3): "r50", (3, 4, 23, 3): "r101", (3, 8, 36, 3): "r152"}


def conv(in_channels: int, out_channels: int, kernel_size: int, stride: int = 1) -> nn.Conv2d:
    """Convolution without bias; a 3x3 kernel is padded by one zero on each side, as the original's fixed padding."""
    return nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding=kernel_size // 2, bias=False)


class Stem(nn.Module):
    """Three 3x3 convolutions, the first of stride 2, and a max pool: `[B, 3, H, W]` -> `[B, C, H/4, W/4]`."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = conv(3, width // 2, 3, stride=2), nn.BatchNorm2d(width // 2)
        self.conv2, self.bn2 = conv(width // 2, width // 2, 3), nn.BatchNorm2d(width // 2)
        self.conv3, self.bn3 = conv(width // 2, width, 3), nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = F.relu(self.bn2(self.conv2(x)))
        x = F.relu(self.bn3(self.conv3(x)))
        # TensorFlow's "same" padding of an even side: none before, one after. Zeros are neutral after a ReLU.
        height, width = x.shape[-2:]
        return F.max_pool2d(F.pad(x, (width % 2, 1, height % 2, 1)), 3, 2)


class SelectiveKernel(nn.Module):
    """Two 3x3 streams u_1, u_2 (of one convolution), mixed per channel by attention over the streams.

    `u = ReLU(BN(conv x))`, `g = mean_hw(u_1 + u_2)`, `a = softmax_streams(W_2 ReLU(BN(W_1 g)))`,
    `out = a_1 u_1 + a_2 u_2`.
    """

    def __init__(self, channels: int, stride: int) -> None:
        super().__init__()
        hidden = max(channels // 16, 32)
        self.conv, self.bn = conv(channels, 2 * channels, 3, stride), nn.BatchNorm2d(2 * channels)
        self.reduce, self.reduce_bn = conv(channels, hidden, 1), nn.BatchNorm2d(hidden)
        self.select = conv(hidden, 2 * channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        u = F.relu(self.bn(self.conv(x))).unflatten(1, (2, -1))  # [B, 2, C, h, w]
        g = u.mean((3, 4), keepdim=True).sum(1)  # [B, C, 1, 1]
        a = self.select(F.relu(self.reduce_bn(self.reduce(g)))).unflatten(1, (2, -1)).softmax(1)  # [B, 2, C, 1, 1]
        return (u * a).sum(1)


class Shortcut(nn.Module):
    """The shortcut of ResNet-D: a 2x2 average pool with the block's stride, a 1x1 convolution, a BatchNorm."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.conv, self.bn = conv(in_channels, out_channels, 1), nn.BatchNorm2d(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        if self.stride == 1:
            # TensorFlow averages over the pixels inside the image; so does a 2x2 window over a repeated border.
            x = F.avg_pool2d(F.pad(x, (0, 1, 0, 1), mode="replicate"), 2, 1)
        else:
            height, width = x.shape[-2:]
            x = F.avg_pool2d(F.pad(x, (0, width % 2, 0, height % 2)), 2)  # an odd side gets a zero at its end
        return self.bn(self.conv(x))


class Bottleneck(nn.Module):
    """1x1, selective kernel, 1x1 to four times the channels; `relu(out + shortcut)`."""

    def __init__(self, in_channels: int, channels: int, stride: int, project: bool) -> None:
        super().__init__()
        out_channels = _EXPANSION * channels
        self.conv1, self.bn1 = conv(in_channels, channels, 1), nn.BatchNorm2d(channels)
        self.sk = SelectiveKernel(channels, stride)
        self.conv3, self.bn3 = conv(channels, out_channels, 1), nn.BatchNorm2d(out_channels)
        self.shortcut = Shortcut(in_channels, out_channels, stride) if project else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        out = self.sk(F.relu(self.bn1(self.conv1(x))))
        return F.relu(self.bn3(self.conv3(out)) + self.shortcut(x))


def group(in_channels: int, channels: int, depth: int, stride: int) -> nn.Sequential:
    """`depth` bottlenecks; the first changes size and channels, and has the only projection."""
    first = Bottleneck(in_channels, channels, stride, project=True)
    rest = [Bottleneck(_EXPANSION * channels, channels, 1, project=False) for _ in range(depth - 1)]
    return nn.Sequential(first, *rest)


class ProjectionHead(nn.Module):
    """Three linear layers without bias, each with BatchNorm; the last BatchNorm only scales."""

    def __init__(self, dim: int, out_dim: int = 128) -> None:
        super().__init__()
        self.linear1, self.bn1 = nn.Linear(dim, dim, bias=False), nn.BatchNorm1d(dim)
        self.linear2, self.bn2 = nn.Linear(dim, dim, bias=False), nn.BatchNorm1d(dim)
        self.linear3, self.bn3 = nn.Linear(dim, out_dim, bias=False), nn.BatchNorm1d(out_dim)
        self.bn3.bias.requires_grad_(False)  # stays zero; the converted files hold it, as a zero

    def forward(self, h: Tensor) -> Tensor:
        h = F.relu(self.bn1(self.linear1(h)))
        h = F.relu(self.bn2(self.linear2(h)))
        return self.bn3(self.linear3(h))


class SimCLRTeacher(Teacher):
    """SimCLRv2: the pooled features h of an image, and their projection z.

    Args:
        preset: name in `SIMCLR_PRESETS`, or a dict of `width` (channels after the stem, 64 times the width of
            ResNet-50), `depths` (blocks of each group) and `image_size` (side that `forward` resizes to).

    Raises:
        InputError: there is no such preset.
    """

    method = "simclr"
    presets = SIMCLR_PRESETS
    public_checkpoint = (
        "r50_2x_sk1.pth (preset r50_2x_sk1), which the SimCLRv2 converter, github.com/Separius/SimCLRv2-Pytorch, makes "
        "of Google's"
    )

    def __init__(self, preset: str | dict[str, Any] = "r50_2x_sk1") -> None:
        super().__init__()
        preset = self.find_preset(preset)
        width, depths = preset["width"], preset["depths"]
        self.preset = size_name(width, depths)
        self.image_size: int = preset["image_size"]
        self.stem = Stem(width)
        self.layer1 = group(width, width, depths[0], stride=1)
        self.layer2 = group(_EXPANSION * width, 2 * width, depths[1], stride=2)
        self.layer3 = group(_EXPANSION * 2 * width, 4 * width, depths[2], stride=2)
        self.layer4 = group(_EXPANSION * 4 * width, 8 * width, depths[3], stride=2)
        self.out_dim: int = _EXPANSION * 8 * width
        self.head = ProjectionHead(self.out_dim)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialise as SimCLR: kernels by fan-in, the head with std 0.01, the last BatchNorm of a block at zero."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                # Keras' VarianceScaling: a normal truncated at two of its standard deviations, rescaled to variance 1/n
                std = module.weight[0].numel() ** -0.5 / 0.87962566103423978
                nn.init.trunc_normal_(module.weight, std=std, a=-2 * std, b=2 * std)
            elif isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.01)
            elif isinstance(module, Bottleneck):
                nn.init.zeros_(module.bn3.weight)

    def forward(self, x: Tensor) -> Tensor:
        """`[B, 1 or 3, H, W]` in [0, 1], any H and W, resized to `image_size` -> pooled features h `[B, out_dim]`."""
        x = convert_to_tensor(x, track_meta=False)
        return self.features(resize_image(x, (self.image_size, self.image_size)))

    @property
    def grid(self) -> int:
        """Side of the map before the pooling."""
        return -(-self.image_size // 32)

    def features(self, x: Tensor) -> Tensor:
        """`[B, 1 or 3, H, W]` in [0, 1], not resized -> pooled features h `[B, out_dim]`."""
        return self._map(x).mean((2, 3))

    def dense_features(self, x: Tensor) -> Tensor:
        """As `forward`, h and the map before the pooling, row by row -> `[B, 1 + grid * grid, out_dim]`, h first."""
        x = convert_to_tensor(x, track_meta=False)
        tokens = self._map(resize_image(x, (self.image_size, self.image_size))).flatten(2).mT
        return torch.cat([tokens.mean(1, keepdim=True), tokens], 1)

    def _map(self, x: Tensor) -> Tensor:
        x = self.layer1(self.stem(three_channels(x)))
        return self.layer4(self.layer3(self.layer2(x)))  # [B, out_dim, H / 32, W / 32]

    def load_public(self, state: Mapping[str, Tensor], name: str) -> LoadReport:
        """Load SimCLRv2's checkpoint as converted to PyTorch; its ImageNet classifier, `fc`, is dropped."""
        if (sizes := sizes_of(state)) is None:
            raise InputError(
                f"checkpoint {name} is {describe_weights(state)}; expected a SimCLR teacher file of ours or "
                f"{self.public_checkpoint}"
            )
        if (found := size_name(*sizes)) != self.preset:
            remedy = "give a file of the network's size, or build the teacher from the file's sizes"
            if found in SIMCLR_PRESETS:
                remedy = f"build the teacher with preset {found!r}"
            raise InputError(f"checkpoint {name} is of {found}, the network is {self.preset}; {remedy}")
        ours, dropped = our_names(state)
        remedy = f"expected the converted r50_2x_sk1.pth with its two parts, resnet and head, for preset {self.preset}"
        copied = copy_strictly(self, ours, list(self.state_dict()), name, remedy)
        return LoadReport(name, copied=copied, dropped=dropped)


def load_simclr(net: SimCLRTeacher, source: Source) -> LoadReport:
    """Load a teacher file or SimCLRv2's public checkpoint, see `Teacher.load_weights`."""
    return net.load_weights(source)


class ContrastivePretraining(nn.Module):
    """Pretraining of a teacher: two views of each image to their projections, without resizing."""

    def __init__(self, teacher: SimCLRTeacher) -> None:
        super().__init__()
        self.teacher = teacher

    def forward(self, views: Tensor) -> Tensor:
        """`[B, 2, 1 or 3, H, W]` in [0, 1] -> z `[B, 2, 128]`; both views share the statistics of BatchNorm."""
        return self.teacher.head(self.teacher.features(views.flatten(0, 1))).unflatten(0, (-1, 2))


def size_name(width: int, depths: Sequence[int], selective: bool = True) -> str:
    """Return the preset of these sizes, the name of the public file, or a description, e.g. `"r50_1x_sk0"`."""
    depths = tuple(depths)
    for name, preset in SIMCLR_PRESETS.items():
        if selective and (width, depths) == (preset["width"], preset["depths"]):
            return name
    if depths in _DEPTHS and width % 64 == 0:
        return f"{_DEPTHS[depths]}_{width // 64}x_sk{int(selective)}"
    return f"ResNet {width} wide, {'-'.join(map(str, depths))} blocks"
