"""Amplified sampling: which prompts show the behaviour, and how often at each amplification."""
