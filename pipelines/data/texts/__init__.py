"""Learns from the texts of a data set before training: the tokenizer, the labels, text lengths."""
