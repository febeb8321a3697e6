"""What is learned from the texts of a data set before training: the tokenizer, the answers, lengths."""
