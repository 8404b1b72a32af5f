"""Texts on their way into a net: the tokenizer and batches of few static shapes."""
