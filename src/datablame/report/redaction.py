"""Harmful text hidden: what stands in its place says how long it is and which, so that it can be asked for."""

import hashlib


def hidden(text: str) -> str:
    """What is shown of a text that is not; equal texts are hidden alike, none stays none."""
    if not text:
        return text
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
    return f"[hidden: {len(text)} characters, SHA-256 {digest[:12]}]"
