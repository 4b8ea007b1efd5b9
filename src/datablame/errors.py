"""Errors whose message is the whole story: where, which field, which value, what to do."""

import functools
from collections.abc import Iterator, Mapping


class DatablameError(Exception):
    """A failure with a one-line message for the person at the console and an exit code for the shell."""

    exit_code = 1

    def __str__(self) -> str:
        """The message; what a study or file put into it breaks no line."""
        return one_line(super().__str__())


class RequestError(DatablameError):
    """A mistake in the config or the data; nothing was computed wrongly, the request has to change."""

    exit_code = 2


class PhaseError(DatablameError):
    """A phase could not finish; what was finished before it stays usable."""


class BudgetError(DatablameError):
    """The money that a run may spend is used up; with more of it the run goes on where it stopped."""

    exit_code = 3


class Interrupted(DatablameError):
    """The person at the console stopped the run."""

    exit_code = 130


def one_line(text: str) -> str:
    """The text with a space for each character that cannot be printed."""
    return "".join(character if character.isprintable() else " " for character in text)


def chain(error: BaseException | None) -> Iterator[BaseException]:
    """An error and what it came from, nearest first; one that came from itself, by whatever way, ends it."""
    seen = set[int]()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def problem(package: str, name: str | int, /, **values: object) -> str:
    """A sentence of the problems.yaml beside a package's code: field, value, what is wrong, the remedy; by its name."""
    return str(_problems(package)[name]).format(**values)


@functools.cache
def _problems(package: str) -> Mapping[str | int, str]:
    from importlib import resources

    import yaml

    text = resources.files(f"datablame.{package}").joinpath("problems.yaml").read_text(encoding="utf-8")
    return dict(yaml.safe_load(text))
