"""Write docs/reference/methods.md from the registries of methods, evidence and arms; `--check` only compares."""

import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from generated import main

from datablame.attribute.registry import METHODS, PROVIDERS, EvidenceProvider, Method
from datablame.patch.registry import ARMS, ArmKind

DOCS = Path(__file__).parents[1] / "docs"
PAGE = DOCS / "reference" / "methods.md"
HEAD = """# Methods and arms

What `attribute.methods` and `patch.arms` may name, besides what packages of your own add
([a method](../how-to/add-a-method.md), [an arm](../how-to/add-an-arm.md)). This page is written by `make docs` from the
registries.

- Formulas, and where each method fails: [what each method measures](../explanation/attribution.md).
- How good they are where the truth is known: [leaderboard](../../studies/leaderboard/README.md).

**Cost** is the dearest thing that is done to each document. Nothing, or its words are read; an encoder or the
checkpoint sees it (`forward`); it is differentiated (`backward`), twice or more for the curvature; that at several
checkpoints or after a training; or it is asked about (`judge`).

**Needs** is the evidence that a method turns into scores. Methods that need the same share it.
"""
CONTROLS = (
    "A method has to beat these: they look at words alone, or at no behaviour at all. None of them is a finding.\n"
)
EVIDENCE = "Who makes what methods need.\n"
ARM = """An arm is one data intervention, trained and measured. Every method that `patch.arms` names is an arm too: what
it flagged is removed. The role says what an arm is in the comparison.
"""


def page() -> str:
    """The whole page; of methods and arms only our own."""
    methods = [each for _, each in sorted(METHODS.all().items()) if _ours(each.score)]
    head = ("name", "compares", "cost", "needs", "source")
    parts = [HEAD, "## Methods\n", _table(head, (_method(each) for each in methods if not each.control))]
    parts += ["## Controls\n", CONTROLS, _table(head, (_method(each) for each in methods if each.control))]
    providers = [each for _, each in sorted(PROVIDERS.all().items()) if _ours(each.collect)]
    parts += ["## Evidence\n", EVIDENCE, _table(("provider", "makes"), map(_provider, providers))]
    arms = [each for each in ARMS.all().values() if each.documents is None or _ours(each.documents)]
    columns = ("name", "called", "role", "acts on", "at every K", "needs the planted truth")
    return "\n".join([*parts, "## Arms\n", ARM, _table(columns, map(_arm, arms))])


def _ours(made_by: object) -> bool:
    return getattr(made_by, "__module__", "").startswith("datablame.")


def _method(each: Method) -> tuple[str, ...]:
    return (f"`{each.name}`<br>{each.label}", each.description, each.cost, _types(each.needs), _linked(each.reference))


def _provider(each: EvidenceProvider) -> tuple[str, ...]:
    return (f"`{each.name}`", _types(each.yields))


def _arm(each: ArmKind) -> tuple[str, ...]:
    target = each.target.format(bottom_method="one method") or "nothing"
    drawn = ", drawn anew for each seed" if each.drawn else ""
    yes = {True: "yes", False: "no"}
    return (f"`{each.name}`", each.label, each.role, target + drawn, yes[each.depends_on_k], yes[each.needs_truth])


def _types(kinds: Iterable[type]) -> str:
    return ", ".join(f"`{kind.__name__}`" for kind in kinds)


def _linked(reference: str) -> str:
    """Papers and decisions as links."""
    text = re.sub(r"arXiv (\d{4}\.\d{4,5})", r"[arXiv \1](https://arxiv.org/abs/\1)", reference)
    return re.sub(r"docs/decisions/(\d{3})", lambda found: f"[decision {found[1]}](../{_decision(found[1])})", text)


def _decision(number: str) -> str:
    (path,) = (DOCS / "decisions").glob(f"{number}-*.md")
    return path.relative_to(DOCS).as_posix()


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines) + "\n"


if __name__ == "__main__":
    sys.exit(main(PAGE, page))
