"""From texts to batches: the tokenizer of a checkpoint, and batches of few static shapes."""
