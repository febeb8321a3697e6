"""Encoders of further inputs of a sample (``model.inputs.NAME``), one file a kind; the module is in a private file."""
