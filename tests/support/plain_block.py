"""A block of a user's own, and its adapter: the first example of docs/patching.md."""

import torch
from torch import nn

from effnet_fast.nn import ConvBN, MBConvParts


class PlainBlock(nn.Module):
    """A user's own MBConv without squeeze-and-excite."""

    def __init__(self) -> None:
        super().__init__()
        self.expand = nn.Conv2d(4, 16, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.depthwise = nn.Conv2d(16, 16, 3, padding=1, groups=16, bias=False)
        self.bn2 = nn.BatchNorm2d(16)
        self.project = nn.Conv2d(16, 4, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        a = nn.functional.relu6(self.bn1(self.expand(x)))
        a = nn.functional.relu6(self.bn2(self.depthwise(a)))
        return x + self.bn3(self.project(a))


def plain_parts(block: PlainBlock) -> MBConvParts:
    return MBConvParts(
        ConvBN(block.depthwise, block.bn2, "relu6"),
        ConvBN(block.project, block.bn3),
        expand=ConvBN(block.expand, block.bn1, "relu6"),
        residual=True,
        padding=(1, 1, 1, 1),
    )
