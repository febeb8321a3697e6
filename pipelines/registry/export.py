"""Exports a model as a folder for other programs: LLaVA of transformers, an adapter of peft, ONNX, or a model without
adapters.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Literal

from vlmodel.config import ConfigError, ConfigSection
from vlmodel.locations import Location

Format = Literal["merged", "llava", "adapter", "onnx"]


class ExportConfig(ConfigSection):
    """Settings of the export of the model that evaluate.model names."""

    format: Format | None = None
    """"llava": LlavaForConditionalGeneration of transformers with its processor, where the parts are those of LLaVA;
    "adapter": peft's folder of a language model's low-rank adapters; "onnx": graphs of the
    vision encoder, and of the embeddings of images and texts where a task embeds (vlmodel/formats/onnx.py says their
    inputs and outputs); "merged": a model of this program whose adapters are added to its weights. null takes "llava"
    where it can be, else "adapter" where there is one, else "merged". Folders of LLaVA, CLIP, SigLIP and open_clip in
    evaluate.model are read too, and become "merged"."""
    out: Location = ""
    """Folder to write, which must not exist; "" puts it into the run's folder, by the name of its format."""


def export_model(model_folder: Path, config: ExportConfig, out: Path) -> Format:
    """Export a model into a new folder, completely or not at all, and return the format.

    Args:
        out: where ``config.out`` is "", the name of the format is added to it.

    Raises:
        ConfigError: the model cannot be had in this format, or the folder exists.
        WeightsError: the model cannot be read.
    """
    from vlmodel.decoder.llm import LanguageModel
    from vlmodel.formats import adapter, clip, llava, onnx
    from vlmodel.formats.merged import merge_adapters
    from vlmodel.model import VLModel
    from vlmodel.processor import VLProcessor

    if llava.is_llava(model_folder):
        model, processor = llava.load_llava(model_folder)
        chosen: Format = config.format or "merged"
    elif clip.is_dual_model(model_folder):
        model, processor = clip.load_dual_model(model_folder)
        chosen = config.format or "merged"
    else:
        model = VLModel.from_pretrained(str(model_folder), local_files_only=True).eval()
        processor = VLProcessor.from_pretrained(model_folder)
        has_adapter = isinstance(model.decoder, LanguageModel) and model.decoder.config.training == "lora"
        fits = not llava.explain_incompatibility(model, processor)
        chosen = config.format or ("llava" if fits else "adapter" if has_adapter else "merged")
    target = out if config.out else out / chosen
    if target.exists():
        raise ConfigError(f"export.out: {target} exists; name another folder, or remove it")
    staging = target.parent / f".{target.name}.exporting"
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    try:
        if chosen == "adapter":
            adapter.save_adapter(model, processor, staging)
        else:
            model, processor = merge_adapters(model, processor)
            if chosen == "llava":
                llava.save_llava(model, processor, staging)
            elif chosen == "onnx":
                onnx.save_onnx(model, processor, staging)
            else:
                model.save_pretrained(staging)
                processor.save_pretrained(staging)
        staging.rename(target)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return chosen
