"""Whole dual models: CLIP and SigLIP of transformers, CLIP of open_clip."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor, nn
from transformers import (
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    PreTrainedTokenizerFast,
    SiglipConfig,
    SiglipImageProcessor,
    SiglipModel,
)

from pipelines.registry.export import ExportConfig, export_model
from vlmodel.config import ConfigError
from vlmodel.formats import clip
from vlmodel.inference import Predictor
from vlmodel.processor import Example, VLProcessor
from vlmodel.weights import WeightsError

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "dog", "runs", "two", "men"]
TEXTS = ("a dog runs", "two men", "dog", "a a a a a a dog")
SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
VISION = {**SIZES, "patch_size": 8, "image_size": 32}
TEXT = {**SIZES, "vocab_size": len(WORDS), "max_position_embeddings": 12, "bos_token_id": 2, "eos_token_id": 3}
OPEN_CLIP_CONFIG: dict[str, Any] = {
    "model_cfg": {
        "embed_dim": 12, "quick_gelu": True,
        "vision_cfg": {
            "image_size": 32, "layers": 2, "width": 16, "patch_size": 8, "head_width": 8, "mlp_ratio": 2.0
        },
        "text_cfg": {
            "context_length": 12, "vocab_size": len(WORDS), "width": 16, "heads": 2, "layers": 2, "mlp_ratio": 2.0
        },
    },
    "preprocess_cfg": {"mean": [0.4, 0.5, 0.6], "std": [0.2, 0.3, 0.25]},
}  # fmt: skip


def tokenizer() -> PreTrainedTokenizerFast:
    inner = Tokenizer(models.WordLevel({word: n for n, word in enumerate(WORDS)}, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    inner.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", None, [("[CLS]", 2), ("[SEP]", 3)])
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]",
        bos_token="[CLS]", eos_token="[SEP]",
    )  # fmt: skip


def picture(seed: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (50, 40, 3), np.uint8)).save(file, "PNG")
    return file.getvalue()


def make(family: str) -> Any:
    torch.manual_seed(0)
    model: Any = (
        CLIPModel(CLIPConfig(vision_config=VISION, text_config={**TEXT, "pad_token_id": 0}, projection_dim=12))
        if family == "clip"
        else SiglipModel(SiglipConfig(vision_config=VISION, text_config={**TEXT, "projection_size": 16}))
    )
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    model.logit_scale.data.fill_(2.0)
    return model.eval()


def as_open_clip(model: Any) -> dict[str, Tensor]:
    """The weights of a CLIP of transformers as open_clip names and shapes them."""
    state = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
    made = {
        "visual.proj": state["visual_projection.weight"].T, "text_projection": state["text_projection.weight"].T,
        "visual.class_embedding": state["vision_model.embeddings.class_embedding"],
        "visual.conv1.weight": state["vision_model.embeddings.patch_embedding.weight"],
        "visual.positional_embedding": state["vision_model.embeddings.position_embedding.weight"],
        "token_embedding.weight": state["text_model.embeddings.token_embedding.weight"],
        "positional_embedding": state["text_model.embeddings.position_embedding.weight"],
        "logit_scale": state["logit_scale"],
        **{f"visual.ln_pre.{kind}": state[f"vision_model.pre_layrnorm.{kind}"] for kind in ("weight", "bias")},
        **{f"visual.ln_post.{kind}": state[f"vision_model.post_layernorm.{kind}"] for kind in ("weight", "bias")},
        **{f"ln_final.{kind}": state[f"text_model.final_layer_norm.{kind}"] for kind in ("weight", "bias")},
    }  # fmt: skip
    for tower, prefix in (("vision", "visual.transformer"), ("text", "transformer")):
        for n in range(2):
            layer, block = f"{tower}_model.encoder.layers.{n}", f"{prefix}.resblocks.{n}"
            for kind in ("weight", "bias"):
                parts = [state[f"{layer}.self_attn.{letter}_proj.{kind}"] for letter in "qkv"]
                made[f"{block}.attn.in_proj_{kind}"] = torch.cat(parts)
                made[f"{block}.attn.out_proj.{kind}"] = state[f"{layer}.self_attn.out_proj.{kind}"]
                for theirs, ours in (("ln_1", "layer_norm1"), ("ln_2", "layer_norm2")):
                    made[f"{block}.{theirs}.{kind}"] = state[f"{layer}.{ours}.{kind}"]
                made[f"{block}.mlp.c_fc.{kind}"] = state[f"{layer}.mlp.fc1.{kind}"]
                made[f"{block}.mlp.c_proj.{kind}"] = state[f"{layer}.mlp.fc2.{kind}"]
    return {name: tensor.contiguous() for name, tensor in made.items()}


def save(folder: Path, family: str) -> Any:
    """Save a model with its preprocessing and tokenizer. Returns the model of transformers that it is."""
    folder.mkdir()
    model = make(family.removeprefix("open_"))
    tokenizer().save_pretrained(str(folder))
    if family == "open_clip":
        save_file(as_open_clip(model), folder / "open_clip_model.safetensors")
        (folder / clip.OPEN_CLIP).write_text(json.dumps(OPEN_CLIP_CONFIG))
        return model
    model.save_pretrained(str(folder))
    mean_and_std = {"image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.3, 0.25]}
    sizes = {"height": 32, "width": 32}
    pictures: Any = (
        CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=sizes, **mean_and_std)
        if family == "clip"
        else SiglipImageProcessor(size=sizes, **mean_and_std)
    )
    pictures.save_pretrained(str(folder))
    return model


@pytest.mark.parametrize("family", ["clip", "siglip", "open_clip"])
def test_similarities_are_the_models(family: str, tmp_path: Path) -> None:
    """From the files to a model of this program, without training, that classifies and searches as the original."""
    theirs = save(tmp_path / "source", family)
    assert export_model(tmp_path / "source", ExportConfig(), tmp_path / "out") == "merged"
    folder = tmp_path / "out" / "merged"
    processor = VLProcessor.from_pretrained(folder)
    assert processor.config.image_size == 32
    assert processor.config.resize == ("squash" if family == "siglip" else "crop")
    example = Example({"image": picture(0)}, TEXTS)
    predictor = Predictor.from_pretrained(folder)
    [(image_D, text_ND)] = predictor.embed([example])
    pixels = processor.decode_image(example.inputs["image"]).astype(np.float32).transpose(2, 0, 1) / 255
    mean, std = (np.array(values, np.float32)[:, None, None] for values in ([0.4, 0.5, 0.6], [0.2, 0.3, 0.25]))
    padding: dict[str, Any] = {"padding": "max_length", "max_length": 12} if family == "siglip" else {"padding": True}
    ids_NT = torch.tensor(
        processor.tokenizer(list(TEXTS), truncation=True, **{"max_length": 12, **padding})["input_ids"]
    )
    with torch.no_grad():
        given = theirs(input_ids=ids_NT, pixel_values=torch.from_numpy((pixels - mean) / std)[None])
    assert image_D is not None
    np.testing.assert_allclose(image_D, given.image_embeds[0], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(text_ND, given.text_embeds, rtol=1e-5, atol=1e-5)
    head: Any = predictor.model.decoder
    assert head.temperature == pytest.approx(np.exp(-2.0))


def test_what_cannot_be_loaded(tmp_path: Path) -> None:
    source = tmp_path / "source"
    save(source, "open_clip")
    weights = source / "open_clip_model.safetensors"
    state = as_open_clip(make("clip"))
    save_file({**state, "visual.attnpool.c_proj.weight": torch.zeros(1)}, weights)
    with pytest.raises(WeightsError, match=r"visual\.attnpool\.c_proj\.weight is no weight of a CLIP"):
        clip.load_dual_model(source)
    save_file({name: tensor for name, tensor in state.items() if "ln_final" not in name}, weights)
    with pytest.raises(WeightsError, match=r"lacks 2 weights, such as text_model\.final_layer_norm"):
        clip.load_dual_model(source)
    save_file({**state, "ln_final.bias": torch.zeros(5)}, weights)
    with pytest.raises(WeightsError, match=r"the weights are not those of open_clip_config\.json"):
        clip.load_dual_model(source)
    weights.unlink()
    with pytest.raises(WeightsError, match=r"has no weights; they are in open_clip_model\.safetensors"):
        clip.load_dual_model(source)
    other = {**OPEN_CLIP_CONFIG, "model_cfg": {**OPEN_CLIP_CONFIG["model_cfg"], "vision_cfg": {"timm_model_name": "a"}}}
    (source / clip.OPEN_CLIP).write_text(json.dumps(other))
    with pytest.raises(ConfigError, match=r"towers that are not CLIP's.*model\.vision\.kind='timm'"):
        clip.load_dual_model(source)
    (source / clip.OPEN_CLIP).write_text("[]")
    with pytest.raises(WeightsError, match="is none of open_clip"):
        clip.load_dual_model(source)
    assert not clip.is_dual_model(tmp_path)
