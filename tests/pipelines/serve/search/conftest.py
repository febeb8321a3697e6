"""The tars, the model and the job of the tests of vectors."""

from tests.pipelines.embeddings.conftest import contrastive, here, index, job

__all__ = ["contrastive", "here", "index", "job"]
