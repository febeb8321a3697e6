"""What transformers stores of a model: its configuration, and the file that the Auto classes load it with."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import AutoConfig, PreTrainedConfig

from vlmodel.config import ConfigError
from vlmodel.model_config import vocabulary_of_processor
from vlmodel.part_configs import Vocabulary

if TYPE_CHECKING:
    from vlmodel.processor import VLProcessor

FORMAT = 2
"""Version of what a model's folder holds: since 2 the frozen weights lie apart (``vlmodel.bases``)."""


AUTO_FILE = Path(__file__).with_name("auto.py")


AUTO_MAP = {"AutoConfig": "auto.VLConfig", "AutoModel": "auto.VLModel", "AutoProcessor": "auto.VLProcessor"}
"""What transformers' Auto classes find in a saved model: classes of a file beside the weights."""


class VLConfig(PreTrainedConfig):
    """The configuration of a ``VLModel`` in the form of transformers.

    Attributes:
        format: version of what a model's folder holds.
        model: the resolved ``ModelConfig`` as a plain tree; the model is rebuilt from it alone.
        vocab_size, pad_token_id: of the tokenizer.
        begin_token_id, end_token_id: tokens that begin and end a generated text; -1 where there are none.
        id2label, label2id: the answers that a classifier chooses among.
    """

    model_type = "vlmodel"

    format: int = 0
    model: dict[str, Any] | None = None
    vocab_size: int = 30522
    pad_token_id: int = 0
    begin_token_id: int = -1
    end_token_id: int = -1

    def checked_model_settings(self, folder: str) -> dict[str, Any]:
        """Read and check the settings of the parts of the model in a folder.

        Raises:
            ConfigError: there is none, or it is of another version of this program.
        """
        if self.model is None:
            raise ConfigError(
                f"the configuration {folder!r} has no tree of parts, so it is none of a VLModel; name a folder that "
                "VLModel.save_pretrained wrote, or make a model with VLModel.create_from_config"
            )
        if self.format != FORMAT:
            raise ConfigError(
                f"the model in {folder!r} was saved by another version of this program (format {self.format}, and this "
                f"version reads {FORMAT}); train it anew with this version"
            )
        return self.model

    @classmethod
    def register_for_auto_class(cls, auto_class: Any = "AutoConfig") -> None:
        """Do nothing: see ``VLModel.register_for_auto_class``."""

    @property
    def vocabulary(self) -> Vocabulary:
        """What the model's parts need to know about tokens and labels."""
        labels = len(self.id2label or {})
        return Vocabulary(self.vocab_size, self.pad_token_id, labels, self.begin_token_id, self.end_token_id)

    @classmethod
    def from_processor(cls, model: dict[str, Any], processor: VLProcessor) -> VLConfig:
        """Create the configuration of a model for the tokenizer and labels of ``processor``."""
        vocabulary = vocabulary_of_processor(processor)
        return cls(
            format=FORMAT,
            model=model,
            vocab_size=vocabulary.size,
            pad_token_id=vocabulary.padding,
            begin_token_id=vocabulary.begin,
            end_token_id=vocabulary.end,
            id2label=dict(enumerate(processor.labels)),
            label2id={label: i for i, label in enumerate(processor.labels)},
        )


AutoConfig.register("vlmodel", VLConfig, exist_ok=True)
