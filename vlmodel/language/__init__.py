"""Language encoders: token ids in, ``Tokens`` out. One file a family of encoders."""
