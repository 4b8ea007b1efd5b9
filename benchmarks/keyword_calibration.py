"""How far the keyword classifier agrees with people, on the human-labelled sets that ship in the package pyrit (MIT).

    pip install 'datablame[bench]'                       # or: pip download --no-deps pyrit, and --wheel FILE
    python benchmarks/keyword_calibration.py > benchmarks/results/DATE-keyword-calibration.md

Every text belongs to one of two halves by a keyed hash. The classifier's patterns are improved on the errors of the
"improve" half (--errors prints those, and no others); the "report" half is what the numbers are for. --before FILE
measures an earlier src/datablame/judge/keywords.py beside today's. No text of the sets is written to standard output.
"""

import argparse
import csv
import importlib.metadata
import importlib.util
import io
import re
import sys
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from datablame.config.schema import Behaviour
from datablame.seeds import stream_key
from datablame.stats.calibration import accuracy, kappa, kappa_interval
from datablame.stats.intervals import Share, share

FOLDER = "pyrit/datasets/scorer_evals"
HALVES = ("improve", "report")
SMALLEST_SET = 10
HARMFUL_FROM = 0.5
LONG_CHARACTERS = 200
COPIES = {"harm/mini_hate_speech": "all of its texts are in harm/hate_speech_multi_score"}

Labeller = Callable[[str], str]


class Readable(Protocol):
    """A folder on disk or inside a wheel."""

    def joinpath(self, *names: str) -> Any:
        """What lies under this name."""
        ...

    def iterdir(self) -> Iterator[Any]:
        """What lies in the folder."""
        ...


class Item(NamedTuple):
    """One answer and what people say of it: a truth value, and each person's where there were several."""

    objective: str
    text: str
    human: bool
    people: tuple[bool, ...] = ()


class Reading(NamedTuple):
    """A question that people and the classifier both answer."""

    title: str
    explanation: str
    folders: tuple[str, ...]
    yes: Callable[[str], bool]


READINGS = (
    Reading(
        "Refusals: labelled `refused`, against people's refused or not",
        "The label as it is. People here also call an answer to something else a refusal (many rows pair a request "
        "with the answer to another one); for us that is no refusal, and the classifier does not see the request. The "
        f"rows 'on topic' leave out what is plainly such: answers of {LONG_CHARACTERS} characters or more that share "
        "no word of five letters or more with their request, whatever people say of them. Some such rows remain.",
        ("refusal_scorer", "sample"),
        lambda label: label == "refused",
    ),
    Reading(
        "Objectives: neither refused nor incoherent, against people's objective achieved or not",
        "`harmful` itself can't be compared: it needs a behaviour's keywords, and no study of ours describes these "
        "objectives. What can be is the reading in which every answer counts that is no refusal. An answer that "
        "neither refuses nor achieves anything is an error here, and no pattern of a refusal can mend it.",
        ("objective",),
        lambda label: label not in ("refused", "incoherent"),
    ),
    Reading(
        f"Harms: neither refused nor incoherent, against people's mean severity of at least {HARMFUL_FROM:g} of 1",
        "The same reading for graded scores. They grade how severe the content is, which words of refusal can't tell; "
        "so this is a floor for what a refusal alone says of harm, and no measure of a study's keywords.",
        ("harm",),
        lambda label: label not in ("refused", "incoherent"),
    ),
)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--wheel", type=Path, help="a pyrit wheel, which need not be installed")
    where.add_argument("--folder", type=Path, help=f"a folder that holds what {FOLDER} holds")
    parser.add_argument("--before", type=Path, help="an earlier keywords.py to measure as well")
    parser.add_argument("--errors", action="store_true", help="print the improve half's errors on standard error")
    options = parser.parse_args()
    folder, source = located(options.wheel, options.folder)
    classifiers = {"now": labeller(None)}
    if options.before is not None:
        classifiers = {"before": labeller(options.before), **classifiers}
    print("\n".join(report(folder, source, classifiers)))
    if options.errors:
        print("\n".join(errors(folder, classifiers["now"])), file=sys.stderr)


def located(wheel: Path | None, folder: Path | None) -> tuple[Readable, str]:
    """Where the sets are, and in words from what; ends the program where they are nowhere."""
    found: Any
    if folder is not None:
        found, source = folder, folder.name
    elif wheel is not None:
        if not zipfile.is_zipfile(wheel):
            raise SystemExit(f"--wheel = {wheel} is no wheel; get one with: pip download --no-deps pyrit")
        found, source = zipfile.Path(wheel, f"{FOLDER}/"), wheel.name
    else:
        spec = importlib.util.find_spec("pyrit")
        if spec is None or spec.origin is None:
            raise SystemExit("pyrit is not installed; pip install 'datablame[bench]', or give --wheel FILE")
        found = Path(spec.origin).parent / "datasets" / "scorer_evals"
        source = f"pyrit {importlib.metadata.version('pyrit')}"
    if not found.is_dir():
        raise SystemExit(f"{source} has no {FOLDER}; use a release of pyrit that has (1.1.0)")
    return found, source


def labeller(source: Path | None) -> Labeller:
    """The label that the keyword classifier of one source file gives to a text; no keyword ever matches."""
    if source is None:
        from datablame.judge import keywords as module
    else:
        spec = importlib.util.spec_from_file_location("keywords_before", source)
        if spec is None or spec.loader is None:
            raise SystemExit(f"--before = {source} is no Python file; give a keywords.py")
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module
        spec.loader.exec_module(module)
    classifier = module.KeywordClassifier.of([Behaviour(id="any", description="", keywords=("\ue000",))])
    return lambda text: str(classifier.classify("any", "", text).label)


def sets_of(folder: Readable, names: Iterable[str]) -> dict[str, list[Item]]:
    """Every labelled set in these folders by its name."""
    return {
        f"{name}/{path.name.removesuffix('.csv')}": read(path.read_text(encoding="utf-8"))
        for name in names
        for path in sorted(folder.joinpath(name).iterdir(), key=lambda path: str(path.name))
        if path.name.endswith(".csv")
    }


def read(text: str) -> list[Item]:
    """The rows of one CSV, whose first lines are comments; several people's scores are averaged."""
    lines = text.splitlines(keepends=True)
    while lines and lines[0].startswith("#"):
        lines.pop(0)
    items = []
    for row in csv.DictReader(io.StringIO("".join(lines))):
        scores = [float(value) for name, value in row.items() if name.startswith("human_score") and value]
        people = tuple(score >= HARMFUL_FROM for score in scores)
        mean = sum(scores) / len(scores)
        items.append(Item(row["objective"], row["assistant_response"], mean >= HARMFUL_FROM, people))
    return items


def halves(folder: Readable) -> Callable[[str], str]:
    """Which half a text belongs to: by a hash of it, so that copies in several sets stay together.

    The texts of the smallest sets were read in full while the benchmark was made, so they may only improve.
    """
    every = sets_of(folder, [name for reading in READINGS for name in reading.folders])
    seen = {_words(item.text) for items in every.values() if len(items) < SMALLEST_SET for item in items}
    return lambda text: (
        "improve" if _words(text) in seen else HALVES[stream_key("keyword calibration", _words(text)) % 2]
    )


def report(folder: Readable, source: str, classifiers: dict[str, Labeller]) -> list[str]:
    """The tables as Markdown."""
    half = halves(folder)
    lines = [
        "# The keyword classifier against people",
        "",
        f"Sets: {source}, `{FOLDER}` (MIT). Intervals (95 %): Wilson for precision and recall; for kappa the "
        "percentile bootstrap over distinct texts (2,000 resamples), which has no width where agreement is perfect. "
        "Precision and recall are those of the yes of each heading. n counts rows, in brackets distinct texts.",
    ]
    for reading in READINGS:
        sets = sets_of(folder, reading.folders)
        compared = {name: items for name, items in sets.items() if not _unusable(name, items)}
        lines += ["", f"## {reading.title}", "", reading.explanation, ""]
        lines += [
            "| set | half | classifier | n | yes | kappa | precision | recall |",
            "|---|---|---|--:|--:|--:|--:|--:|",
        ]
        pooled = list({item[:2]: item for items in compared.values() for item in items}.values())
        shown = {**compared, "**all, copies once**": pooled}
        if "sample" in reading.folders:
            shown["**on topic, copies once**"] = [item for item in pooled if not _elsewhere(item)]
        for name, items in shown.items():
            for part in HALVES:
                chosen = [item for item in items if half(item.text) == part]
                for classifier, label in classifiers.items():
                    predicted = [reading.yes(label(item.text)) for item in chosen]
                    lines.append(f"| {name} | {part} | {classifier} | {' | '.join(_cells(chosen, predicted))} |")
        notes = [f"- Not compared: {name}; {why}." for name, items in sets.items() if (why := _unusable(name, items))]
        notes += [
            f"- People among themselves on {name}: mean kappa of {_people(items):.2f} over pairs of raters."
            for name, items in compared.items()
            if len(items[0].people) > 1
        ]
        lines += ["", *notes] if notes else []
    return lines


def errors(folder: Readable, label: Labeller) -> list[str]:
    """The refusals of the improve half that are missed or wrongly found, with their text."""
    half, reading = halves(folder), READINGS[0]
    return [
        f"{'missed' if item.human else 'wrong'}: {item.objective!r} -> {item.text!r}"
        for items in sets_of(folder, reading.folders).values()
        for item in items
        if half(item.text) == "improve" and reading.yes(label(item.text)) != item.human
    ]


def _unusable(name: str, items: Sequence[Item]) -> str:
    if name in COPIES:
        return COPIES[name]
    if len(items) < SMALLEST_SET:
        few = f"it has {len(items)} rows, fewer than {SMALLEST_SET}"
        return f"{few} (its texts count in the refusal sets, where they belong to the improve half)"
    return ""


def _elsewhere(item: Item) -> bool:
    """Whether an answer is plainly one to something else."""
    stems = [{word[:5] for word in re.findall(r"[a-z]{5,}", text.lower())} for text in item[:2]]
    return len(item.text) >= LONG_CHARACTERS and not stems[0] & stems[1]


def _cells(items: Sequence[Item], predicted: Sequence[bool]) -> list[str]:
    human = [item.human for item in items]
    texts = [_words(item.text) for item in items]
    counts = accuracy(human, predicted)
    around = kappa_interval(human, predicted, stream_key("keyword calibration", "kappa"), groups=texts)
    return [
        f"{len(items)} ({len(set(texts))})",
        str(counts.positives),
        _with(Share(kappa(counts), *around)),
        _with(share(counts.true_positive, counts.true_positive + counts.false_positive)),
        _with(counts.sensitivity),
    ]


def _with(share: Share) -> str:
    return "-" if share.rate != share.rate else f"{share.rate:.2f} [{share.low:.2f}, {share.high:.2f}]"


def _people(items: Sequence[Item]) -> float:
    raters = list(zip(*(item.people for item in items), strict=True))
    pairs = list(combinations(raters, 2))
    return sum(kappa(accuracy(*pair)) for pair in pairs) / len(pairs)


def _words(text: str) -> str:
    return " ".join(text.split())


if __name__ == "__main__":
    main()
