"""Every error class of the hub's libraries that a person can meet, as the sentence that the person reads."""

import builtins
from collections.abc import Callable

import pytest
from datasets.data_files import EmptyDatasetError
from datasets.exceptions import DataFilesNotFoundError, DatasetGenerationError, DatasetNotFoundError
from huggingface_hub import errors as hub

from datablame.config.schema import Data
from datablame.world.refusals import hub_sentence

DATA = Data(path="org/pool", revision="v1", subset="poems")
CLIENT_ERROR = hub.HfHubHTTPError.__bases__[0]


def answered(kind: type[hub.HfHubHTTPError], status: int) -> hub.HfHubHTTPError:
    """The error as the hub's library raises it for an answer of this status."""
    import importlib

    client = importlib.import_module(CLIENT_ERROR.__module__.split(".")[0])
    request = client.Request("GET", "http://127.0.0.1/api/datasets/org/pool")
    return kind("a message\nof two lines", response=client.Response(status, request=request))


def connect_error() -> Exception:
    import importlib

    client = importlib.import_module(CLIENT_ERROR.__module__.split(".")[0])
    error: Exception = client.ConnectError("[Errno -2] Name or service not known")
    return error


def caused(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


CASES: dict[str, tuple[Callable[[], Exception], str, str]] = {
    "gated": (lambda: answered(hub.GatedRepoError, 403), "data.path = org/pool is gated", "set HF_TOKEN"),
    "gated, wrapped": (
        lambda: caused(DatasetNotFoundError("x"), answered(hub.GatedRepoError, 401)),
        "data.path = org/pool is gated",
        "ask for access at https://huggingface.co/datasets/org/pool",
    ),
    "revision": (
        lambda: caused(DatasetNotFoundError("x"), answered(hub.RevisionNotFoundError, 404)),
        "data.revision = v1 is no branch, tag or commit of org/pool",
        "correct it",
    ),
    "repository": (
        lambda: answered(hub.RepositoryNotFoundError, 401),
        "data.path = org/pool is neither a file or folder here nor a public dataset on the hub",
        "log in with `hf auth login`",
    ),
    "repository, as datasets says it": (
        lambda: DatasetNotFoundError("Dataset 'org/pool' doesn't exist on the Hub or cannot be accessed."),
        "data.path = org/pool is neither",
        "correct the name",
    ),
    "no repository's name": (
        lambda: hub.HFValidationError("bad"),
        "data.path = org/pool is neither",
        "correct the name",
    ),
    "disabled": (lambda: answered(hub.DisabledRepoError, 403), "was disabled by the hub", "give another dataset"),
    "token": (lambda: answered(hub.HfHubHTTPError, 401), "the hub does not accept the token (401)", "HF_TOKEN"),
    "too many": (lambda: answered(hub.HfHubHTTPError, 429), "the hub asks to wait (429)", "try again"),
    "down": (lambda: answered(hub.HfHubHTTPError, 503), "the hub fails (503)", "try again later"),
    "offline": (lambda: hub.OfflineModeIsEnabled("x"), "HF_HUB_OFFLINE is set", "unset it"),
    "no network": (
        connect_error,
        "the hub cannot be reached",
        "give a local file or folder",
    ),
    "no network, wrapped": (
        lambda: caused(hub.LocalEntryNotFoundError("x"), connect_error()),
        "the hub cannot be reached",
        "HF_HUB_OFFLINE=1",
    ),
    "connection": (lambda: builtins.ConnectionError("reset"), "the hub cannot be reached", "connect to the network"),
    "timeout": (lambda: TimeoutError("timed out"), "the hub cannot be reached", "connect to the network"),
    "empty": (lambda: EmptyDatasetError("x"), "data.path = org/pool holds no files", "name another dataset"),
    "no data files": (
        lambda: DataFilesNotFoundError("x"),
        "data.path = org/pool holds no files",
        "name another dataset",
    ),
    "subset": (
        lambda: ValueError("BuilderConfig 'poems' not found. Available: ['a', 'b']"),
        "data.subset = poems is no subset of org/pool; there is a, b",
        "",
    ),
    "subset in the cache": (
        lambda: ValueError(
            "Couldn't find cache for org/pool for config 'poems'\nAvailable configs in the cache: ['a']"
        ),
        "data.subset = poems is no subset of org/pool; there is a",
        "",
    ),
    "no subset named": (
        lambda: ValueError("Config name is missing.\nPlease pick one among the available configs: ['a', 'b']\nExample"),
        "data.subset is missing: org/pool has a, b",
        "name one",
    ),
    "disk": (
        lambda: OSError("Not enough disk space. Needed: 9 GB"),
        "does not fit on this disk",
        "data.streaming: true",
    ),
    "schema": (
        lambda: caused(DatasetGenerationError("An error occurred"), TypeError("Couldn't cast array")),
        "its files do not fit one table (Couldn't cast array)",
        "name the folder",
    ),
    "unknown": (
        lambda: RuntimeError("odd\nthing"),
        "data.path = org/pool cannot be read (odd thing)",
        "check the data",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_an_error_becomes_one_line_with_field_value_and_remedy(case: str) -> None:
    make, claim, remedy = CASES[case]
    sentence = hub_sentence(make(), DATA)
    assert "\n" not in sentence
    assert "checkpoint" not in sentence
    assert claim in sentence, sentence
    assert remedy in sentence, sentence


def test_a_folder_without_data_is_told_as_a_folder() -> None:
    sentence = hub_sentence(EmptyDatasetError("x"), DATA, local=True)
    assert sentence == (
        "data.path = org/pool is a folder without .parquet or .jsonl files; name another folder or a file"
    )


def test_an_error_met_while_another_was_handled_is_told_by_the_first_cause() -> None:
    """`datasets` looks into its cache after the hub refused, and raises what it found there 'from None'."""
    error = FileNotFoundError("not cached")
    error.__context__, error.__suppress_context__ = answered(hub.GatedRepoError, 403), True
    assert "is gated" in hub_sentence(error, DATA)
