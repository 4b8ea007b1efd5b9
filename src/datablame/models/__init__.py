"""Checkpoints, their tokenizer and what is where inside them."""
