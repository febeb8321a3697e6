"""Language encoders: they take token ids and return ``Tokens``. One file for each family of encoders."""
