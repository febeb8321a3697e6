"""Loads a backbone's weights from torchvision or from a local file, under torchvision's names."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vlmodel.vision._torchvision import is_torchvision_name, weights_enumeration_member
from vlmodel.weights import WeightsError

# What torchvision has renamed since it published weights; its own loading renames them, too.
_RENAMED = (
    (re.compile(r"(denselayer\d+\.(?:norm|relu|conv))\.(?=\d\.)"), r"\1"),
    (re.compile(r"(?<=\.mlp\.)linear_1(?=\.)"), "0"),
    (re.compile(r"(?<=\.mlp\.)linear_2(?=\.)"), "3"),
)


Pairs = Sequence[tuple[str, str]]
"""Names of weights in their source and in the backbone."""


_COUNTER = "num_batches_tracked"
_ROLES = frozenset({"weight", "bias", "running_mean", "running_var"})


@dataclass(frozen=True)
class WeightsReport:
    """The names of the weights that were loaded, in torchvision's spelling and sorted.

    Attributes:
        loaded: weights that the backbone now has.
        left: unused weights of the source: its classifier and the stages that are cut off; if not strict, also unknown
            ones and those of another shape.
        missing: weights of the backbone that the source lacks; empty if strict.
        pairs: names in the source and in the backbone, of weights that were matched by order.
    """

    source: str
    loaded: tuple[str, ...]
    left: tuple[str, ...]
    missing: tuple[str, ...] = ()
    pairs: Pairs = ()

    def __str__(self) -> str:
        lines = [f"{len(self.loaded)} weights from {self.source}"]
        for what, names in (("not used", self.left), ("missing there, left as they were drawn", self.missing)):
            if names:
                lines.append(f"{len(names)} {what}: {_list_first_names(names)}")
        if self.pairs:
            pairs = [f"{theirs} as {own}" for theirs, own in self.pairs]
            lines.append(f"{len(pairs)} matched by order: {_list_first_names(pairs)}")
        return "; ".join(lines)


def read_state_dict(name: str, weights: str) -> dict[str, Tensor]:
    """Read a state dict: that of torchvision for the backbone ``name``, or that of a local file (safetensors, or
    torch's).

    A wrapping ``{"state_dict": ...}`` and the prefix ``module.`` of data-parallel training are removed, and names that
    torchvision has changed are replaced.

    Raises:
        WeightsError: the weights do not exist, cannot be fetched or are no state dict.
    """
    if is_torchvision_name(weights):
        return _rename_old_weights(_download_torchvision_weights(name, weights))
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
    return _rename_old_weights({key.removeprefix("module."): value for key, value in state.items()})


def match_weights_by_order(
    state: Mapping[str, Tensor], known: Mapping[str, Tensor], optional: Collection[str], source: str
) -> tuple[dict[str, Tensor], Pairs]:
    """Rename the weights in ``state`` to those of a network that has the same shapes in the same order; also returns
    the pairs of names.

    Counters of BatchNorm are not compared, as weights saved before torch 0.4.1 lack them. Where both names end in a
    word that tells what a tensor is ("weight", "running_var"), it must be the same.

    Args:
        known: all weights of the network, in their order.
        optional: those that ``state`` may lack: the classifier's.

    Raises:
        WeightsError: they are not of the same order and shapes.
    """
    theirs = [key for key in state if not key.endswith(_COUNTER)]
    own = [key for key in known if not key.endswith(_COUNTER)]
    if len(theirs) < len(own):
        own = [key for key in own if key not in optional]
    for place, (their, our) in enumerate(zip(theirs, own, strict=False)):
        roles = {name.rpartition(".")[2] for name in (their, our)}
        if state[their].shape != known[our].shape or (len(roles) == 2 and roles <= _ROLES):
            raise WeightsError(
                f"the weights {source!r} cannot be matched by order: tensor {place} is {their} "
                f"{tuple(state[their].shape)} there and {our} {tuple(known[our].shape)} here; set vision.name to the "
                "architecture that they are of"
            )
    if len(theirs) != len(own):
        raise WeightsError(
            f"the weights {source!r} cannot be matched by order: they have {len(theirs)} tensors and the backbone has "
            f"{len(own)}; set vision.name to the architecture that they are of"
        )
    pairs = tuple(zip(theirs, own, strict=True))
    return {our: state[their] for their, our in pairs}, pairs


def load_backbone_state(
    backbone: nn.Module,
    state: Mapping[str, Tensor],
    names: Mapping[str, str],
    ignorable: Iterable[str],
    source: str,
    settings: str,
    strict: bool = True,
    by_order: bool = False,
) -> WeightsReport:
    """Copy ``state`` into ``backbone``.

    Args:
        names: for each weight of the backbone its name in ``state``.
        ignorable: other names that ``state`` may have.
        source: where ``state`` is from.
        settings: those that decide whether weights fit, for the error.
        strict: refuse weights that are not exactly the backbone's; otherwise those that fit are loaded.
        by_order: whether weights of other names can be matched by order, for the error.

    Raises:
        WeightsError: a weight is missing, has another shape, or is unknown; or, if not ``strict``, none fits. Nothing
            has been loaded then.
    """
    own = backbone.state_dict()
    # BatchNorm reads its counter only if its momentum is None; weights saved before torch 0.4.1 lack it.
    required = {n for key, n in names.items() if not key.endswith(_COUNTER)}
    fitting = {key: n for key, n in names.items() if n in state and state[n].shape == own[key].shape}
    mismatched = (
        f"{n} {tuple(state[n].shape)} where {tuple(own[key].shape)} is needed"
        for key, n in names.items()
        if n in state and key not in fitting
    )
    differences = {
        "missing": sorted(required - set(state)),
        "unknown": sorted(set(state) - set(names.values()) - set(ignorable)),
        "of another shape": sorted(mismatched),
    }
    if (strict and any(differences.values())) or not fitting:
        listed = (f"{len(keys)} {what}: {_list_first_names(keys)}" for what, keys in differences.items() if keys)
        others = "; if only the names differ, match='order' pairs them" if by_order else ""
        raise WeightsError(
            f"the weights {source!r} are not those of this backbone: {'; '.join(listed)}. Set {settings} to those that "
            f"the weights were trained with{others}"
        )
    backbone.load_state_dict({key: state[n] for key, n in fitting.items()}, strict=False)
    loaded = set(fitting.values())
    return WeightsReport(
        source, tuple(sorted(loaded)), tuple(sorted(set(state) - loaded)), tuple(sorted(required - loaded))
    )


def _list_first_names(names: Iterable[str]) -> str:
    names = list(names)
    return f"{', '.join(names[:3])}{', ...' if len(names) > 3 else ''}"


def _rename_old_weights(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    renamed = {}
    for key, value in state.items():
        for former, current in _RENAMED:
            key = former.sub(current, key)
        renamed[key] = value
    return renamed


def _download_torchvision_weights(name: str, weights: str) -> dict[str, Tensor]:
    chosen = weights_enumeration_member(name, weights)
    try:
        state: dict[str, Tensor] = chosen.get_state_dict(progress=False, check_hash=True, weights_only=True)
    except Exception as error:
        raise WeightsError(
            f"vision.weights={weights!r} could not be fetched ({error}); download {chosen.url} where there is a "
            "network and set vision.weights to the path of the file"
        ) from error
    return state
