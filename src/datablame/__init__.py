"""datablame: git blame for the behaviour of a language model.

`study`, `run` and `open` are the Python interface; they are imported when they are first used.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from datablame.api import Run as Run
    from datablame.api import open as open
    from datablame.api import run as run
    from datablame.api import study as study

__version__ = "0.1.0"

__all__ = ["Run", "__version__", "open", "run", "study"]


def __getattr__(name: str) -> Any:
    """Import the interface on first use: the command line does not need it."""
    if name in __all__:
        from datablame import api

        return getattr(api, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
