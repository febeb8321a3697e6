"""torchvision's classifiers that have feature maps, as chains of blocks that can be cut after any stage."""

from __future__ import annotations

import bisect
import difflib
import functools
import itertools
import re
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

Stem = Literal["imagenet", "small"]

# A ViT is a kind of its own; MaxViT takes images of one size; GoogLeNet and Inception have side exits.
_EXCLUDED = ("vit_", "maxvit_", "googlenet", "inception_")
_HEAD = ("avgpool", "fc", "classifier", "dropout", "permute")
_CHAINS = ("features", "layers", "trunk_output")
_STAGE = re.compile(r"layer\d$|trunk_output\.")  # of a ResNet or RegNet
_PROBE = 256
_LARGEST = 1 << 14  # side of an image, in pixels


@dataclass(frozen=True)
class Layout:
    """What a backbone looks like, found out on the meta device, without weights or arithmetic.

    Attributes:
        blocks: torchvision's names of the blocks, in order of computation.
        stages: for each stage the number of blocks up to its end.
        channels, strides: width and pixels per grid cell at the end of each stage.
        channels_last: blocks give maps (B, H, W, C), as Swin's do, and not (B, C, H, W).
        keys: names of all weights of the whole network, its classifier included.
    """

    blocks: tuple[str, ...]
    stages: tuple[int, ...]
    channels: tuple[int, ...]
    strides: tuple[int, ...]
    channels_last: bool
    keys: frozenset[str]


def names() -> list[str]:
    """Names of the usable backbones, as torchvision spells them."""
    import torchvision

    return [n for n in torchvision.models.list_models(module=torchvision.models) if not n.startswith(_EXCLUDED)]


def check(name: str, stem: Stem) -> None:
    """Raises ValueError with the closest names if there is no backbone ``name``, or it cannot have this ``stem``."""
    known = names()
    if name not in known:
        close = difflib.get_close_matches(name.lower(), known, n=5, cutoff=0.4) or ["resnet18", "resnet50", "vgg16"]
        raise ValueError(
            f"there is no backbone {name!r}; close names: {', '.join(close)}. Any ResNet, RegNet, VGG, DenseNet, "
            "MobileNet, EfficientNet, ConvNeXt or Swin of torchvision.models.list_models() can be used; for a ViT set "
            "vision.kind to 'vit'"
        )
    if stem == "small" and "layer1" not in layout(name, "imagenet").blocks:
        raise ValueError(f"stem='small' is made for ResNets, and name={name!r} is none; use stem='imagenet'")


def create(name: str, stem: Stem) -> nn.Module:
    """The whole torchvision network with fresh weights, its first layers replaced where ``stem`` is "small".

    The small stem (He et al. 2015, section 4.2, for CIFAR) is a 3x3 convolution of stride 1 without max-pooling.
    """
    import torchvision

    with _NumbersOnHost() if name.startswith("regnet_") else nullcontext():
        model: nn.Module = torchvision.models.get_model(name, weights=None)
    if stem == "small":
        model.conv1 = nn.Conv2d(3, model.conv1.out_channels, kernel_size=3, stride=1, padding=1, bias=False)  # type: ignore[union-attr, arg-type]
        nn.init.kaiming_normal_(model.conv1.weight, mode="fan_out", nonlinearity="relu")
        model.maxpool = nn.Identity()
    return model


def blocks(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """(torchvision's name, block) of all that comes before pooling and classifier, in order of computation."""
    for name, child in model.named_children():
        if name.startswith(_HEAD):
            return
        if name in _CHAINS:
            yield from ((f"{name}.{inner}", block) for inner, block in child.named_children())
        else:
            yield name, child


@functools.lru_cache(maxsize=32)
def layout(name: str, stem: Stem) -> Layout:
    """The layout of a backbone. A stage ends where the next block lowers the resolution.

    What a ResNet or RegNet does before its first stage is its stem, so ``stages=3`` of a ResNet ends with ``layer3``.
    """
    with torch.device("meta"), torch.no_grad():
        model = create(name, stem).eval()
        block_names = tuple(block_name for block_name, _ in blocks(model))
        shapes = _shapes(model, _PROBE, len(block_names))
    channels_last = name.startswith("swin_")
    sizes = [shape[2] for shape in shapes]
    widths = [shape[-1 if channels_last else 1] for shape in shapes]
    stages = [i + 1 for i, block_name in enumerate(block_names) if _STAGE.match(block_name)] or [
        i + 1 for i in range(len(sizes)) if i + 1 == len(sizes) or sizes[i + 1] != sizes[i]
    ]
    return Layout(
        block_names,
        tuple(stages),
        tuple(widths[i - 1] for i in stages),
        tuple(_PROBE // sizes[i - 1] for i in stages),
        channels_last,
        frozenset(model.state_dict()),
    )


@functools.lru_cache(maxsize=32)
def sides(name: str, stem: Stem, ends: tuple[int, ...], channels: tuple[int, ...], numbers: int) -> tuple[int, ...]:
    """Cells a side of the maps after ``ends`` blocks each, where all together hold so many ``numbers`` of one image.

    Larger images give larger maps, so the size of the image is searched for.

    Returns:
        those of the smallest image whose maps hold ``numbers`` or more.
    """
    with torch.device("meta"), torch.no_grad():
        model = create(name, stem).eval()

        def of(size: int) -> tuple[int, ...]:
            shapes = _shapes(model, size, ends[-1])
            return tuple(shapes[end - 1][2] for end in ends)

        def held(size: int) -> int:
            return sum(side * side * c for side, c in zip(of(size), channels, strict=True))

        known = layout(name, stem)
        smallest = max(s for stage, s in zip(known.stages, known.strides, strict=True) if stage <= ends[-1])
        sizes = range(smallest, _LARGEST)
        return of(sizes[bisect.bisect_left(sizes, numbers, hi=len(sizes) - 1, key=held)])


def _shapes(model: nn.Module, size: int, count: int) -> list[torch.Size]:
    """What each of the first ``count`` blocks gives of a square image: (B, C, H, W), or of a Swin (B, H, W, C)."""
    x, shapes = torch.zeros(1, 3, size, size), []
    for _, block in itertools.islice(blocks(model), count):
        x = block(x)
        shapes.append(x.shape)
    return shapes


class _NumbersOnHost(TorchFunctionMode):
    """A RegNet reckons its depths with tensors; on the meta device, on which models are opened, they had no values."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        return func(*args, **({**kwargs, "device": "cpu"} if func in (torch.arange, torch.tensor) else kwargs))
