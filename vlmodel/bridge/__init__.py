"""Bridges: what brings an encoder's stream into a language model. A file of settings each, its module beside it."""
