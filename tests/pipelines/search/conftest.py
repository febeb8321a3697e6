"""The small model of the training tests."""

from tests.pipelines.train.conftest import tiny_model, tiny_processor

__all__ = ["tiny_model", "tiny_processor"]
