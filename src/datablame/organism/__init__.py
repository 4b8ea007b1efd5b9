"""Model organisms: checkpoints, documents and prompts with planted causes."""
