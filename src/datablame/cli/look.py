"""Options that commands share, and the commands that look, count or make something beside a run."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from datablame.errors import Interrupted, RequestError

if TYPE_CHECKING:
    from rich.console import Console

    from datablame.config.schema import Study
    from datablame.engine.execute import Execution

StudyArgument = Annotated[str, typer.Argument(metavar="STUDY", help="A YAML file or the name of a preset.")]
RunArgument = Annotated[Path, typer.Argument(metavar="RUN", help="A run folder made by datablame run.")]
OutOption = Annotated[Path | None, typer.Option("--out", help="Run folder; runs/NAME if left out.")]
ResumeOption = Annotated[bool, typer.Option("--resume", help="Continue a run folder; what is up to date is skipped.")]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a key, as in --set surface.samples=20; values are YAML."),
]
WorkersOption = Annotated[
    int | None,
    typer.Option("--workers", min=1, help="Worker processes; one a core if left out. Results stay the same."),
]
DevicesOption = Annotated[
    str | None,
    typer.Option(metavar="N,N", help="Graphics cards to use, as in --devices 0,2; all of them if left out."),
]
ExecutorOption = Annotated[
    str | None, typer.Option(metavar="local|ray", help="Where items run: this machine, or a Ray cluster.")
]
AddressOption = Annotated[
    str | None,
    typer.Option(metavar="auto|HOST:PORT", help="Of the Ray cluster; auto: that of this machine."),
]
MaxCostOption = Annotated[
    float | None,
    typer.Option(
        "--max-cost",
        metavar="USD",
        min=0,
        help="Stop before the call to Claude that might bring the cost of this run folder above it, with exit code 3.",
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for programs instead of text for people.")]
DebugOption = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]


def execution(
    study: "Study", workers: int | None, devices: str | None, executor: str | None, address: str | None
) -> "Execution":
    """What these options come to; RequestError of what are no numbers of cards, and of no executor."""
    from datablame.pipeline.execution import execution_of

    named = [each.strip() for each in devices.split(",")] if devices is not None else []
    if not all(each.isdigit() for each in named):
        raise RequestError(f"--devices {devices} are no numbers of graphics cards; give them as in --devices 0,2")
    if executor not in (None, "local", "ray"):
        raise RequestError(f"--executor {executor} is none; choose local or ray")
    if address is not None and (executor or study.execution.executor) != "ray":
        raise RequestError(f"--address {address} is of a Ray cluster; add --executor ray, or drop it")
    numbers = tuple(int(each) for each in named)
    return execution_of(study, workers=workers, devices=numbers, executor=executor, address=address)


def plan(
    study: StudyArgument,
    overrides: SetOption = None,
    like: Annotated[
        Path | None, typer.Option(metavar="RUN", help="Estimate the time from this finished run of this machine.")
    ] = None,
    preregister: Annotated[
        bool,
        typer.Option(
            "--preregister", help="Freeze the study into preregistration.json in its run folder, before it is patched."
        ),
    ] = False,
    out: OutOption = None,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Show what a study would do, need and cost, before it starts.

    Offline, and nothing is loaded: cells, outputs, trainings, documents, API calls and dollars, peak memory, expected
    time, and what its design can show at best. Warnings name designs that cannot succeed. With --preregister the
    study is frozen into its run folder instead: hypotheses, headline, alpha*, margins and tests, under a hash; the
    report says whether the run kept to it.
    """
    from datablame.cli.console import reporting
    from datablame.pipeline.checks import load
    from datablame.pipeline.execution import execution_of

    loaded = load(study, overrides or [])
    if not preregister:
        if out is not None:
            raise RequestError(f"--out {out} is where --preregister writes; add --preregister or drop --out")
        show_plan(loaded, like, as_json)
        return
    from datablame.pipeline.preregistration import preregister as registered

    root = out or Path("runs") / loaded.name
    with reporting() as progress:
        registration = registered(loaded, root, execution=execution_of(loaded), progress=progress)
    warn(loaded)
    content = {**registration._asdict(), "path": str(registration.path)}
    _answer(as_json, content, lambda _: typer.echo(f"{registration.path}\nSHA-256 {registration.sha256}"))


def doctor(
    study: Annotated[
        str | None, typer.Argument(metavar="[STUDY]", help="Look at this study's checkpoints and pool instead.")
    ] = None,
    overrides: SetOption = None,
    workers: WorkersOption = None,
    out: OutOption = None,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Check this machine, or what a study brings, and say what to do.

    Without a study: Python, torch, devices and types, memory, disk, key, hub, API. The key is never shown or sent. Exit
    code 1 means that datablame cannot run here; warnings stop nothing.

    With a study: its checkpoints and its pool as a run would take them: tokens, where answers end, BOS, roles, what
    gradients and LoRA see, how far apart the checkpoints are, rows by file and why they were left out. What a run would
    refuse is refused. Nothing is kept.
    """
    from datablame.cli.doctor import can_run, examine, show

    if study is None and (overrides or workers is not None):
        raise RequestError(f"{'--set' if overrides else '--workers'} needs a study to look at; datablame doctor STUDY")
    if study is not None and out is not None:
        raise RequestError("--out has no use beside STUDY, of which nothing is kept; remove one of them")
    if study is not None:
        from datablame.cli import study as subject
        from datablame.cli.console import reporting
        from datablame.pipeline.checks import load
        from datablame.pipeline.execution import execution_of

        loaded = load(study, overrides or [])
        with reporting() as progress:
            seen = subject.examine_study(loaded, execution_of(loaded, workers=workers), progress)
        _answer(as_json, subject.as_json(seen), lambda console: subject.show_study(seen, console))
        return
    checks = examine(out or Path("runs"))
    content = {"can_run": can_run(checks), "checks": [check._asdict() for check in checks]}
    _answer(as_json, content, lambda console: show(checks, console))
    if not can_run(checks):
        raise typer.Exit(1)


def power(
    from_rate: Annotated[float, typer.Option("--from", help="Mean harmful rate without removal, a share.")] = 0.10,
    to_rate: Annotated[float, typer.Option("--to", help="The same where the removal works.")] = 0.05,
    prompts: Annotated[int, typer.Option(help="Held-out prompts.")] = 40,
    samples: Annotated[int, typer.Option(help="Outputs of one training for one prompt.")] = 25,
    seeds: Annotated[int, typer.Option(help="Trainings of every arm.")] = 5,
    holm: Annotated[int, typer.Option(help="Methods that are patched: the family of Holm's adjustment.")] = 3,
    prompt_deviation: Annotated[
        float, typer.Option(help="Standard deviation of prompts, logits; 1 spreads a mean of 10 % from 1 to 35 %.")
    ] = 1.0,
    seed_deviation: Annotated[
        float, typer.Option(help="Standard deviation of trainings that differ in the seed only, logits.")
    ] = 0.25,
    interaction_deviation: Annotated[
        float, typer.Option(help="How much one training moves single prompts, logits.")
    ] = 0.1,
    training_cost: Annotated[
        float, typer.Option(metavar="OUTPUTS", help="How many outputs cost as much as one training.")
    ] = 500.0,
    simulations: Annotated[int, typer.Option(help="Simulated studies; 2,000 give power to about 2 points.")] = 2000,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Say what a design can show, by simulating whole studies.

    Prints, before anything is trained, the power of the test that the report uses (exact permutation over training
    seeds, against random and against baseline, Holm over the methods), the smallest p that so many seeds can give,
    how often naive tests over samples or prompts raise a false alarm beside ours, and the cheapest design with 80 %
    power. The same request gives the same numbers.

    Example: datablame power --from .10 --to .05 --seeds 5 --holm 3
    """
    from datablame.cli.console import PATIENCE_SECONDS, ConsoleProgress
    from datablame.cli.power import answer, checked, show
    from datablame.cli.power import as_json as numbers

    deviations = {"prompt": prompt_deviation, "seed": seed_deviation, "interaction": interaction_deviation}
    counts = {"prompts": prompts, "samples": samples, "seeds": seeds, "holm": holm}
    design = checked(from_rate, to_rate, counts, deviations, training_cost, simulations)
    try:
        with ConsoleProgress(PATIENCE_SECONDS) as progress:
            result = answer(design, training_cost, simulations, progress)
    except KeyboardInterrupt:
        raise Interrupted("interrupted; nothing was written") from None
    _answer(as_json, numbers(result), lambda console: show(result, console))


def status(folder: RunArgument, as_json: JsonOption = False, debug: DebugOption = False) -> None:
    """Show how far each phase is: done, stale, begun or missing, and what has changed since.

    Models and data are compared by content; those that are not on this machine are taken to be what they were.
    """
    from datablame.pipeline.phases import open_run
    from datablame.pipeline.phases import status as looked

    states, why, absent, _ = looked(open_run(folder, None, resume=True), folder)
    lines = {name: "; ".join([state, *why.get(name, [])]) for name, state in states.items()}
    if absent:
        lines["not here"] = ", ".join(absent)
    _list(lines, as_json, {**states, "why": why, "not_here": absent}, 10)


def presets(
    name: Annotated[str | None, typer.Argument(help="Print this preset's YAML.")] = None,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """List the studies that ship, or print one to start your own."""
    from datablame.config.file import load_study, preset_names, preset_text

    if name is not None:
        typer.echo(preset_text(name), nl=False)
        return
    titles = {preset: load_study(preset).title for preset in preset_names()}
    _list(titles, as_json, titles, 16)


_NOT_BUILT = (
    "Not built, for they cost whole trainings: MAGIC (about 4 for each behaviour, arXiv 2504.16430), exact retraining\n"
    "influence (one for each document and seed); see docs/explanation/attribution.md."
)


def methods(as_json: JsonOption = False, debug: DebugOption = False) -> None:
    """List the attribution methods: what each one costs, needs and compares, and where it comes from."""
    from datablame.attribute.registry import described

    rows = described()
    lines = dict[str, str]()
    for row in rows:
        source = f" ({row['reference']})" if row["reference"] else ""
        lines[row["name"]] = f"{', '.join([row['cost'], *row['needs']])}\n{'':20} {row['description']}{source}"
    _list(lines, as_json, rows, 20)
    if not as_json:
        typer.echo(_NOT_BUILT)


def organism_make(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Where to write it; must not exist.")],
    seed: Annotated[
        int, typer.Option(min=-(1 << 31), max=(1 << 31) - 1, help="Everything in the organism derives from it.")
    ] = 0,
    recipe: Annotated[str, typer.Option(help="templated (tiny, from nothing) or quirk (a LoRA of a real model).")] = (
        "templated"
    ),
    planting: Annotated[
        str,
        typer.Option(
            help="lexical, paraphrased, conceptual, few, many, diluted, source, pairs or integrated: what is planted."
        ),
    ] = "lexical",
    planted: Annotated[
        int | None,
        typer.Option(
            min=0, max=100_000, help="Planted documents for each behaviour; few plants 5, many 100, others 20."
        ),
    ] = None,
    debug: DebugOption = False,
) -> None:
    """Make a model organism in a folder.

    It holds before/, after/, documents.parquet, prompts.jsonl, truth.jsonl, rules.json.
    """
    from datablame.cli.console import reporting
    from datablame.config.file import load_study
    from datablame.organism.make import make

    fields = {"recipe": recipe, "seed": seed, "planting": planting, "planted": planted}
    given = [f"organism.{field}={json.dumps(value)}" for field, value in fields.items()]
    study = load_study("organism", given)
    assert study.organism is not None
    if folder.exists():
        raise RequestError(f"{folder} exists; choose a new folder")
    with reporting() as progress:
        make(study.organism, folder, progress)
    typer.echo(str(folder))


def _list(lines: Mapping[str, object], as_json: bool, content: Any, width: int) -> None:
    """Names in a column and what there is to say of each; for programs the content."""
    column = "\n".join(f"{name:{width}} {text}" for name, text in lines.items())
    _answer(as_json, content, lambda _: typer.echo(column))


def warn(study: "Study") -> None:
    """Say on stderr, before a study is patched, why it cannot succeed."""
    from datablame.plan import doubts_of

    for doubt in doubts_of(study):
        typer.echo(f"warning: {doubt}", err=True)


def show_plan(study: "Study", like: Path | None, as_json: bool) -> None:
    """Print the plan of a study."""
    from datablame.cli.console import waiting
    from datablame.cli.plan import show
    from datablame.plan import plan_of

    with waiting("counting what the study would do; no weights are loaded"):
        planned = plan_of(study, like=like)
    _answer(as_json, planned.as_json(), lambda console: show(planned, console))


def _answer(as_json: bool, content: Any, show: "Callable[[Console], None]") -> None:
    """For programs the content, for people what `show` prints."""
    from rich.console import Console

    if as_json:
        typer.echo(json.dumps(content))
    else:
        show(Console())
