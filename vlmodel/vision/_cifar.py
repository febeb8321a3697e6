"""The small ResNets of He et al. 2016 for images of 32 x 32, which torchvision lacks."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional


class CIFARResNet(nn.Module):
    """A ResNet for CIFAR: a 3x3 stem of 16 channels, then three stages of 16, 32 and 64 (He et al. 2016,
    arXiv:1512.03385, section 4.2).

    Weights are named as in a torchvision ResNet, except for the classifier, "linear", as in the CIFAR-10 weights that
    Y. Idelbayev has published (github.com/akamaster/pytorch_resnet_cifar10).

    Args:
        depth: number of layers with weights, 6 n + 2 for n blocks a stage.
    """

    def __init__(self, depth: int) -> None:
        super().__init__()
        blocks = (depth - 2) // 6
        self.conv1 = nn.Conv2d(3, 16, kernel_size=3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.relu = nn.ReLU(inplace=True)
        self.layer1 = _residual_stage(16, 16, blocks)
        self.layer2 = _residual_stage(16, 32, blocks)
        self.layer3 = _residual_stage(32, 64, blocks)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.linear = nn.Linear(64, 10)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Compute the scores (B, 10) of CIFAR-10's classes, in their alphabetical order."""
        x = self.relu(self.bn1(self.conv1(x_BCHW)))
        scores_BK: Tensor = self.linear(self.avgpool(self.layer3(self.layer2(self.layer1(x)))).flatten(1))
        return scores_BK


class PaddedShortcut(nn.Module):
    """A shortcut without weights (the paper's option A): takes every second cell of every second row, and pads with
    zero channels on both sides.
    """

    def __init__(self, added: int) -> None:
        super().__init__()
        self.added = added

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return functional.pad(x_BCHW[:, :, ::2, ::2], (0, 0, 0, 0, self.added // 2, self.added - self.added // 2))


def _residual_stage(channels: int, width: int, blocks: int) -> nn.Sequential:
    from torchvision.models.resnet import BasicBlock

    wider = width > channels
    first = BasicBlock(
        channels, width, stride=2 if wider else 1, downsample=PaddedShortcut(width - channels) if wider else None
    )
    return nn.Sequential(first, *(BasicBlock(width, width) for _ in range(blocks - 1)))
