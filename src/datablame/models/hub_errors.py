"""What went wrong at the hub of models, in one sentence with its remedy."""

from collections.abc import Callable, Iterator
from typing import Any

_TOKEN = "set HF_TOKEN to a token that may read it"


def hub_problem(error: BaseException, revision: str | None = None) -> str | None:
    """'problem; remedy' for an error of huggingface_hub or of the connection to it, None for any other error.

    The whole chain of causes is searched, for transformers and huggingface_hub wrap what the server said. What the
    server said goes before what that led to ("not in the cache").
    """
    chain = list(_chain(error))
    for rule in _rules(revision):
        for link in chain:
            sentence = rule(link)
            if sentence is not None:
                return sentence
    return None


def _chain(error: BaseException) -> Iterator[BaseException]:
    link: BaseException | None = error
    seen: set[int] = set()
    while link is not None and id(link) not in seen:
        seen.add(id(link))
        yield link
        link = link.__cause__ or link.__context__


def _rules(revision: str | None) -> list[Callable[[BaseException], str | None]]:
    from huggingface_hub import errors

    named = revision or "main"

    def of(kind: str, sentence: str) -> Callable[[BaseException], str | None]:
        # A class that this release of huggingface_hub does not have raises nothing.
        classes: Any = getattr(errors, kind, ())
        return lambda error: sentence if isinstance(error, classes) else None

    return [
        of(
            "GatedRepoError",
            "is gated; accept its terms on its page at the hub, then log in with `hf auth login` or set HF_TOKEN",
        ),
        of("DisabledRepoError", "was disabled by the hub; give another checkpoint or a local copy"),
        of("RevisionNotFoundError", f"has no revision {named}; choose a branch, tag or commit that its page lists"),
        of("RepositoryNotFoundError", f"is not on the hub, or is private; check the id, or {_TOKEN}"),
        of("RemoteEntryNotFoundError", "lacks a file that a checkpoint needs; check the id, revision and subfolder"),
        of("HFValidationError", "is no hub id, which looks like owner/name; check it, or give a folder that exists"),
        _status,
        of(
            "OfflineModeIsEnabled",
            "is not in the local cache and HF_HUB_OFFLINE is set; unset it, or give a checkpoint's folder",
        ),
        _connection,
        of(
            "LocalEntryNotFoundError",
            f"is not in the local cache at revision {named}; connect to the network or give a checkpoint's folder",
        ),
        of("EntryNotFoundError", "lacks a file that a checkpoint needs; check the id, revision and subfolder"),
    ]


def _status(error: BaseException) -> str | None:
    from huggingface_hub.errors import HfHubHTTPError

    if not isinstance(error, HfHubHTTPError):
        return None
    status = int(error.response.status_code)
    if status == 401:
        return "cannot be read: the hub does not accept the token (401); set HF_TOKEN anew or unset it"
    if status == 403:
        return f"cannot be read with this token (403); {_TOKEN}"
    if status == 429:
        return "cannot be read: the hub asks to wait (429); try again in some minutes, or set HF_TOKEN"
    if status >= 500:
        return f"cannot be read: the hub fails ({status}); try again later, or give a checkpoint's folder"
    return f"cannot be read: the hub answers {status}; check the id and revision"


def _connection(error: BaseException) -> str | None:
    # httpx and its successor name the base of all failures to connect, send or receive alike.
    transport = any(kind.__name__ in ("TransportError", "NetworkError") for kind in type(error).__mro__)
    if transport or isinstance(error, ConnectionError | TimeoutError):
        return "cannot be fetched: the hub cannot be reached; connect to the network, or give a checkpoint's folder"
    return None
