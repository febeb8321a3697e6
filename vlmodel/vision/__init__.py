"""Vision encoders: they take uint8 images and return ``Tokens``. One file for each family of backbones."""
