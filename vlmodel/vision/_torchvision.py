"""What settings need to know of torchvision's backbones and weights.

torchvision takes seconds to import, and is imported only for what is not known here.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

from vlmodel.images.preprocessing import ImagePreprocessing
from vlmodel.images.resize import Interpolation
from vlmodel.weights import WeightsError

Stem = Literal["imagenet", "small"]

PREFIX = "cifar_resnet"
DEPTHS = (20, 32, 44, 56, 110)

RESNETS = frozenset(
    {
        "resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "resnext50_32x4d", "resnext101_32x8d",
        "resnext101_64x4d", "wide_resnet50_2", "wide_resnet101_2",
    }
)  # fmt: skip
"""The backbones of torchvision whose stages ``backbone_stages`` knows."""

_RESNET_STRIDES = {"imagenet": (4, 8, 16, 32), "small": (1, 2, 4, 8)}
_CIFAR_STRIDES = (1, 2, 4)


class BackboneStages(NamedTuple):
    """The stages of a backbone: for each the pixels per grid cell at its end.

    Attributes:
        image: the only size of square images that the backbone takes; None if it takes any.
    """

    strides: tuple[int, ...]
    image: int | None = None


def backbone_stages(name: str, stem: Stem) -> BackboneStages:
    """The stages of a backbone of torchvision, or of CIFAR's.

    Raises:
        ValueError: there is no backbone ``name``, or it cannot have this ``stem``.
    """
    if name in RESNETS:
        return BackboneStages(_RESNET_STRIDES[stem])
    if stem == "imagenet" and name in {f"{PREFIX}{depth}" for depth in DEPTHS}:
        return BackboneStages(_CIFAR_STRIDES)
    from vlmodel.vision import _backbones

    _backbones.check_backbone(name, stem)
    layout = _backbones.backbone_layout(name, stem)
    return BackboneStages(layout.strides, layout.image)


def accepts_image_size(name: str, stem: Stem, stages: int, size: tuple[int, int]) -> bool:
    """Whether the first ``stages`` of a backbone can process images of this height and width, which are at least those
    of one grid cell.
    """
    if name in RESNETS or name.startswith(PREFIX):
        return True  # Their convolutions are padded.
    from vlmodel.vision import _backbones

    return _backbones.accepts_image_size(name, stem, stages, size)


def is_torchvision_name(weights: str) -> bool:
    """Whether ``weights`` is the name of torchvision weights, and not a file."""
    return weights.lower() == "imagenet" or weights == "DEFAULT" or weights.startswith("IMAGENET1K_")


def torchvision_preprocessing(name: str, weights: str) -> ImagePreprocessing:
    """The image preprocessing with which torchvision's weights were trained, as torchvision records it.

    Raises:
        WeightsError: there are no such weights.
    """
    made = weights_enumeration_member(name, weights).transforms()
    side = made.crop_size[0]
    interpolation: Interpolation = "bicubic" if made.interpolation.value == "bicubic" else "bilinear"
    return ImagePreprocessing(
        (side, side), tuple(made.mean), tuple(made.std), interpolation, "crop",
        min(1.0, side / made.resize_size[0]), stated=True,
    )  # fmt: skip


def weights_enumeration_member(name: str, weights: str) -> Any:
    """Find the weights of an architecture among those that torchvision offers, by their name."""
    from torchvision.models import get_model_weights

    if name.startswith(PREFIX):
        raise WeightsError(
            f"vision.weights={weights!r}: torchvision has none for {name}; give the path of a state dict"
        )
    enum = get_model_weights(name)
    if weights.lower() != "imagenet" and weights not in enum.__members__:
        raise WeightsError(f"vision.weights={weights!r}: {name} has {', '.join(enum.__members__) or 'no weights'}")
    return enum[weights] if weights in enum.__members__ else enum.DEFAULT
