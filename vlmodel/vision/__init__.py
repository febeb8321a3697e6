"""Vision encoders: uint8 images in, ``Tokens`` out. One file a family of backbones."""
