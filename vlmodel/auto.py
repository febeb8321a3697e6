"""Lets transformers' Auto classes load a saved model: ``AutoModel.from_pretrained(FOLDER, trust_remote_code=True)``,
and ``AutoProcessor`` likewise. ``save_pretrained`` copies this file beside the weights.

It is all the code that lies there: the model itself is that of the installed package, which is one version with one
set of tests, and not a copy that a stranger may have changed.
"""

try:
    from vlmodel.model import VLModel
    from vlmodel.processor import VLProcessor
    from vlmodel.saved_config import VLConfig
except ModuleNotFoundError as error:
    raise ImportError(
        f"this model needs the distribution raylm, which holds the package vlmodel ({error}); install the version that "
        "trained it: pip install raylm-VERSION.whl"
    ) from error

__all__ = ["VLConfig", "VLModel", "VLProcessor"]
