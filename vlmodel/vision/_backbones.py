"""The backbones of torchvision's classifiers and of CIFAR's, as chains of blocks that can be cut after any stage."""

from __future__ import annotations

import difflib
import functools
import itertools
import re
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from vlmodel.vision._cifar import CIFARResNet
from vlmodel.vision._torchvision import DEPTHS, PREFIX, Stem

_VIT = "vit_"  # a kind of its own
_INCEPTIONS = ("googlenet", "inception_")
_HEAD = ("avgpool", "fc", "classifier", "dropout", "permute", "linear")
_SIDE_EXITS = ("aux", "AuxLogits")
_CHAINS = ("features", "layers", "trunk_output", "blocks")
_STAGE = re.compile(r"layer\d$|trunk_output\.")  # of a ResNet or RegNet
_RGB = 3
_PROBE = 256
_ONE_SIZE = {"maxvit_t": 224}  # its attention divides the image into a fixed number of windows


@dataclass(frozen=True)
class BackboneLayout:
    """The structure of a backbone, computed on the meta device, without weights or arithmetic.

    Attributes:
        blocks: torchvision's names of the blocks, in order of computation.
        stages: for each stage the number of blocks up to its end.
        channels, strides: width and pixels per grid cell at the end of each stage.
        image: the only size of square images that it takes; None if it takes any.
        channels_last: blocks return maps (B, H, W, C), as Swin's do, and not (B, C, H, W).
        keys: names of all weights of the whole network, including its classifier.
    """

    blocks: tuple[str, ...]
    stages: tuple[int, ...]
    channels: tuple[int, ...]
    strides: tuple[int, ...]
    image: int | None
    channels_last: bool
    keys: frozenset[str]


def list_backbone_names() -> list[str]:
    """List the names of the usable backbones of torchvision and CIFAR."""
    import torchvision

    models = torchvision.models.list_models(module=torchvision.models)
    return [n for n in models if not n.startswith(_VIT)] + [f"{PREFIX}{depth}" for depth in DEPTHS]


def check_backbone(name: str, stem: Stem) -> None:
    """Raise ValueError if there is no backbone ``name``, or it cannot have this ``stem``."""
    known = list_backbone_names()
    if name not in known:
        close = difflib.get_close_matches(name.lower(), known, n=5, cutoff=0.4) or ["resnet18", "resnet50", "vgg16"]
        raise ValueError(
            f"there is no backbone {name!r}; close names: {', '.join(close)}. Any classifier of "
            f"torchvision.models.list_models() can be used, and {PREFIX} with {', '.join(map(str, DEPTHS))} layers; "
            "for a ViT set vision.kind to 'vit'"
        )
    if stem == "small" and not {"maxpool", "layer1"} <= set(backbone_layout(name, "imagenet").blocks):
        raise ValueError(f"stem='small' is made for ResNets of torchvision, and name={name!r} is none; use 'imagenet'")


def create_backbone(name: str, stem: Stem) -> nn.Module:
    """Create the whole network with new weights; its first layers are replaced if ``stem`` is "small".

    The small stem (He et al. 2015, section 4.2, for CIFAR) is a 3x3 convolution of stride 1 without max-pooling.
    """
    import torchvision

    if name.startswith(PREFIX):
        return CIFARResNet(int(name.removeprefix(PREFIX)))
    if name.startswith(_INCEPTIONS):
        # torchvision transforms the input of pretrained weights; from scratch it does no harm.
        return torchvision.models.get_model(name, weights=None, init_weights=True, transform_input=True)
    with _TensorsOnCPU() if name.startswith("regnet_") else nullcontext():
        model: nn.Module = torchvision.models.get_model(name, weights=None)
    if stem == "small":
        model.conv1 = nn.Conv2d(3, model.conv1.out_channels, kernel_size=3, stride=1, padding=1, bias=False)  # type: ignore[union-attr, arg-type]
        nn.init.kaiming_normal_(model.conv1.weight, mode="fan_out", nonlinearity="relu")
        model.maxpool = nn.Identity()
    return model


def backbone_blocks(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """List the blocks of a network before pooling and classifier, as (torchvision's name, block), in the order of
    computation.
    """
    if getattr(model, "transform_input", False):
        yield "transform_input", _InceptionNormalisation()
    for name, child in model.named_children():
        if name.startswith(_HEAD):
            return
        if name.startswith(_SIDE_EXITS):
            continue
        if name in _CHAINS:
            yield from ((f"{name}.{inner}", block) for inner, block in child.named_children())
        else:
            yield name, child


@functools.lru_cache(maxsize=32)
def backbone_layout(name: str, stem: Stem) -> BackboneLayout:
    """Compute the layout of a backbone. A stage ends where the next block lowers the resolution.

    Blocks of a ResNet or RegNet before its first stage are its stem: ``stages=3`` of a ResNet ends with ``layer3``.
    """
    image = _ONE_SIZE.get(name)
    probe = image or _PROBE
    with torch.device("meta"), torch.no_grad():
        model = create_backbone(name, stem).eval()
        block_names = tuple(block_name for block_name, _ in backbone_blocks(model))
        shapes = _block_output_shapes(model, (probe, probe), len(block_names))
    channels_last = name.startswith("swin_")
    sizes = [shape[2] for shape in shapes]
    widths = [shape[-1 if channels_last else 1] for shape in shapes]
    stages = [i + 1 for i, block_name in enumerate(block_names) if _STAGE.match(block_name)] or [
        i + 1 for i in range(len(sizes)) if widths[i] != _RGB and (i + 1 == len(sizes) or sizes[i + 1] != sizes[i])
    ]
    return BackboneLayout(
        block_names,
        tuple(stages),
        tuple(widths[i - 1] for i in stages),
        tuple(probe // sizes[i - 1] for i in stages),
        image,
        channels_last,
        frozenset(model.state_dict()),
    )


@functools.lru_cache(maxsize=32)
def feature_map_sizes(
    name: str, stem: Stem, ends: tuple[int, ...], image_size: tuple[int, int]
) -> tuple[tuple[int, int], ...]:
    """Compute height and width of the outputs after so many blocks each, for images of this height and width."""
    with torch.device("meta"), torch.no_grad():
        shapes = _block_output_shapes(create_backbone(name, stem).eval(), image_size, ends[-1])
    rows = 1 if backbone_layout(name, stem).channels_last else 2
    return tuple((shapes[end - 1][rows], shapes[end - 1][rows + 1]) for end in ends)


@functools.lru_cache(maxsize=32)
def accepts_image_size(name: str, stem: Stem, stages: int, size: tuple[int, int]) -> bool:
    """Whether the first ``stages`` of a backbone can process images of this height and width."""
    with torch.device("meta"), torch.no_grad():
        try:
            _block_output_shapes(
                create_backbone(name, stem).eval(), size, backbone_layout(name, stem).stages[stages - 1]
            )
        except RuntimeError:  # a kernel is larger than its input
            return False
    return True


def _block_output_shapes(model: nn.Module, size: tuple[int, int], count: int) -> list[torch.Size]:
    """Compute the output shapes of the first ``count`` blocks for an image of this height and width: (B, C, H, W), for
    Swin (B, H, W, C).
    """
    x, shapes = torch.zeros(1, 3, *size), []
    for _, block in itertools.islice(backbone_blocks(model), count):
        x = block(x)
        shapes.append(x.shape)
    return shapes


class _InceptionNormalisation(nn.Module):
    """Undoes ImageNet's normalisation and normalises by mean and deviation 0.5, with which GoogLeNet and Inception were
    trained.
    """

    def forward(self, x_BCHW: Tensor) -> Tensor:
        channels = zip(x_BCHW.split(1, 1), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), strict=True)
        return torch.cat([x * (std / 0.5) + (mean - 0.5) / 0.5 for x, mean, std in channels], 1)


class _TensorsOnCPU(TorchFunctionMode):
    """A context in which new tensors are on the CPU: RegNet computes its depths with tensors, which have no values on
    the meta device.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        return func(*args, **({**kwargs, "device": "cpu"} if func in (torch.arange, torch.tensor) else kwargs))
