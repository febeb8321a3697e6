"""Converts models to and from LLaVA of transformers (Liu et al. 2023, arXiv:2304.08485):
``LlavaForConditionalGeneration`` with its processor and chat template, which transformers, TRL and vLLM read.

A model is one where its parts are those of LLaVA: a CLIP or SigLIP tower of transformers', whose tokens an MLP of two
layers brings to a language model whose output is one linear layer on its last states.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vlmodel.bridge.mlp import Config as MLPBridge
from vlmodel.config import ConfigError, parse_config
from vlmodel.conversation import Conversation, conversation_from_question, conversation_to_json
from vlmodel.decoder import _llm
from vlmodel.decoder.llm import LanguageModel
from vlmodel.formats._chat_template import IMAGE_TOKEN, build_chat_template
from vlmodel.heads._prompts import get_prompt_template
from vlmodel.images.preprocessing import describe_size
from vlmodel.images.resize import ImageResizing
from vlmodel.model import TASK_INPUTS, VLModel
from vlmodel.model_config import ModelConfig
from vlmodel.processor import Example, ProcessorConfig, VLProcessor
from vlmodel.saved_config import VLConfig
from vlmodel.vision.hf import Config as HFVision
from vlmodel.weights import WeightsError, config_to_dict, error_in_one_line

TOLERANCE = 1e-4
"""Of logits, in multiples of the largest: kernels add in other orders."""

_CLASS_TOKENS = {"clip_vision_model": 1, "siglip_vision_model": 0}
"""Tokens before those of the patches, by tower."""
_FILTERS = {"bilinear": 2, "bicubic": 3}
"""Pillow's numbers, by which transformers names them."""


def explain_incompatibility(model: VLModel, processor: VLProcessor) -> str:
    """Explain why a model cannot be saved as a LLaVA checkpoint; "" if it can."""
    tree, head = _model_settings(model), model.decoder
    if not isinstance(head, LanguageModel) or head.reads_joint_stream or list(head.bridges) != ["vision"]:
        return "it is no language model that reads the image's stream alone (head.kind='llm', head.reads='streams')"
    vision, bridge = tree.vision, head.config.bridge_config()
    if not isinstance(vision, HFVision) or vision.transformers_config().model_type not in _CLASS_TOKENS:
        return f"vision.kind={vision.kind!r} is no CLIP or SigLIP tower of transformers' (vision.kind='hf')"
    changed = (
        ("vision.output", vision.output, "grid"), ("vision.grid", vision.grid and describe_size(vision.grid), None),
        ("vision.projection", vision.projection, None), ("vision.position", vision.position or "none", "none"),
    )  # fmt: skip
    for name, value, wanted in changed:
        if value != wanted:
            return f"{name}={value}, and LLaVA has {'null' if wanted is None else wanted}"
    own = vision.transformers_config().image_size
    if vision.image_height_and_width() != (own, own):
        return (
            f"its pictures have {describe_size(vision.image_height_and_width())} pixels, and those of the tower's "
            f"weights {own}"
        )
    if not isinstance(bridge, MLPBridge) or bridge.layers != 2:
        return f"head.bridge={bridge.kind!r} is no MLP of two layers"
    if tree.knowledge.kind != "none":
        return f"it reads facts (knowledge.kind={tree.knowledge.kind!r})"
    if processor.config.image_resizing.resize == "pad":
        return "processor.resize='pad' adds bars, which no setting of the tower's image processor does"
    children = dict(head.inner.named_children())
    output = head.inner.get_output_embeddings()
    if children.keys() != {"model", "lm_head"} or not isinstance(output, nn.Linear) or output.bias is not None:
        return f"the language model {head.inner.config.model_type!r} is not a body and a linear output"
    return ""


def save_llava(model: VLModel, processor: VLProcessor, folder: Path) -> None:
    """Write a model, its processor and its chat template as LLaVA, then load them and compare their output with the
    model's.

    Args:
        model: without adapters (``merged.merge_adapters``).

    Raises:
        ConfigError: its parts are not those of LLaVA, or what was written gives other logits or other tokens.
    """
    if reason := explain_incompatibility(model, processor):
        raise ConfigError(f"export.format='llava': {reason}; set export.format='merged'")
    from transformers import GenerationConfig, LlavaForConditionalGeneration

    head = model.decoder
    assert isinstance(head, LanguageModel)
    tokenizer = _with_image_token(processor.tokenizer)
    config, state = _llava_config(model, tokenizer), _llava_state_dict(model, tokenizer)
    with torch.device("meta"):
        made = LlavaForConditionalGeneration(config)
    made.load_state_dict(state, assign=True)
    made.tie_weights()
    template = get_prompt_template(processor.tokenizer, head.config.template_kind())
    ends = sorted({template.end} | ({tokenizer.eos_token_id} - {None}))
    made.generation_config = GenerationConfig(
        eos_token_id=ends, pad_token_id=tokenizer.pad_token_id, bos_token_id=tokenizer.bos_token_id,
        suppress_tokens=[config.image_token_index], max_new_tokens=processor.config.max_target_tokens,
    )  # fmt: skip
    made.save_pretrained(str(folder))
    _llava_processor(model, processor, tokenizer).save_pretrained(str(folder))
    _compare_with_written_model(model, processor, folder)


def load_llava(folder: str | Path) -> tuple[VLModel, VLProcessor]:
    """Load a checkpoint of ``LlavaForConditionalGeneration`` as a model of the task ``converse`` and its processor.

    Raises:
        WeightsError: it cannot be read.
        ConfigError: it has parts that cannot be had here.
    """
    from transformers import AutoConfig, LlavaForConditionalGeneration, LlavaProcessor

    source = str(folder)
    if not is_llava(folder):
        # Without a configuration transformers would build the model of 7 billion parameters.
        raise WeightsError(f"{source!r} has no config.json of LLaVA; name the folder of such a checkpoint")
    try:
        config = AutoConfig.from_pretrained(source, local_files_only=True)
        _check_llava_config(config, source)
        made = LlavaForConditionalGeneration.from_pretrained(
            source, local_files_only=True, use_safetensors=True, dtype="float32"
        )
        known = LlavaProcessor.from_pretrained(source, local_files_only=True)
    except ConfigError:
        raise
    except Exception as error:  # broken files raise anything
        raise WeightsError(
            f"{source!r} is no checkpoint of LLaVA that can be read: {error_in_one_line(error)}"
        ) from error
    tokenizer, pictures = known.tokenizer, known.image_processor
    tokenizer.chat_template = known.chat_template or tokenizer.chat_template
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    resizing = _resizing_of(pictures, config.vision_config.image_size, source)
    tree = parse_config(
        ModelConfig,
        {
            "vision": {
                "kind": "hf", "architecture": config.vision_config.model_type, "weights": "",
                "layer": _vision_layer_of(config), "image_size": list(resizing.size),
                "mean": list(pictures.image_mean), "std": list(pictures.image_std),
                "resolved": config_to_dict(config.vision_config),
            },
            "task": {
                "kind": "converse",
                "head": {
                    "kind": "llm", "architecture": config.text_config.model_type, "template": "chat",
                    "behind_input": _text_after_image(known), "resolved": config_to_dict(config.text_config),
                },
            },
        },
    )  # fmt: skip
    settings = {name: getattr(resizing, name) for name in ("resize", "crop", "interpolation")}
    window = tree.task.tasks_by_name()[""].max_generated_tokens()
    limits = {"max_tokens": min(1024, window or 1024), "max_target_tokens": min(512, window or 512)}
    processor = VLProcessor(
        parse_config(ProcessorConfig, {"image_size": list(resizing.size), **settings, **limits}),
        tokenizer,
        (),
        tree.task.tasks_by_name(),
    )
    tree.task.check_tokenizer(tokenizer)
    model = VLModel(VLConfig.from_processor(tree.model_dump(mode="json"), processor))
    head = model.decoder
    assert isinstance(head, LanguageModel)
    state = made.state_dict()
    own = {name: state[theirs] for name, theirs in _llava_weight_names(model).items()}
    model.load_state_dict(own | {"vision.mean_C": model.vision.mean_C, "vision.std_C": model.vision.std_C})  # type: ignore[union-attr]
    return model.eval(), processor


def is_llava(folder: str | Path) -> bool:
    """Whether a folder holds a checkpoint of ``LlavaForConditionalGeneration``."""
    from transformers import PreTrainedConfig

    try:
        return PreTrainedConfig.get_config_dict(str(folder), local_files_only=True)[0].get("model_type") == "llava"
    except (OSError, ValueError):
        return False


def _model_settings(model: VLModel) -> ModelConfig:
    return parse_config(ModelConfig, model.config.checked_model_settings(str(model.name_or_path)))


def _with_image_token(tokenizer: Any) -> Any:
    """Copy a tokenizer, adding the token <image>. The copy adds no special tokens by itself, as the chat template
    contains them.
    """
    made = copy.deepcopy(tokenizer)
    if IMAGE_TOKEN not in made.get_vocab():
        made.add_special_tokens({"additional_special_tokens": [IMAGE_TOKEN]}, replace_extra_special_tokens=False)
    if made.backend_tokenizer.post_processor is not None:
        from tokenizers import processors

        made.backend_tokenizer.post_processor = processors.Sequence([])
    return made


def _llava_config(model: VLModel, tokenizer: Any) -> Any:
    from transformers import LlavaConfig

    vision, head = _model_settings(model).vision, model.decoder
    assert isinstance(vision, HFVision)
    assert isinstance(head, LanguageModel)
    tower = copy.deepcopy(vision.transformers_config())
    layer = vision.layer
    if layer is None:
        # The tower's output: behind its last norm, which transformers else leaves out of the hidden states.
        layer, tower.tie_last_hidden_states = -1, True
    text = copy.deepcopy(head.inner.config)
    token = int(tokenizer.convert_tokens_to_ids(IMAGE_TOKEN))
    text.vocab_size = max(int(text.vocab_size), token + 1)
    extra = _CLASS_TOKENS[tower.model_type]
    return LlavaConfig(
        vision_config=tower,
        text_config=text,
        image_token_index=token,
        image_seq_length=(tower.image_size // tower.patch_size) ** 2,
        projector_hidden_act="gelu",
        vision_feature_select_strategy="default" if extra else "full",
        vision_feature_layer=layer,
        tie_word_embeddings=bool(text.tie_word_embeddings),
    )


def _llava_weight_names(model: VLModel) -> dict[str, str]:
    """Map the name of each weight of the model to its name in LLaVA."""
    prefixes = (
        ("vision.backbone.", "model.vision_tower."),
        ("decoder.bridges.vision.layers.0.", "model.multi_modal_projector.linear_1."),
        ("decoder.bridges.vision.layers.2.", "model.multi_modal_projector.linear_2."),
        ("decoder.inner.model.", "model.language_model."),
        ("decoder.inner.lm_head.", "lm_head."),
    )
    return {
        name: theirs + name.removeprefix(own)
        for name in model.state_dict()
        for own, theirs in prefixes
        if name.startswith(own)
    }


def _llava_state_dict(model: VLModel, tokenizer: Any) -> dict[str, Tensor]:
    """Return the weights under LLaVA's names; if the token <image> is new, its embedding rows are zeros."""
    state, names = model.state_dict(), _llava_weight_names(model)
    rows = int(tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)) + 1
    made = {theirs: state[name].detach().contiguous() for name, theirs in names.items()}
    for name in ("lm_head.weight", "model.language_model.embed_tokens.weight"):
        weight_VD = made[name]
        if len(weight_VD) < rows:
            made[name] = torch.cat([weight_VD, weight_VD.new_zeros(rows - len(weight_VD), weight_VD.shape[1])])
    return made


def _llava_processor(model: VLModel, processor: VLProcessor, tokenizer: Any) -> Any:
    from transformers import LlavaProcessor

    head, vision = model.decoder, _model_settings(model).vision
    assert isinstance(head, LanguageModel)
    assert isinstance(vision, HFVision)
    tower = vision.transformers_config()
    extra = _CLASS_TOKENS[tower.model_type]
    template = build_chat_template(head.config, processor.tokenizer)
    return LlavaProcessor(
        image_processor=_image_processor(model, processor.config.image_resizing),
        tokenizer=tokenizer,
        patch_size=tower.patch_size,
        vision_feature_select_strategy="default" if extra else "full",
        chat_template=template,
        image_token=IMAGE_TOKEN,
        num_additional_image_tokens=extra,
    )


def _image_processor(model: VLModel, resizing: ImageResizing) -> Any:
    """Build transformers' CLIPImageProcessor that resizes and crops images as this model's processor does."""
    from transformers import CLIPImageProcessor

    assert model.vision is not None
    (resized, _), (side, _) = resizing.min_source_size(), resizing.size
    is_cropped = resizing.resize == "crop" or resized != side
    return CLIPImageProcessor(
        do_resize=True,
        size={"shortest_edge": resized} if resizing.resize == "crop" else {"height": resized, "width": resized},
        resample=_FILTERS[resizing.interpolation],
        do_center_crop=is_cropped,
        crop_size={"height": side, "width": side},
        do_rescale=True,
        rescale_factor=1 / 255,
        do_normalize=True,
        image_mean=model.vision.mean_C.tolist(),  # type: ignore[operator]
        image_std=model.vision.std_C.tolist(),  # type: ignore[operator]
        do_convert_rgb=True,
    )


def _resizing_of(pictures: Any, own_size: int, source: str) -> ImageResizing:
    """Translate the settings of a CLIP or SigLIP image processor: how it makes an image square."""
    size, crop = dict(pictures.size or {}), dict(pictures.crop_size or {})
    shortest = size.get("shortest_edge")
    is_cropped = bool(getattr(pictures, "do_center_crop", False))
    side = (crop.get("height") if is_cropped else shortest or size.get("height")) or own_size
    resized = shortest or size.get("height") or side
    if side != own_size:
        raise ConfigError(
            f"{source!r} prepares pictures of {side} pixels for a tower of {own_size}; correct preprocessor_config.json"
        )
    filters = {number: name for name, number in _FILTERS.items()}
    interpolation: Any = filters.get(int(pictures.resample), "bicubic")
    crop_share = side / resized if is_cropped else 1.0
    return ImageResizing((side, side), "crop" if shortest else "squash", crop_share, interpolation)


def _check_llava_config(config: Any, source: str) -> None:
    """Raise an error if a LLaVA checkpoint uses a feature that models of this project lack."""
    tower = config.vision_config.model_type
    strategy = config.vision_feature_select_strategy
    extra = _CLASS_TOKENS.get(tower)
    if extra is None:
        raise ConfigError(f"{source!r}: its tower {tower!r} is neither CLIP's nor SigLIP's")
    wanted = (
        ("vision_feature_select_strategy", strategy, "default" if extra else "full"),
        ("projector_hidden_act", config.projector_hidden_act, "gelu"),
        ("multimodal_projector_bias", config.multimodal_projector_bias, True),
    )
    for name, value, only in wanted:
        if value != only:
            raise ConfigError(f"{source!r}: {name}={value!r}, and what is read here has {only!r}")
    if not isinstance(config.vision_feature_layer, int):
        raise ConfigError(f"{source!r}: vision_feature_layer={config.vision_feature_layer} names several; use one")
    if reason := _llm.unsupported_architecture_reason(config.text_config.model_type):
        raise ConfigError(f"{source!r}: its language model {config.text_config.model_type!r} {reason}")


def _vision_layer_of(config: Any) -> int | None:
    """Translate LLaVA's ``vision_feature_layer`` to the setting ``vision.layer``."""
    layer, tied = config.vision_feature_layer, getattr(config.vision_config, "tie_last_hidden_states", None)
    return None if layer == -1 and tied else int(layer)


def _text_after_image(processor: Any) -> str:
    """Find the text that the chat template puts between a picture and the text after it."""
    turn = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "\ue000"}]}
    text = str(processor.apply_chat_template([turn], tokenize=False))
    _, found, behind = text.partition(processor.image_token)
    if not found or "\ue000" not in behind:
        raise ConfigError("the chat template shows no picture before a text; use another")
    return behind.partition("\ue000")[0]


@torch.inference_mode()
def _compare_with_written_model(model: VLModel, processor: VLProcessor, folder: Path) -> None:
    """Compare the outputs of the written model and of the original for one prompt about one picture.

    Raises:
        ConfigError: they read other tokens, or give other logits.
    """
    from transformers import LlavaForConditionalGeneration, LlavaProcessor

    head = model.decoder
    assert isinstance(head, LanguageModel)
    made = LlavaForConditionalGeneration.from_pretrained(str(folder), local_files_only=True, dtype="float32").eval()
    read = LlavaProcessor.from_pretrained(str(folder), local_files_only=True)
    messages: list[dict[str, Any]] = [
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is it?"}]}
    ]
    prompt = read.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    ids_T = read.tokenizer(prompt, add_special_tokens=False)["input_ids"]
    own_T = get_prompt_template(processor.tokenizer, head.config.template_kind()).tokenize_conversation(
        conversation_from_question("What is it?"), head.config.system, behind_input=head.config.behind_input
    )
    image = made.config.image_token_index
    if ids_T != [image if i < 0 else i for i in own_T]:
        raise ConfigError(
            "export.format='llava': the tokenizer reads a whole prompt otherwise than its parts, as the model was "
            f"trained: {read.tokenizer.convert_ids_to_tokens(ids_T)}; set export.format='merged'"
        )
    ids_T = [i for token in ids_T for i in [token] * (made.config.image_seq_length if token == image else 1)]
    pixels_HWC = _noise_picture(processor.config.image_resizing.size)
    assert model.vision is not None
    pixels_BCHW = model.vision.normalise_pixels(torch.from_numpy(pixels_HWC)[None]).contiguous()  # type: ignore[operator]
    theirs_K = made(input_ids=torch.tensor([ids_T]), pixel_values=pixels_BCHW).logits[0, -1]
    ours_K = first_token_logits(model, processor, pixels_HWC, conversation_from_question("What is it?"))
    difference = float((theirs_K[: len(ours_K)] - ours_K).abs().max() / ours_K.abs().max())
    if not difference <= TOLERANCE:
        raise ConfigError(
            f"export.format='llava': logits differ by {difference:.2g} of the largest; set export.format='merged'"
        )


def first_token_logits(model: VLModel, processor: VLProcessor, pixels_HWC: Any, turns: Conversation) -> Tensor:
    """Compute the logits (K,) of the first token of the reply of a language-model head, given one picture and the turns
    of a conversation.
    """
    head = model.decoder
    assert isinstance(head, LanguageModel)
    [name] = processor.tasks
    batch = processor.collate_tasks(
        [{"image": {"pixels_HWC": pixels_HWC}}], {name: [Example({}, (conversation_to_json(turns),))]}
    )
    arrays = {array: torch.from_numpy(values) for array, values in batch.items()}
    inputs = model.encode_inputs({array: values for array, values in arrays.items() if array.startswith("image.")})
    read = {array: values for array, values in arrays.items() if array in TASK_INPUTS}
    return head.first_token_logits(model.encode_task(name, inputs, read))[0]


def _noise_picture(size: tuple[int, int]) -> Any:
    """Make a picture of noise; it is the same at each call."""
    return np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
