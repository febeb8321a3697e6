"""Write a model for other programs: LLaVA of transformers, an adapter of peft, ONNX, or one without adapters. LLaVA's
parts are a CLIP or SigLIP tower, an MLP and a language model; transformers, TRL and vLLM read it. Checkpoints of
LLaVA, CLIP, SigLIP and open_clip are read as well: evaluate.model=FOLDER. ONNX has the vision encoder, and the
embeddings of images and texts.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from jobs import job


def main(argv: Sequence[str] | None = None) -> int:
    """Run the job with these arguments, or those of the process; returns the exit status."""
    return job.main(
        "export",
        argv,
        sections=("export", "evaluate", "name", "storage"),
        doc=__doc__,
        again="the same command begins anew",
    )


if __name__ == "__main__":
    sys.exit(main())
