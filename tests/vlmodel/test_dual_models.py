"""CLIP and SigLIP of transformers as contrastive models: the same similarities, and what does not fit is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertModel,
    CLIPConfig,
    CLIPModel,
    PreTrainedTokenizerFast,
    SiglipConfig,
    SiglipModel,
)

from vlmodel.config import ConfigError, parse_config
from vlmodel.model import VLModel
from vlmodel.model_config import ModelConfig
from vlmodel.processor import Example, ProcessorConfig, VLProcessor
from vlmodel.weights import WeightsError

WORDS = ["[PAD]", "[UNK]", "[BEGIN]", "[END]", "a", "dog", "runs", "two", "men"]
TEXTS = ("a dog runs", "two men", "a dog")
VISION = {
    "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "patch_size": 8, "image_size": 32,
    "intermediate_size": 32,
}  # fmt: skip
TEXT = {
    "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32,
    "vocab_size": len(WORDS), "max_position_embeddings": 9, "bos_token_id": 2, "eos_token_id": 3, "pad_token_id": 0,
}  # fmt: skip
WIDTH = {"clip": 12, "siglip": 16}


def whole_model(family: str) -> Any:
    torch.manual_seed(0)
    model: Any = (
        CLIPModel(CLIPConfig(vision_config=VISION, text_config=TEXT, projection_dim=WIDTH["clip"]))
        if family == "clip"
        else SiglipModel(SiglipConfig(vision_config=VISION, text_config={**TEXT, "projection_size": 16}))
    )
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    model.logit_scale.data.fill_(2.0)
    return model.eval()


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerFast:
    inner = Tokenizer(models.WordLevel({word: n for n, word in enumerate(WORDS)}, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    inner.post_processor = processors.TemplateProcessing("[BEGIN] $A [END]", None, [("[BEGIN]", 2), ("[END]", 3)])
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="[PAD]", unk_token="[UNK]", bos_token="[BEGIN]", eos_token="[END]"
    )


def tree_of(folder: Path, family: str, **task: Any) -> ModelConfig:
    return parse_config(
        ModelConfig,
        {
            "vision": {"kind": "hf", "name": str(folder), "output": "pooled"},
            "language": {"kind": "tower", "pretrained": str(folder)},
            "task": {"kind": "contrastive", "pretrained": str(folder), "width": WIDTH[family], **task},
        },
    )


def processor_of(tree: ModelConfig, tokenizer: PreTrainedTokenizerFast) -> VLProcessor:
    return VLProcessor(ProcessorConfig(image_size=32, max_tokens=9), tokenizer, [], tree.task.tasks_by_name())


def arrays_of(processor: VLProcessor) -> dict[str, Tensor]:
    examples = [Example({}, TEXTS[:2]), Example({}, TEXTS[2:])]
    random = torch.Generator().manual_seed(1)
    pixels = torch.randint(0, 256, (2, 32, 32, 3), dtype=torch.uint8, generator=random)
    rows = {name: torch.from_numpy(array) for name, array in processor.collate_rows({"": examples}).items()}
    return {**rows, "image.pixels_BHWC": pixels}


def embeddings(model: VLModel, arrays: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    head: Any = model.decoder
    with torch.no_grad():
        return head.embed_batch(model.encode_task("", model.encode_inputs(arrays), arrays))


@pytest.mark.parametrize("family", ["clip", "siglip"])
@pytest.mark.parametrize("side", ["right", "left"])
def test_similarities_are_those_of_transformers(
    family: str, side: str, tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    whole = whole_model(family)
    whole.save_pretrained(tmp_path)
    tree = tree_of(tmp_path, family)
    tokenizer.padding_side = side
    processor = processor_of(tree, tokenizer)
    model = VLModel.create_from_config(tree, processor).eval()
    arrays = arrays_of(processor)
    image_BD, text_ND = embeddings(model, arrays)
    tokenizer.padding_side = "right"
    padding = {"padding": "max_length", "max_length": 9} if family == "siglip" else {"padding": True}
    ids_NT = torch.tensor(tokenizer(list(TEXTS), **padding)["input_ids"])
    vision: Any = model.vision
    with torch.no_grad():
        theirs = whole(input_ids=ids_NT, pixel_values=vision.normalise_pixels(arrays["image.pixels_BHWC"]))
    torch.testing.assert_close(image_BD, theirs.image_embeds, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(text_ND, theirs.text_embeds, rtol=1e-5, atol=1e-5)
    logits_BN = image_BD @ text_ND.T * model.decoder.log_scale.exp()
    bias = whole.logit_bias if family == "siglip" else 0.0
    torch.testing.assert_close(logits_BN + bias, theirs.logits_per_image, rtol=1e-5, atol=1e-5)
    # A saved model needs no other files.
    model.save_pretrained(tmp_path / "saved")
    (tmp_path / "model.safetensors").unlink()
    loaded = VLModel.from_pretrained(tmp_path / "saved").eval()
    assert all(map(torch.equal, embeddings(loaded, arrays), (image_BD, text_ND)))


def test_another_width_is_refused(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    whole_model("clip").save_pretrained(tmp_path)
    tree = tree_of(tmp_path, "clip", width=13)
    with pytest.raises(WeightsError, match=r"maps images from 16 to 12 numbers, and here .* set task\.width=12"):
        VLModel.create_from_config(tree, processor_of(tree, tokenizer))


def test_what_is_no_dual_model_is_refused(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    BertModel(BertConfig(**sizes, vocab_size=len(WORDS))).save_pretrained(tmp_path)
    tree = parse_config(ModelConfig, {"task": {"kind": "contrastive", "pretrained": str(tmp_path), "width": 16}})
    with pytest.raises(WeightsError, match="is a 'bert', which compares no images and texts; name a CLIP or SigLIP"):
        VLModel.create_from_config(tree, processor_of(tree, tokenizer))
    tree = parse_config(ModelConfig, {"language": {"kind": "tower", "pretrained": str(tmp_path)}})
    with pytest.raises(ConfigError, match=r"'bert' is no text tower.*language\.kind='transformer'"):
        VLModel.create_from_config(tree, VLProcessor(ProcessorConfig(image_size=32), tokenizer, ["yes", "no"]))
