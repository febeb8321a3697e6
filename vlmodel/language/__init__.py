"""Language encoders: token ids in, ``Tokens`` out. One file for each family of encoders."""
