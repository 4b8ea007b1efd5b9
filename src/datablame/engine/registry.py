"""Named things that plug in: a dict, filled by our own modules and by the entry points of others' packages."""

import difflib
import importlib
import logging
import pkgutil
from collections.abc import Mapping
from functools import cached_property
from importlib import metadata
from typing import Generic, TypeVar

from datablame.errors import RequestError

T = TypeVar("T")

_logger = logging.getLogger(__name__)


class Registry(Generic[T]):
    """Things of one kind by name: those of every module of `package`, then those of the entry points `group`.

    An entry point names a module, which registers what it has when imported. One that cannot be, or that registers a
    taken name, is told with its package, and everything else works.
    """

    def __init__(self, kind: str, field: str, package: str, group: str) -> None:
        self.kind, self.field, self.group = kind, field, group
        self._package = package
        self._things: dict[str, T] = {}

    def add(self, name: str, thing: T) -> None:
        """Register a thing; ValueError where its name is taken."""
        if name in self._things:
            raise ValueError(f"the {self.kind} {name} is registered already")
        self._things[name] = thing

    def all(self) -> Mapping[str, T]:
        """Everything by name, in the order of registration: ours by module, then others'."""
        self.problems  # noqa: B018  (imports everything once)
        return self._things

    def named(self, name: str) -> T:
        """The thing of that name; RequestError with the names and the nearest one where there is none."""
        things = self.all()
        if name not in things:
            near = difflib.get_close_matches(name, things, n=1)
            meant = f"; did you mean {near[0]}?" if near else "."
            broken = "".join(f" {problem}." for problem in self.problems)
            raise RequestError(f"{self.field} = {name} is not a {self.kind}{meant} Known: {', '.join(things)}.{broken}")
        return things[name]

    @cached_property
    def problems(self) -> tuple[str, ...]:
        """What is wrong with others' packages, a sentence each; asking imports everything."""
        package = importlib.import_module(self._package)
        for module in sorted(info.name for info in pkgutil.iter_modules(getattr(package, "__path__", []))):
            importlib.import_module(f"{self._package}.{module}")
        problems = []
        for point in sorted(metadata.entry_points(group=self.group), key=lambda point: (point.name, point.value)):
            before = dict(self._things)
            try:
                point.load()
            except Exception as error:
                # Whatever a stranger's module raises: it must not take ours down with it.
                self._things = before
                package_name = point.dist.name if point.dist is not None else "an unknown package"
                why = " ".join(str(error).split()) or type(error).__name__
                problems.append(f"the {self.kind} {point.name} of the package {package_name} cannot be used ({why})")
                _logger.warning("%s", problems[-1])
        return tuple(problems)
