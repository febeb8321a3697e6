"""Puts low-rank adapters (LoRA, Hu et al. 2021, arXiv:2106.09685) into any module, by the library peft.

``inject_adapters`` puts an adapter beside each layer that it targets. The layer's own weights are frozen and move under
the name ``base_layer``; the adapter's are trained. The second of its two matrices begins as zero, so that at first the
module computes what it did before.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from vlmodel.config import ConfigError, ConfigSection
from vlmodel.weights import WeightsError

if TYPE_CHECKING:
    from torch import Tensor, nn

_ADAPTER = "default"


class LoraSettings(ConfigSection):
    """Settings of low-rank adapters (LoRA)."""

    rank: int = Field(8, ge=1)
    """Rank of the change of each weight matrix."""
    alpha: float = Field(16.0, gt=0)
    """The change is multiplied by alpha / rank, so that one learning rate fits several ranks."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Dropout of what an adapter reads."""
    targets: Literal["all-linear"] | list[str] = "all-linear"
    """"all-linear", or layers by their names or the ends of their paths: ["q_proj", "v_proj"]."""


def inject_adapters(
    module: nn.Module, config: LoraSettings, exclude: Collection[str] = (), never_called: Collection[str] = ()
) -> None:
    """Put adapters into a module in place, and freeze all of its other parameters.

    Linear layers within torch's ``MultiheadAttention`` get none: it reads their weights itself, without calling them.

    Args:
        exclude: paths of layers that "all-linear" leaves out, such as the output of a language model.
        never_called: paths of layers whose weights the module reads itself, so that an adapter would do nothing;
            "all-linear" leaves them out, too.

    Raises:
        ConfigError: the module has no such layer, or one that can have no adapter.
    """
    from peft import LoraConfig, inject_adapter_in_model
    from transformers.pytorch_utils import Conv1D

    paths = _find_target_layers(module, config, {*exclude, *never_called})
    if config.targets != "all-linear" and (useless := sorted(set(paths) & set(never_called))):
        raise ConfigError(
            f"lora.targets={config.targets!r}: {type(module).__name__} reads the weights of {useless[0]!r} without "
            "calling it, so that an adapter in it would do nothing; name other layers, or all-linear, which leaves it "
            "out"
        )
    layers = [module.get_submodule(path) for path in paths]
    module.requires_grad_(False)
    peft_config = LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,  # type: ignore[arg-type]  # any number
        lora_dropout=config.dropout,
        # An expression that these paths alone match; peft compares the names of a list with the ends of all paths.
        target_modules="|".join(map(re.escape, paths)),
        # GPT-2's layers keep their weights the other way around; peft would set this itself, with a warning.
        fan_in_fan_out=any(isinstance(layer, Conv1D) for layer in layers),
    )
    try:
        inject_adapter_in_model(peft_config, module, _ADAPTER)
    except ValueError as error:
        raise ConfigError(f"lora.targets={config.targets!r}: {error}") from None
    for path in paths:
        # A model of transformers' around this one would draw weights of layers that it does not know anew.
        for part in module.get_submodule(path).modules():
            part._is_hf_initialized = True  # type: ignore[assignment]


def peft_config(module: nn.Module) -> Any:
    """Return peft's configuration of the adapters that ``inject_adapters`` put into a module."""
    return module.peft_config[_ADAPTER]  # type: ignore[index]


def adapter_state_dict(module: nn.Module) -> dict[str, Tensor]:
    """Return the weights of a module's adapters under peft's names, which other programs can read too."""
    from peft import get_peft_model_state_dict

    return dict(get_peft_model_state_dict(module, adapter_name=_ADAPTER, save_embedding_layers=False))


def load_adapter_state(module: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Load the weights that ``adapter_state_dict`` returned into the adapters of ``inject_adapters``.

    Raises:
        WeightsError: they are those of other adapters.
    """
    from peft import set_peft_model_state_dict

    own = {name: tuple(tensor.shape) for name, tensor in adapter_state_dict(module).items()}
    given = {name: tuple(tensor.shape) for name, tensor in state.items()}
    if other := sorted(name for name in own.keys() | given.keys() if own.get(name) != given.get(name)):
        name = other[0]
        raise WeightsError(
            f"{len(other)} weights are not those of these adapters, such as {name!r}: {given.get(name)} where "
            f"{own.get(name)} is needed (None: there is none); use the settings of lora with which they were trained"
        )
    set_peft_model_state_dict(module, dict(state), adapter_name=_ADAPTER)


def names_without_adapters(module: nn.Module) -> dict[str, str]:
    """Map the names of a module's weights and buffers (those of adapters left out) to the names that they had before
    ``inject_adapters``.
    """
    return {name: name.replace(".base_layer.", ".") for name in module.state_dict() if ".lora_" not in name}


def merge_adapters(module: nn.Module) -> None:
    """Add the adapters' products to the frozen weights in place, and remove the adapters: the module has its original
    layers again, with changed weights.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    for path, layer in list(module.named_modules()):
        if isinstance(layer, BaseTunerLayer):
            layer.merge(safe_merge=True)
            parent, _, name = path.rpartition(".")
            setattr(module.get_submodule(parent), name, layer.get_base_layer())
    if hasattr(module, "peft_config"):
        del module.peft_config


def _find_target_layers(module: nn.Module, config: LoraSettings, exclude: Collection[str]) -> list[str]:
    """List the paths of the layers that get an adapter."""
    from torch import nn
    from torch.nn.modules.linear import NonDynamicallyQuantizableLinear
    from transformers.pytorch_utils import Conv1D

    named = dict(module.named_modules())
    if config.targets == "all-linear":
        linear = {path for path, layer in named.items() if isinstance(layer, nn.Linear | Conv1D)}
        paths = {p for p in linear - set(exclude) if not isinstance(named[p], NonDynamicallyQuantizableLinear)}
        if not paths:
            raise ConfigError(f"lora.targets='all-linear': {type(module).__name__} has no linear layer")
        return sorted(paths)
    found: set[str] = set()
    for target in config.targets:
        ends = {path for path in named if path == target or path.endswith(f".{target}")}
        if not ends:
            names = sorted({path.rpartition(".")[2] for path, layer in named.items() if isinstance(layer, nn.Linear)})
            raise ConfigError(
                f"lora.targets names {target!r}, and {type(module).__name__} has no such layer; its linear layers are "
                f"called {', '.join(names[:20])}"
            )
        found |= ends
    return sorted(found)
