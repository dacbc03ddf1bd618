"""Networks of the tutorials and the paper, and those that people compare with on ImageNet.

The ImageNet ones have torchvision's names in their state dicts: ``model.load_state_dict(torch.load("resnet50-11ad3fa6.pth"))``
puts one of its checkpoints into them. No weights come with this package.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import InputError
from .attention import SelfAttention

Activation = Callable[[Tensor], Tensor]


def _start(model: nn.Module) -> None:
    """Random weights of convolutions as He et al. (2015) draw them, by the number of outputs; their biases zero."""
    for m in model.modules():
        if isinstance(m, nn.Conv2d):
            nn.init.kaiming_normal_(m.weight, mode="fan_out")
            if m.bias is not None:
                nn.init.zeros_(m.bias)


class Block(nn.Module):
    """Two 3x3 convolutions and a shortcut without weights (option A of He et al. 2016: subsample, pad with zero channels)."""

    def __init__(self, into: int, out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(into, out, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(out)
        self.conv2 = nn.Conv2d(out, out, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out)
        self.stride, self.extra = stride, out - into

    def forward(self, x: Tensor) -> Tensor:
        """(N, into, H, W) to (N, out, H / stride, W / stride)."""
        y = F.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        if self.stride > 1 or self.extra:
            x = F.pad(
                x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.extra // 2, self.extra - self.extra // 2)
            )
        return F.relu(y + x)


class CifarResNet(nn.Module):
    """The residual networks of He et al. (2016) for small images: three stages of `blocks` blocks, 6 * blocks + 2 layers.

    width     multiplies the channels 16, 32, 64
    channels  of the input image
    """

    def __init__(self, blocks: int, width: int = 1, channels: int = 3, classes: int = 10) -> None:
        super().__init__()
        widths = [16 * width, 32 * width, 64 * width]
        self.conv1 = nn.Conv2d(channels, widths[0], 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        stages, into = [], widths[0]
        for k, out in enumerate(widths):
            for b in range(blocks):
                stages.append(Block(into, out, 2 if k > 0 and b == 0 else 1))
                into = out
        self.blocks = nn.Sequential(*stages)
        self.linear = nn.Linear(into, classes)
        _start(self)

    def forward(self, x: Tensor) -> Tensor:
        """(N, channels, H, W) to (N, classes) logits."""
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.blocks(x)
        return self.linear(x.mean((2, 3)))


def digits_resnet() -> nn.Module:
    """For 8x8 digits: three residual blocks, about 75,000 weights. Input (N, 1, 8, 8)."""
    return CifarResNet(1, channels=1)


def cifar_resnet(depth: int, width: int = 1, classes: int = 10) -> nn.Module:
    """ResNet-20, 32, 44, 56 or 110 (any 6 n + 2) for images of 32 x 32; InputError for other depths. Input (N, 3, 32, 32)."""
    if depth < 8 or (depth - 2) % 6:
        raise InputError(f"a ResNet of depth {depth} for small images: 6 n + 2 layers are needed, such as 20, 32, 44, 56, 110")
    return CifarResNet((depth - 2) // 6, width, classes=classes)


def cifar_resnet20(width: int = 1, classes: int = 10) -> nn.Module:
    """ResNet-20: 0.27 M parameters at width 1, 4.3 M at width 4. Input (N, 3, 32, 32)."""
    return cifar_resnet(20, width, classes)


VGG16 = (64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512, 512, 0)  # channels; 0: halve the image


def cifar_vgg16(classes: int = 10) -> nn.Module:
    """VGG-16 with batch norm and the head of 512 hidden units that is usual for CIFAR: 15.0 M parameters. Input (N, 3, 32, 32)."""
    layers, into = [], 3
    for out in VGG16:
        layers += [*_unit(into, out, 3, act=nn.ReLU)] if out else [nn.MaxPool2d(2)]
        into = out or into
    head = [nn.Flatten(), nn.Linear(512, 512), nn.BatchNorm1d(512), nn.ReLU(), nn.Linear(512, classes)]
    model = nn.Sequential(*layers, *head)
    _start(model)
    return model


def lenet300() -> nn.Module:
    """LeNet-300-100: dense layers only, 266,610 parameters. Input (N, 1, 28, 28)."""
    return nn.Sequential(
        nn.Flatten(), nn.Linear(784, 300), nn.ReLU(), nn.Linear(300, 100), nn.ReLU(), nn.Linear(100, 10)
    )


def with_pixel_norm(model: nn.Module, channels: int = 3) -> nn.Module:
    """The network behind a norm layer that learns mean and variance of the pixels: images then go in as they are, 0 .. 1."""
    return nn.Sequential(OrderedDict(pixels=nn.BatchNorm2d(channels, affine=False), network=model))


@torch.no_grad()
def set_pixel_norm(model: nn.Module, images: Tensor) -> None:
    """Mean and variance of the pixels of images (N, C, H, W) for the norm layer of `with_pixel_norm`, as if it had seen them for long."""
    variance, mean = torch.var_mean(images.to(model.pixels.running_mean), (0, 2, 3))
    model.pixels.running_mean.copy_(mean)
    model.pixels.running_var.copy_(variance)


def lenet5() -> nn.Module:
    """LeNet5 as in the Caffe examples: two 5x5 convolutions and two dense layers, 431,080 parameters. Input (N, 1, 28, 28)."""
    return nn.Sequential(
        nn.Conv2d(1, 20, 5),
        nn.MaxPool2d(2),
        nn.Conv2d(20, 50, 5),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(800, 500),
        nn.ReLU(),
        nn.Linear(500, 10),
    )


class BasicBlock(nn.Module):
    """Two 3x3 convolutions; the shortcut has a 1x1 convolution where shapes change (option B of He et al. 2016)."""

    expansion = 1

    def __init__(self, into: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(into, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = _shortcut(into, width, stride)

    def forward(self, x: Tensor) -> Tensor:
        """(N, into, H, W) to (N, width, H / stride, W / stride)."""
        y = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(y)) + self.downsample(x))


class Bottleneck(nn.Module):
    """1x1 to `width` channels, 3x3 with the stride, 1x1 to four times as many; shortcut as in `BasicBlock`."""

    expansion = 4

    def __init__(self, into: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(into, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, 4 * width, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(4 * width)
        self.downsample = _shortcut(into, 4 * width, stride)

    def forward(self, x: Tensor) -> Tensor:
        """(N, into, H, W) to (N, 4 * width, H / stride, W / stride)."""
        y = F.relu(self.bn1(self.conv1(x)))
        y = F.relu(self.bn2(self.conv2(y)))
        return F.relu(self.bn3(self.conv3(y)) + self.downsample(x))


def _shortcut(into: int, out: int, stride: int) -> nn.Module:
    if stride == 1 and into == out:
        return nn.Identity()
    return nn.Sequential(nn.Conv2d(into, out, 1, stride, bias=False), nn.BatchNorm2d(out))


class ResNet(nn.Module):
    """The residual networks of He et al. (2016) for ImageNet, in torchvision's layout and with its state-dict names.

    block   BasicBlock or Bottleneck, whose stride is in the 3x3 convolution ("v1.5")
    depths  number of blocks in each of the four stages, of 64, 128, 256 and 512 channels (times block.expansion)
    """

    def __init__(self, block: type[BasicBlock] | type[Bottleneck], depths: tuple[int, ...], classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        into = 64
        for k, depth in enumerate(depths):
            stage = []
            for b in range(depth):
                stage.append(block(into, 64 * 2**k, 2 if k > 0 and b == 0 else 1))
                into = 64 * 2**k * block.expansion
            setattr(self, f"layer{k + 1}", nn.Sequential(*stage))
        self.fc = nn.Linear(into, classes)
        _start(self)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, H, W), usually 224 x 224, to (N, classes) logits."""
        x = self.maxpool(F.relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(x.mean((2, 3)))


def resnet18(classes: int = 1000) -> ResNet:
    """11,689,512 parameters. Input (N, 3, 224, 224); state-dict names as in torchvision."""
    return ResNet(BasicBlock, (2, 2, 2, 2), classes)


def resnet34(classes: int = 1000) -> ResNet:
    """21,797,672 parameters. Input (N, 3, 224, 224); state-dict names as in torchvision."""
    return ResNet(BasicBlock, (3, 4, 6, 3), classes)


def resnet50(classes: int = 1000) -> ResNet:
    """25,557,032 parameters. Input (N, 3, 224, 224); state-dict names as in torchvision."""
    return ResNet(Bottleneck, (3, 4, 6, 3), classes)


def _eighths(channels: float) -> int:
    """The nearest multiple of 8, at least 8, but not less than nine tenths: how MobileNets round."""
    rounded = max(8, int(channels + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * channels else rounded


def _unit(into: int, out: int, kernel: int, stride: int = 1, groups: int = 1, act=None, **norm) -> nn.Sequential:
    """Convolution, batch norm and, if given, an activation: (N, into, H, W) to (N, out, H / stride, W / stride)."""
    conv = nn.Conv2d(into, out, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(out, **norm), *([act()] if act else []))


class InvertedResidual(nn.Module):
    """MobileNetV2's block: 1x1 to `inner` channels, 3x3 depthwise, 1x1 back without activation; a sum where shapes agree."""

    def __init__(self, into: int, inner: int, out: int, stride: int) -> None:
        super().__init__()
        wide = [_unit(into, inner, 1, act=nn.ReLU6)] if inner != into else []
        deep = _unit(inner, inner, 3, stride, groups=inner, act=nn.ReLU6)
        self.conv = nn.Sequential(*wide, deep, *_unit(inner, out, 1))
        self.residual = stride == 1 and into == out

    def forward(self, x: Tensor) -> Tensor:
        """(N, into, H, W) to (N, out, H / stride, W / stride)."""
        return x + self.conv(x) if self.residual else self.conv(x)


# channels, blocks, stride of the first; all but the first row expand to six times as many channels inside
MOBILENET_V2 = ((16, 1, 1), (24, 2, 2), (32, 3, 2), (64, 4, 2), (96, 3, 1), (160, 3, 2), (320, 1, 1))


class MobileNetV2(nn.Module):
    """MobileNetV2 (Sandler et al. 2018), in torchvision's layout and with its state-dict names.

    width  multiplies all channels, those of the last convolution only if it is above 1
    """

    def __init__(self, width: float, classes: int) -> None:
        super().__init__()
        into, last = _eighths(32 * width), _eighths(1280 * max(1.0, width))
        layers = [_unit(3, into, 3, 2, act=nn.ReLU6)]
        for row, (channels, blocks, stride) in enumerate(MOBILENET_V2):
            out = _eighths(channels * width)
            for b in range(blocks):
                layers.append(InvertedResidual(into, into * (6 if row else 1), out, stride if b == 0 else 1))
                into = out
        self.features = nn.Sequential(*layers, _unit(into, last, 1, act=nn.ReLU6))
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(last, classes))
        _start(self)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, H, W), usually 224 x 224, to (N, classes) logits."""
        return self.classifier(self.features(x).mean((2, 3)))


def mobilenet_v2(width: float = 1.0, classes: int = 1000) -> MobileNetV2:
    """3,504,872 parameters at width 1. Input (N, 3, 224, 224); state-dict names as in torchvision."""
    return MobileNetV2(width, classes)


class SqueezeExcite(nn.Module):
    """A gate between 0 and 1 for every channel, computed from the means of all (Hu et al. 2018).

    inner      channels between the two layers
    act, gate  what follows the first layer, and the second
    """

    def __init__(self, channels: int, inner: int, act: Activation = F.relu, gate: Activation = F.hardsigmoid) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Conv2d(channels, inner, 1), nn.Conv2d(inner, channels, 1)
        self.act, self.gate = act, gate

    def forward(self, x: Tensor) -> Tensor:
        """(N, channels, H, W) to the same."""
        return x * self.gate(self.fc2(self.act(self.fc1(x.mean((2, 3), keepdim=True)))))


class GatedResidual(nn.Module):
    """The block of MobileNetV3 and EfficientNet: `InvertedResidual` with any kernel and activation, and perhaps a gate.

    gate  a `SqueezeExcite` after the depthwise convolution, or None
    norm  options of the norm layers
    drop  probability that an image, in training, takes the shortcut alone (Huang et al. 2016)
    """

    def __init__(
        self,
        into: int,
        inner: int,
        out: int,
        kernel: int,
        stride: int,
        act: type[nn.Module],
        gate: SqueezeExcite | None = None,
        norm: dict | None = None,
        drop: float = 0.0,
    ) -> None:
        super().__init__()
        norm = norm or {}
        wide = [_unit(into, inner, 1, act=act, **norm)] if inner != into else []
        deep = _unit(inner, inner, kernel, stride, groups=inner, act=act, **norm)
        self.block = nn.Sequential(*wide, deep, *([gate] if gate else []), _unit(inner, out, 1, **norm))
        self.residual, self.drop = stride == 1 and into == out, drop

    def forward(self, x: Tensor) -> Tensor:
        """(N, into, H, W) to (N, out, H / stride, W / stride)."""
        y = self.block(x)
        if not self.residual:
            return y
        if self.training and self.drop:
            keep = x.new_empty(len(x), 1, 1, 1).bernoulli_(1 - self.drop)
            y = y * (keep / (1 - self.drop))
        return x + y


V3_NORM = {"eps": 0.001, "momentum": 0.01}
# kernel, channels inside, channels, squeeze-excite, hard-swish (else ReLU), stride (Howard et al. 2019, tables 1 and 2)
MOBILENET_V3_LARGE = (
    (3, 16, 16, False, False, 1),
    (3, 64, 24, False, False, 2),
    (3, 72, 24, False, False, 1),
    (5, 72, 40, True, False, 2),
    (5, 120, 40, True, False, 1),
    (5, 120, 40, True, False, 1),
    (3, 240, 80, False, True, 2),
    (3, 200, 80, False, True, 1),
    (3, 184, 80, False, True, 1),
    (3, 184, 80, False, True, 1),
    (3, 480, 112, True, True, 1),
    (3, 672, 112, True, True, 1),
    (5, 672, 160, True, True, 2),
    (5, 960, 160, True, True, 1),
    (5, 960, 160, True, True, 1),
)
MOBILENET_V3_SMALL = (
    (3, 16, 16, True, False, 2),
    (3, 72, 24, False, False, 2),
    (3, 88, 24, False, False, 1),
    (5, 96, 40, True, True, 2),
    (5, 240, 40, True, True, 1),
    (5, 240, 40, True, True, 1),
    (5, 120, 48, True, True, 1),
    (5, 144, 48, True, True, 1),
    (5, 288, 96, True, True, 2),
    (5, 576, 96, True, True, 1),
    (5, 576, 96, True, True, 1),
)


class MobileNetV3(nn.Module):
    """MobileNetV3 (Howard et al. 2019), in torchvision's layout and with its state-dict names.

    rows   MOBILENET_V3_LARGE or MOBILENET_V3_SMALL
    last   width of the dense layer before the classes
    width  multiplies all channels, of that layer too
    """

    def __init__(self, rows: tuple[tuple, ...], last: int, classes: int, width: float) -> None:
        super().__init__()
        into, last = _eighths(16 * width), _eighths(last * width)
        layers: list[nn.Module] = [_unit(3, into, 3, 2, act=nn.Hardswish, **V3_NORM)]
        for kernel, inner, out, gated, hard, stride in rows:
            inner, out = _eighths(inner * width), _eighths(out * width)
            act, gate = nn.Hardswish if hard else nn.ReLU, SqueezeExcite(inner, _eighths(inner // 4)) if gated else None
            layers.append(GatedResidual(into, inner, out, kernel, stride, act, gate, V3_NORM))
            into = out
        self.features = nn.Sequential(*layers, _unit(into, 6 * into, 1, act=nn.Hardswish, **V3_NORM))
        self.classifier = nn.Sequential(
            nn.Linear(6 * into, last), nn.Hardswish(), nn.Dropout(0.2), nn.Linear(last, classes)
        )
        _start(self)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, H, W), usually 224 x 224, to (N, classes) logits."""
        return self.classifier(self.features(x).mean((2, 3)))


def mobilenet_v3_small(classes: int = 1000, width: float = 1.0) -> MobileNetV3:
    """2,542,856 parameters at width 1. Input (N, 3, 224, 224); state-dict names as in torchvision."""
    return MobileNetV3(MOBILENET_V3_SMALL, 1024, classes, width)


def mobilenet_v3_large(classes: int = 1000, width: float = 1.0) -> MobileNetV3:
    """5,483,032 parameters at width 1. Input (N, 3, 224, 224); state-dict names as in torchvision."""
    return MobileNetV3(MOBILENET_V3_LARGE, 1280, classes, width)


# factor inside, kernel, channels, blocks, stride of the first (Tan and Le 2019, table 1)
EFFICIENTNET_B0 = (
    (1, 3, 16, 1, 1),
    (6, 3, 24, 2, 2),
    (6, 5, 40, 2, 2),
    (6, 3, 80, 3, 2),
    (6, 5, 112, 3, 1),
    (6, 5, 192, 4, 2),
    (6, 3, 320, 1, 1),
)


class EfficientNet(nn.Module):
    """EfficientNet-B0 (Tan and Le 2019), in torchvision's layout and with its state-dict names.

    width  multiplies all channels
    drop   probability of the last block's shortcut; it rises from 0 linearly with depth
    """

    def __init__(self, classes: int, width: float, drop: float = 0.2) -> None:
        super().__init__()
        into, last, done, count = _eighths(32 * width), _eighths(1280 * width), 0, sum(row[3] for row in EFFICIENTNET_B0)
        layers: list[nn.Module] = [_unit(3, into, 3, 2, act=nn.SiLU)]
        for factor, kernel, channels, blocks, stride in EFFICIENTNET_B0:
            stage, out = [], _eighths(channels * width)
            for b in range(blocks):
                inner = into * factor
                gate = SqueezeExcite(inner, into // 4, F.silu, torch.sigmoid)
                chance = drop * done / count
                stage.append(GatedResidual(into, inner, out, kernel, stride if b == 0 else 1, nn.SiLU, gate, drop=chance))
                into, done = out, done + 1
            layers.append(nn.Sequential(*stage))
        self.features = nn.Sequential(*layers, _unit(into, last, 1, act=nn.SiLU))
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(last, classes))
        _start(self)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, H, W), usually 224 x 224, to (N, classes) logits."""
        return self.classifier(self.features(x).mean((2, 3)))


def efficientnet_b0(classes: int = 1000, width: float = 1.0) -> EfficientNet:
    """5,288,548 parameters at width 1. Input (N, 3, 224, 224); state-dict names as in torchvision."""
    return EfficientNet(classes, width)


BUCKETS = 4  # of texts by their lengths


class EncoderLayer(nn.Module):
    """Self-attention and two dense layers, each behind a layer norm and beside a shortcut (Xiong et al. 2020)."""

    def __init__(self, width: int, heads: int, inner: int, dropout: float) -> None:
        super().__init__()
        self.norm1, self.attention = nn.LayerNorm(width), SelfAttention(width, heads, dropout)
        self.norm2, self.up, self.down = nn.LayerNorm(width), nn.Linear(width, inner), nn.Linear(inner, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """(N, T, width) to the same shape; for the mask see `SelfAttention`."""
        x = x + self.dropout(self.attention(self.norm1(x), mask))
        return x + self.dropout(self.down(F.gelu(self.up(self.norm2(x)))))


class Encoder(nn.Module):
    """A small BERT (Devlin et al. 2019) that classifies texts by the mean of what it makes of their tokens; token 0, at the end, is none.

    In training, texts of similar lengths are computed together, so that little is computed where there are no tokens.

    vocabulary  numbers of tokens that there are
    length      tokens of a text at most
    """

    def __init__(
        self, vocabulary: int, classes: int, width: int, heads: int, inner: int, layers: int, length: int, dropout: float
    ) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(vocabulary, width), nn.Embedding(length, width)
        self.layers = nn.ModuleList(EncoderLayer(width, heads, inner, dropout) for _ in range(layers))
        self.norm, self.dropout, self.head = nn.LayerNorm(width), nn.Dropout(dropout), nn.Linear(width, classes)
        for m in (self.tokens, self.places):
            nn.init.normal_(m.weight, std=0.02)

    def forward(self, tokens: Tensor) -> Tensor:
        """(N, T) whole numbers to (N, classes) logits."""
        if not self.training or len(tokens) < BUCKETS:
            return self._classify(tokens)
        lengths = (tokens > 0).sum(1)
        parts = lengths.argsort().chunk(BUCKETS)
        logits = torch.cat([self._classify(tokens[rows, : max(1, int(lengths[rows[-1]]))]) for rows in parts])
        return logits[torch.cat(parts).argsort()]

    def _classify(self, tokens: Tensor) -> Tensor:
        there = F.pad(tokens[:, 1:] > 0, (1, 0), value=True)  # so that there is always one
        x = self.dropout(self.tokens(tokens) + self.places.weight[: tokens.shape[1]])
        for layer in self.layers:
            x = layer(x, there[:, None, None])
        mean = (self.norm(x) * there[..., None]).sum(1) / there.sum(1, keepdim=True).clamp_min(1)
        return self.head(mean)


def encoder(
    vocabulary: int = 8000, classes: int = 2, width: int = 128, heads: int = 4, inner: int = 512, layers: int = 4, length: int = 48,
    dropout: float = 0.1,
) -> Encoder:  # fmt: skip
    """An encoder of texts at a size that a laptop trains from scratch: 1,823,746 parameters. Input (N, T) tokens, T at most `length`."""
    return Encoder(vocabulary, classes, width, heads, inner, layers, length, dropout)


def count_bytes(model: nn.Module) -> int:
    """Size of a network as float32: four bytes for every parameter and buffer, shared ones once."""
    tensors = {id(t): t for t in (*model.parameters(), *model.buffers())}
    return sum(4 * t.numel() for t in tensors.values() if t.is_floating_point() or t.dtype == torch.long)
