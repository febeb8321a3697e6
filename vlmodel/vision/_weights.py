"""Reading a backbone's weights from torchvision's names or a local file, strictly."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vlmodel.parts import WeightsError
from vlmodel.vision._cifar import PREFIX

# What torchvision has renamed since it published weights; its own loading renames them too.
_RENAMED = (
    (re.compile(r"(denselayer\d+\.(?:norm|relu|conv))\.(?=\d\.)"), r"\1"),
    (re.compile(r"(?<=\.mlp\.)linear_1(?=\.)"), "0"),
    (re.compile(r"(?<=\.mlp\.)linear_2(?=\.)"), "3"),
)


@dataclass(frozen=True)
class WeightsReport:
    """What was loaded: torchvision's names, sorted.

    Attributes:
        loaded: weights that now are the backbone's.
        left: weights of the source that the backbone has no use for: its classifier and the stages that are cut off;
            where it need not be strict, also what is unknown or of another shape.
        missing: weights of the backbone that the source has not; empty where it must be strict.
    """

    source: str
    loaded: tuple[str, ...]
    left: tuple[str, ...]
    missing: tuple[str, ...] = ()

    def __str__(self) -> str:
        told = [f"{len(self.loaded)} weights from {self.source}"]
        for what, names in (("not used", self.left), ("missing there, left as they were drawn", self.missing)):
            if names:
                told.append(f"{len(names)} {what}: {', '.join(names[:3])}{', ...' if len(names) > 3 else ''}")
        return "; ".join(told)


def is_torchvision_name(weights: str) -> bool:
    """Whether ``weights`` names weights of torchvision's, and no file."""
    return weights.lower() == "imagenet" or weights == "DEFAULT" or weights.startswith("IMAGENET1K_")


def read(name: str, weights: str) -> dict[str, Tensor]:
    """A state dict: torchvision's for the backbone ``name``, or that of a local file (safetensors, or torch's).

    A wrapping ``{"state_dict": ...}`` and the prefix ``module.`` of data-parallel training are taken off, and names are
    those that torchvision uses now.

    Raises:
        WeightsError: the weights do not exist, cannot be fetched or are no state dict.
    """
    if is_torchvision_name(weights):
        return _renamed(_from_torchvision(name, weights))
    path = Path(weights)
    if not path.is_file():
        raise WeightsError(
            f"vision.weights={weights!r} is no file; give a state dict (.safetensors, .pth), 'imagenet', or '' for none"
        )
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            state: Any = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise WeightsError(f"vision.weights={weights!r} cannot be read as a state dict: {error}") from error
    for wrapper in ("state_dict", "model"):
        if isinstance(state, Mapping) and isinstance(state.get(wrapper), Mapping):
            state = state[wrapper]
    if not isinstance(state, Mapping) or not all(
        isinstance(key, str) and isinstance(value, Tensor) for key, value in state.items()
    ):
        raise WeightsError(f"vision.weights={weights!r} holds no state dict (names to tensors)")
    return _renamed({key.removeprefix("module."): value for key, value in state.items()})


def load(
    backbone: nn.Module,
    state: Mapping[str, Tensor],
    names: Mapping[str, str],
    ignorable: Iterable[str],
    source: str,
    settings: str,
    strict: bool = True,
) -> WeightsReport:
    """Copy ``state`` into ``backbone``.

    Args:
        names: for each weight of the backbone its name in ``state``.
        ignorable: names that ``state`` may have beside those.
        source: where ``state`` is from.
        settings: what decides whether weights fit, for the error.
        strict: refuse weights that are not exactly the backbone's; else those that fit are loaded.

    Raises:
        WeightsError: a weight is missing, has another shape, or is unknown; or, if not ``strict``, none fits. Nothing
            has been loaded then.
    """
    own = backbone.state_dict()
    # A counter that BatchNorm never reads unless its momentum is None; weights saved before torch 0.4.1 lack it.
    missing = sorted(n for key, n in names.items() if n not in state and not key.endswith("num_batches_tracked"))
    unexpected = sorted(set(state) - set(names.values()) - set(ignorable))
    mismatched = sorted(
        f"{n} {tuple(state[n].shape)} where {tuple(own[key].shape)} is needed"
        for key, n in names.items()
        if n in state and state[n].shape != own[key].shape
    )
    fitting = {key: n for key, n in names.items() if n in state and state[n].shape == own[key].shape}
    if (strict and (missing or unexpected or mismatched)) or not fitting:
        raise WeightsError(
            f"the weights {source!r} are not those of this backbone: "
            + "; ".join(
                f"{len(found)} {what}: {', '.join(found[:3])}{', ...' if len(found) > 3 else ''}"
                for what, found in (
                    ("missing", missing),
                    ("unknown", unexpected),
                    ("of another shape", mismatched),
                )
                if found
            )
            + f". Set {settings} to those that the weights were trained with"
        )
    backbone.load_state_dict({key: state[n] for key, n in fitting.items()}, strict=False)
    loaded = set(fitting.values())
    absent = {n for key, n in names.items() if n not in loaded and not key.endswith("num_batches_tracked")}
    return WeightsReport(source, tuple(sorted(loaded)), tuple(sorted(set(state) - loaded)), tuple(sorted(absent)))


def _renamed(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    renamed = {}
    for key, value in state.items():
        for former, present in _RENAMED:
            key = former.sub(present, key)
        renamed[key] = value
    return renamed


def _from_torchvision(name: str, weights: str) -> dict[str, Tensor]:
    from torchvision.models import get_model_weights

    if name.startswith(PREFIX):
        raise WeightsError(
            f"vision.weights={weights!r}: torchvision has none for {name}; give the path of a state dict"
        )
    enum = get_model_weights(name)
    if weights.lower() != "imagenet" and weights not in enum.__members__:
        raise WeightsError(f"vision.weights={weights!r}: {name} has {', '.join(enum.__members__) or 'no weights'}")
    chosen = enum[weights] if weights in enum.__members__ else enum.DEFAULT
    try:
        state: dict[str, Tensor] = chosen.get_state_dict(progress=False, check_hash=True, weights_only=True)
    except Exception as error:
        raise WeightsError(
            f"vision.weights={weights!r} could not be fetched ({error}); download {chosen.url} where there is a "
            "network and set vision.weights to the path of the file"
        ) from error
    return state
