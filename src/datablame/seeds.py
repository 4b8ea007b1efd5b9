"""Every random number derives from a key, and a key from what the number is for."""

import hashlib
import json
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


def stream_key(*parts: str | int | float) -> int:
    """The 128-bit key of one random stream: BLAKE2b of the canonical JSON of what the stream is for.

    Numbers that compare equal give the same key (alpha 1 and alpha 1.0 are one stream).
    """
    canonical = [float(part) if isinstance(part, float | int) else part for part in parts]
    digest = hashlib.blake2b(json.dumps(canonical).encode(), digest_size=16).digest()
    return int.from_bytes(digest, "little")


def generator(*parts: str | int | float) -> "np.random.Generator":
    """A counter-based generator (Philox-4x64; Salmon et al. 2011) keyed by `stream_key(*parts)`."""
    import numpy as np

    return np.random.Generator(np.random.Philox(key=stream_key(*parts)))


def uniforms(key: int, n: int) -> "NDArray[np.float64]":
    """The first `n` uniforms in [0, 1) of the stream `key`."""
    import numpy as np

    return np.random.Generator(np.random.Philox(key=key)).random(n)
