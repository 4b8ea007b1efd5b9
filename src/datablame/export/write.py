"""Write an export whole or not at all."""

import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from datablame import __version__
from datablame.engine.files import build_atomically, write_atomic
from datablame.errors import RequestError, problem
from datablame.export.flat import Table, write_csv, write_parquet
from datablame.export.hub import check_repository, upload
from datablame.export.inspect_logs import check_inspect, write_logs
from datablame.export.source import Source, opened
from datablame.report.wording import filled

_README = "readme.md.j2"


class Exported(NamedTuple):
    """What was written."""

    to: str
    where: str
    """A folder, or the address of a dataset."""
    files: int
    redacted: bool
    hidden: int
    """Texts that were hidden."""
    left_out: Mapping[str, str]
    """Phases that are not in it, with how far they are."""


def _inspect(source: Source, folder: Path) -> int:
    folder.mkdir()
    return write_logs(source, folder)


def _parquet(source: Source, folder: Path) -> int:
    return _described(source, folder, "parquet", write_parquet)


def _csv(source: Source, folder: Path) -> int:
    return _described(source, folder, "csv", write_csv)


def _datasets(source: Source, folder: Path) -> int:
    return _described(source, folder, "datasets", write_parquet)


_WRITERS: Mapping[str, Callable[[Source, Path], int]] = {
    "inspect": _inspect,
    "parquet": _parquet,
    "csv": _csv,
    "datasets": _datasets,
}
KINDS = (*_WRITERS, "hub")


def export(root: Path, to: str, *, out: Path | None = None, repo: str | None = None, redact: bool = True) -> Exported:
    """Write a run in the format `to`: into the folder `out`, or for `hub` into the private dataset `repo`.

    Raises:
        RequestError: the run is not far enough, `out` holds something, a package or a token is missing, or the
            repository may not be written to.
        PhaseError: the hub fails.
    """
    if to not in KINDS:
        raise RequestError(problem("export", "unknown kind", to=to, kinds=", ".join(KINDS)))
    if to == "hub":
        if out is not None or repo is None:
            raise RequestError(problem("export", "hub needs"))
        check_repository(repo)
        source = opened(root, redact=redact)
        with tempfile.TemporaryDirectory(prefix="datablame-") as temporary:
            folder = Path(temporary) / "dataset"
            hidden = _datasets(source, folder)
            where, files = upload(folder, repo), _files(folder)
    else:
        if out is None or repo is not None:
            raise RequestError(problem("export", "folder needs", to=to))
        if to == "inspect":
            check_inspect()
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise RequestError(problem("export", "not empty", out=out))
        source, counts = opened(root, redact=redact), list[int]()
        if out.exists():
            out.rmdir()
        build_atomically(out, lambda part: counts.append(_WRITERS[to](source, part)))
        where, files, [hidden] = str(out), _files(out), counts
    return Exported(to, where, files, redact, hidden, source.left_out)


def _files(folder: Path) -> int:
    return sum(path.is_file() for path in folder.rglob("*"))


def _described(
    source: Source, folder: Path, to: str, write: Callable[[Source, Path], tuple[Sequence[Table], int]]
) -> int:
    """Tables with a README that explains each column, which is the card of a dataset too."""
    import yaml

    folder.mkdir()
    tables, hidden = write(source, folder)
    configs: list[dict[str, Any]] = [
        {"config_name": table.name, "data_files": f"{table.name}.parquet"} for table in tables
    ]
    for config in configs:
        if config["config_name"] == "surface_samples":
            config["default"] = True
    said = {"source": source, "tables": tables, "hidden": hidden, "to": to, "version": __version__}
    template = Path(__file__).with_name(_README).read_text(encoding="utf-8")
    head = f"---\n{yaml.safe_dump({'configs': configs}, sort_keys=False)}---\n\n" if to == "datasets" else ""
    write_atomic(folder / "README.md", head + filled(template, **said))
    return hidden
