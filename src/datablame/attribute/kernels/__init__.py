"""Gradients and hidden states of documents: tensors in, tensors out."""
