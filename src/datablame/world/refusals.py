"""What the world refuses: one line with field, value and remedy, the hub's errors included."""

import re
from typing import Any

from datablame.config.schema import Data
from datablame.engine.files import packaged_yaml
from datablame.errors import RequestError, chain, problem
from datablame.models.source import hub_problem

_SHOWN_CHARACTERS = 200


def refused(name: str, /, **values: Any) -> RequestError:
    """The error whose sentence in problems.yaml has that name."""
    return RequestError(problem("world", name, **values))


def hub_sentence(error: BaseException, data: Data, *, local: bool = False) -> str:
    """The sentence of hub_problems.yaml for an error of the hub's libraries or its cause; others are quoted."""
    problems, errors = packaged_yaml("datablame.world", "hub_problems.yaml"), list(chain(error))
    at_hub = hub_problem(error, data.revision) or ""
    for phrase, replacement in problems["words"].items():
        at_hub = at_hub.replace(phrase, replacement)
    kinds = [kind.__name__ for each in errors for kind in type(each).__mro__]
    text = " ".join(" ".join([*kinds, *map(str, errors), at_hub and f"hub_problem: {at_hub}"]).split())
    listed = re.search(r"(?:Available(?: configs in the cache)?|available configs): \[(.*?)\]", text)
    subsets = listed[1].replace("'", "") if listed else "none"
    rules = (rule for rule in problems["rules"] if rule.get("local", local) == local and re.search(rule["signs"], text))
    values = {"data": data, "subsets": subsets, "at_hub": at_hub, "error": line_of(error), "cause": line_of(errors[-1])}
    return str(next(rules)["sentence"].format(**values))


def line_of(error: BaseException) -> str:
    """What an error says, in one line."""
    return (" ".join(str(error).split()) or type(error).__name__)[:_SHOWN_CHARACTERS]
