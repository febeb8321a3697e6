"""Loads whole models that compare images and texts as contrastive models: CLIP and SigLIP of transformers, and CLIP of
open_clip (github.com/mlfoundations/open_clip).
"""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vlmodel.config import ConfigError, parse_config
from vlmodel.model import VLModel
from vlmodel.model_config import ModelConfig
from vlmodel.processor import ProcessorConfig, VLProcessor
from vlmodel.weights import WeightsError, error_in_one_line

OPEN_CLIP = "open_clip_config.json"
"""The file by which a folder of open_clip is known."""
_OPEN_CLIP_WEIGHTS = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
_FAMILIES = ("clip", "siglip")
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt", "special_tokens_map.json")
_BLOCK = re.compile(r"(visual\.)?transformer\.resblocks\.(\d+)\.(.+)")
_OF_BLOCK = {
    "ln_1": "layer_norm1", "ln_2": "layer_norm2", "mlp.c_fc": "mlp.fc1", "mlp.c_proj": "mlp.fc2",
    "attn.out_proj": "self_attn.out_proj",
}  # fmt: skip
_NAMES = {
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.ln_pre.weight": "vision_model.pre_layrnorm.weight",
    "visual.ln_pre.bias": "vision_model.pre_layrnorm.bias",
    "visual.ln_post.weight": "vision_model.post_layernorm.weight",
    "visual.ln_post.bias": "vision_model.post_layernorm.bias",
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "ln_final.weight": "text_model.final_layer_norm.weight",
    "ln_final.bias": "text_model.final_layer_norm.bias",
    "logit_scale": "logit_scale",
}
_TRANSPOSED = {"visual.proj": "visual_projection.weight", "text_projection": "text_projection.weight"}
_WITHOUT_WEIGHTS = ("attn_mask",)


def is_dual_model(folder: str | Path) -> bool:
    """Whether a folder holds a CLIP or SigLIP of transformers, or a CLIP of open_clip."""
    file = Path(folder) / "config.json"
    if (Path(folder) / OPEN_CLIP).is_file():
        return True
    try:
        return file.is_file() and json.loads(file.read_text(encoding="utf-8")).get("model_type") in _FAMILIES
    except (ValueError, AttributeError):
        return False


def load_dual_model(folder: str | Path) -> tuple[VLModel, VLProcessor]:
    """Load a whole dual model as a model of the task ``contrastive`` and its processor: the same similarities.

    Raises:
        WeightsError: it cannot be read.
        ConfigError: it has parts that cannot be had here.
    """
    if not (Path(folder) / OPEN_CLIP).is_file():
        return _load_from_transformers(Path(folder))
    with tempfile.TemporaryDirectory() as converted:
        convert_open_clip(Path(folder), Path(converted))
        return _load_from_transformers(Path(converted))


def _load_from_transformers(folder: Path) -> tuple[VLModel, VLProcessor]:
    from transformers import AutoConfig, AutoTokenizer

    source = str(folder)
    try:
        config = AutoConfig.from_pretrained(source, local_files_only=True)
        tokenizer = AutoTokenizer.from_pretrained(source, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # broken files raise anything
        raise WeightsError(
            f"{source!r} cannot be read: {error_in_one_line(error)}; its folder needs the tokenizer's files too"
        ) from error
    width = getattr(config, "projection_dim", None) if config.model_type == "clip" else config.vision_config.hidden_size
    tree = parse_config(
        ModelConfig,
        {
            "vision": {"kind": "hf", "name": source, "output": "pooled"},
            "language": {"kind": "tower", "pretrained": source},
            "task": {"kind": "contrastive", "pretrained": source, "width": width},
        },
    )
    limit = int(config.text_config.max_position_embeddings)
    settings = tree.fill_in_preprocessing(ProcessorConfig(max_tokens=limit))
    processor = VLProcessor(settings, tokenizer, (), tree.task.tasks_by_name())
    return VLModel.create_from_config(tree, processor).eval(), processor


def convert_open_clip(folder: Path, out: Path) -> None:
    """Write a CLIP of open_clip as one of transformers: weights, preprocessing and the tokenizer's files.

    Raises:
        WeightsError: it cannot be read, or lacks weights.
        ConfigError: its towers are not CLIP's own.
    """
    from transformers import CLIPImageProcessor, CLIPModel

    config, pictures = _read_open_clip_config(folder)
    with torch.device("meta"):
        made = CLIPModel(config)
    state = _convert_open_clip_state(_read_open_clip_state(folder))
    try:
        lacking = made.load_state_dict(state, strict=False, assign=True)
    except RuntimeError as error:
        raise WeightsError(
            f"{str(folder)!r}: the weights are not those of {OPEN_CLIP}: {error_in_one_line(error)}"
        ) from error
    if missing := [name for name in lacking.missing_keys if not name.endswith("position_ids")]:
        raise WeightsError(f"{str(folder)!r} lacks {len(missing)} weights, such as {missing[0]}; fetch it anew")
    made.save_pretrained(str(out))
    side = config.vision_config.image_size
    squash = pictures.get("resize_mode") == "squash"
    CLIPImageProcessor(
        size={"height": side, "width": side} if squash else {"shortest_edge": side},
        crop_size={"height": side, "width": side}, do_center_crop=not squash,
        resample=2 if pictures.get("interpolation") == "bilinear" else 3,
        **{f"image_{name}": pictures[name] for name in ("mean", "std") if name in pictures},
    ).save_pretrained(str(out))  # fmt: skip
    for name in _TOKENIZER_FILES:
        if (folder / name).is_file():
            shutil.copy(folder / name, out)


def _read_open_clip_config(folder: Path) -> tuple[Any, Mapping[str, Any]]:
    """Translate the configuration of open_clip to CLIPConfig; also return how pictures are prepared."""
    from transformers import CLIPConfig

    try:
        stored = json.loads((folder / OPEN_CLIP).read_text(encoding="utf-8"))
        cfg = stored["model_cfg"]
        vision, text, width = dict(cfg["vision_cfg"]), dict(cfg["text_cfg"]), int(cfg["embed_dim"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise WeightsError(f"{str(folder / OPEN_CLIP)!r} is none of open_clip: {error!r}") from error
    if other := {"timm_model_name", "hf_model_name"} & (vision.keys() | text.keys()) or isinstance(
        vision.get("layers"), list
    ):
        raise ConfigError(
            f"{str(folder)!r} has towers that are not CLIP's ({other or 'a ResNet'}); take its image tower by "
            "model.vision.kind='timm', and its text tower by model.language"
        )
    size = vision.get("image_size", 224)
    shared = {"hidden_act": "quick_gelu" if cfg.get("quick_gelu") else "gelu"}
    sizes: dict[str, Any] = {
        "vision_config": {
            "hidden_size": vision["width"], "num_hidden_layers": vision["layers"], "patch_size": vision["patch_size"],
            "num_attention_heads": vision["width"] // vision.get("head_width", 64), "image_size": size,
            "intermediate_size": int(vision["width"] * vision.get("mlp_ratio", 4.0)), **shared,
        },
        "text_config": {
            "hidden_size": text["width"], "num_hidden_layers": text["layers"], "num_attention_heads": text["heads"],
            "intermediate_size": int(text["width"] * text.get("mlp_ratio", 4.0)), "vocab_size": text["vocab_size"],
            "max_position_embeddings": text["context_length"], "bos_token_id": text["vocab_size"] - 2,
            "eos_token_id": text["vocab_size"] - 1, **shared,
        },
    }  # fmt: skip
    return CLIPConfig(**sizes, projection_dim=width), stored.get("preprocess_cfg") or {}


def _read_open_clip_state(folder: Path) -> dict[str, Tensor]:
    file = next((folder / name for name in _OPEN_CLIP_WEIGHTS if (folder / name).is_file()), None)
    if file is None:
        raise WeightsError(f"{str(folder)!r} has no weights; they are in {' or '.join(_OPEN_CLIP_WEIGHTS)}")
    try:
        if file.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(file)
        state: dict[str, Tensor] = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # broken files raise anything
        raise WeightsError(f"{str(file)!r} cannot be read: {error_in_one_line(error)}") from error
    return state


def _convert_open_clip_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Convert weights to transformers' names: q, k and v apart, and projections as linear layers have them.

    Raises:
        WeightsError: a weight is none of CLIP's.
    """
    made: dict[str, Tensor] = {}
    for name, given in state.items():
        tensor = given.float()
        if name in _NAMES:
            made[_NAMES[name]] = tensor
        elif name in _TRANSPOSED:
            made[_TRANSPOSED[name]] = tensor.T.contiguous()
        elif (block := _BLOCK.fullmatch(name)) is not None:
            layer = f"{'vision' if block[1] else 'text'}_model.encoder.layers.{block[2]}"
            made |= _convert_block_weight(layer, block[3], tensor)
        elif name not in _WITHOUT_WEIGHTS:
            raise WeightsError(f"{name} is no weight of a CLIP; name the folder of a model with CLIP's own towers")
    return made


def _convert_block_weight(layer: str, name: str, tensor: Tensor) -> dict[str, Tensor]:
    part, _, kind = name.rpartition(".")
    if name.startswith("attn.in_proj_"):
        kind = name.removeprefix("attn.in_proj_")
        pieces = zip("qkv", tensor.chunk(3), strict=True)
        return {f"{layer}.self_attn.{letter}_proj.{kind}": piece.contiguous() for letter, piece in pieces}
    if part not in _OF_BLOCK:
        raise WeightsError(f"{layer}: {name} is no weight of a CLIP; name the folder of a model with CLIP's own towers")
    return {f"{layer}.{_OF_BLOCK[part]}.{kind}": tensor}
