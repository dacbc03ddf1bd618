"""Networks of the tutorials and the paper."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


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
        for m in self.modules():
            if isinstance(m, nn.Conv2d):
                nn.init.kaiming_normal_(m.weight, mode="fan_out")

    def forward(self, x: Tensor) -> Tensor:
        """(N, channels, H, W) to (N, classes) logits."""
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.blocks(x)
        return self.linear(x.mean((2, 3)))


def digits_resnet() -> nn.Module:
    """For 8x8 digits: three residual blocks, about 75,000 weights. Input (N, 1, 8, 8)."""
    return CifarResNet(1, channels=1)


def cifar_resnet20(width: int = 1) -> nn.Module:
    """ResNet-20: 0.27 M parameters at width 1, 4.3 M at width 4. Input (N, 3, 32, 32)."""
    return CifarResNet(3, width)


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


def count_bytes(model: nn.Module) -> int:
    """Size of a network as float32: four bytes for every parameter and buffer, shared ones once."""
    tensors = {id(t): t for t in (*model.parameters(), *model.buffers())}
    return sum(4 * t.numel() for t in tensors.values() if t.is_floating_point() or t.dtype == torch.long)
