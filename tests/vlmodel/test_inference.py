"""The predictor, and what a model refuses when it is made."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import processors
from torch import Tensor
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from tests.vlmodel.conftest import LABELS
from tests.vlmodel.tiny import collate
from vlmodel.config import ConfigError, parse_config
from vlmodel.images.errors import ImageError
from vlmodel.inference import Predictor
from vlmodel.model import VLModel
from vlmodel.model_config import ModelConfig
from vlmodel.processor import Example, ProcessorConfig, VLProcessor
from vlmodel.weights import WeightsError


@pytest.fixture
def predictor(make_model: Callable[..., Any], processor: VLProcessor, tmp_path: Path) -> Predictor:
    make_model().save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    return Predictor.from_pretrained(tmp_path)


def test_answers_are_ranked_and_grouped_by_example(
    predictor: Predictor, processor: VLProcessor, examples: list[Example], batch: dict[str, Tensor]
) -> None:
    predictions = predictor.predict(examples, top_k=3)
    assert [len(texts) for texts in predictions] == [2, 1]
    probabilities = predictor.model(**batch).logits_NK.softmax(-1).detach().numpy()
    for prediction, row in zip([p for texts in predictions for p in texts], probabilities, strict=True):
        assert prediction.attention_HW is None
        assert [answer for answer, _ in prediction.answers] == [processor.labels[k] for k in np.argsort(-row)[:3]]
        np.testing.assert_allclose([p for _, p in prediction.answers], np.sort(row)[::-1][:3], rtol=1e-6)
    flat = [p.answers for texts in predictions for p in texts]
    assert predictor.predict_collated(collate(processor, examples), top_k=3) == flat


def test_one_alone_is_answered_as_among_many(predictor: Predictor, examples: list[Example]) -> None:
    together = predictor.predict(examples * 5)
    alone = predictor.predict(examples[1:])[0][0]
    assert [answer for answer, _ in alone.answers] == [answer for answer, _ in together[-1][0].answers]
    np.testing.assert_allclose([p for _, p in alone.answers], [p for _, p in together[-1][0].answers], atol=1e-5)


def test_attention_over_the_grid(predictor: Predictor, examples: list[Example]) -> None:
    asked = predictor.predict(examples, attention=True)
    plain = predictor.predict(examples)
    for with_map, without in zip((p for t in asked for p in t), (p for t in plain for p in t), strict=True):
        assert with_map.attention_HW is not None
        assert with_map.attention_HW.shape == (8, 8)
        assert with_map.attention_HW.min() >= 0
        assert with_map.attention_HW.sum() == pytest.approx(1, abs=1e-5)
        assert [a for a, _ in with_map.answers] == [a for a, _ in without.answers]


@pytest.mark.parametrize("language", [{}, {"architecture": "xlnet"}], ids=["bert", "xlnet"])
@pytest.mark.parametrize("topology", ["dual", "interactive"])
def test_attention_whatever_side_is_padded(
    language: dict[str, Any],
    topology: str,
    tokenizer: PreTrainedTokenizerFast,
    examples: list[Example],
    make_model: Callable[..., Any],
) -> None:
    """A text's map among longer texts is that of the text alone, and that of the other side."""
    model = make_model(language=language, topology={"kind": topology})
    for name, parameter in model.named_parameters():
        if not name.startswith("vision."):
            torch.nn.init.normal_(parameter, std=0.3)
    maps = []
    for side in ("left", "right"):
        padded = copy.deepcopy(tokenizer)
        padded.padding_side = side
        if "architecture" in language:  # whose classification token comes last
            padded._tokenizer.post_processor = processors.TemplateProcessing(
                single="$A [SEP] [CLS]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
            )
        asking = Predictor(model, VLProcessor(ProcessorConfig(image_size=32, max_tokens=12), padded, LABELS))
        together = [p.attention_HW for texts in asking.predict(examples, attention=True) for p in texts]
        alone = [
            asking.predict([Example(example.inputs, (text,))], attention=True)[0][0].attention_HW
            for example in examples
            for text in example.texts
        ]
        for one, among in zip(alone, together, strict=True):
            np.testing.assert_allclose(among, one, atol=1e-7)
        maps.append(together)
    np.testing.assert_allclose(maps[0], maps[1], atol=1e-7)
    assert np.std(maps[0]) > 1e-5


def test_attention_is_none_where_the_fusion_has_none(
    make_model: Callable[..., Any], processor: VLProcessor, examples: list[Example]
) -> None:
    predictor = Predictor(make_model(fusion={"kind": "concat"}), processor)
    assert predictor.predict(examples, attention=True)[0][0].attention_HW is None


def test_attention_with_one_token_a_text(
    make_model: Callable[..., Any], processor: VLProcessor, examples: list[Example]
) -> None:
    predictor = Predictor(make_model(language={"output": "pooled"}), processor)
    (first, _), _ = predictor.predict(examples, attention=True)
    assert first.attention_HW is not None
    assert first.attention_HW.sum() == pytest.approx(1, abs=1e-5)


def test_nothing_to_answer(predictor: Predictor, examples: list[Example]) -> None:
    assert predictor.predict([]) == []
    assert predictor.predict([Example(examples[0].inputs, ())]) == [[]]


@pytest.mark.parametrize("top_k", [0, -1])
def test_no_answer_at_all_is_refused(top_k: int, predictor: Predictor, examples: list[Example]) -> None:
    with pytest.raises(ValueError, match=f"top_k={top_k} asks for no answer; set it to 1 or more"):
        predictor.predict(examples, top_k=top_k)


def test_a_broken_image_is_an_image_error(predictor: Predictor) -> None:
    with pytest.raises(ImageError):
        predictor.predict([Example({"image": b"broken"}, ("a",))])


def test_folder_without_a_model(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "absent"):
        with pytest.raises(FileNotFoundError, match="holds no model"):
            Predictor.from_pretrained(folder)


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"fusion": {"width": 30, "heads": 4}}, "fusion: width=30 cannot be shared by heads=4"),
        ({"language": {"width": 30, "heads": 4}}, "language: width=30 cannot be shared by heads=4"),
        (
            {"language": {"architecture": "bertt"}},
            "architecture='bertt' is unknown to transformers; close names: .*bert",
        ),
        ({"language": {"architecture": "vit"}}, "architecture='vit' is no text encoder"),
        ({"vision": {"name": "resnet"}}, "vision: there is no backbone 'resnet'"),
    ],
)
def test_trees_that_cannot_be(tree: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_config(ModelConfig, tree)


@pytest.mark.parametrize(
    ("processor", "message"),
    [
        (
            {"image_size": 8},
            r"processor.image_size=8 is smaller than one grid cell of model.vision, which stands for 32",
        ),
        ({"max_tokens": 200}, r"processor.max_tokens=200 is more than the 128 tokens that model.language takes"),
    ],
)
def test_processor_that_does_not_fit_is_refused(
    processor: dict[str, object], message: str, tokenizer: PreTrainedTokenizerFast
) -> None:
    with pytest.raises(ConfigError, match=message):
        VLModel.create_from_config(
            parse_config(ModelConfig, {}), VLProcessor(parse_config(ProcessorConfig, processor), tokenizer, ["a", "b"])
        )


def test_answers_are_needed(tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(ConfigError, match="chooses among answers, and there are 1"):
        VLModel.create_from_config(parse_config(ModelConfig, {}), VLProcessor(ProcessorConfig(), tokenizer, ["only"]))


def test_pretrained_encoder_of_a_smaller_vocabulary_is_refused(
    make_model: Callable[..., Any], tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    make_model().language.encoder.save_pretrained(tmp_path)
    larger = PreTrainedTokenizerFast.from_pretrained(save_larger(tokenizer, tmp_path / "tokenizer"))
    with pytest.raises(ConfigError, match=r"knows 14 tokens and the tokenizer makes 16; use the tokenizer"):
        VLModel.create_from_config(
            parse_config(ModelConfig, {"language": {"pretrained": str(tmp_path)}}),
            VLProcessor(ProcessorConfig(), larger, ["a", "b"]),
        )


def save_larger(tokenizer: PreTrainedTokenizerFast, folder: Path) -> Path:
    tokenizer.save_pretrained(folder)
    copy = PreTrainedTokenizerFast.from_pretrained(folder)
    copy.add_tokens(["green", "square"])
    copy.save_pretrained(folder)
    return folder


def test_absent_pretrained_encoder_is_named(processor: VLProcessor, tmp_path: Path) -> None:
    tree = parse_config(ModelConfig, {"language": {"pretrained": str(tmp_path)}})
    with pytest.raises(ValueError, match=r"language\.pretrained=.* cannot be opened"):
        VLModel.create_from_config(tree, processor)


def test_incomplete_pretrained_encoder_is_refused(
    make_model: Callable[..., Any], processor: VLProcessor, tmp_path: Path
) -> None:
    from safetensors.torch import load_file, save_file

    make_model().language.encoder.save_pretrained(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    state.pop("encoder.layer.0.attention.self.query.weight")
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    tree = parse_config(ModelConfig, {"language": {"pretrained": str(tmp_path)}})
    with pytest.raises(
        ValueError, match=r"lacks 1 weights of its own architecture: encoder.layer.0.attention.self.query"
    ):
        VLModel.create_from_config(tree, processor)


def test_threads(make_model: Callable[..., Any], processor: VLProcessor, tmp_path: Path) -> None:
    before = torch.get_num_threads()
    make_model().save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    try:
        Predictor.from_pretrained(tmp_path, threads=1)
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)


def test_weights_of_another_shape_are_refused(make_model: Callable[..., Any], tmp_path: Path) -> None:
    make_model().save_pretrained(tmp_path / "one")
    make_model(fusion={"width": 32}).save_pretrained(tmp_path / "other")
    shutil.copy(tmp_path / "other" / "config.json", tmp_path / "one")
    with pytest.raises(
        WeightsError, match=r"other architecture.* of another shape: .*weight \(\d+, 16\) where \(\d+, 32\) is needed"
    ):
        VLModel.from_pretrained(tmp_path / "one")


def test_another_librarys_checkpoint_is_refused(tmp_path: Path) -> None:
    tiny = BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8, vocab_size=20)
    BertModel(tiny).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=r"has no tree of parts, so it is none of a VLModel; name a folder"):
        VLModel.from_pretrained(tmp_path)
