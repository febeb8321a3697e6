"""Searches nearest vectors: of facts, and of what the embed job wrote."""
