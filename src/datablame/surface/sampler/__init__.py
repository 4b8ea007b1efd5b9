"""Sampling from two models' amplified logits."""
