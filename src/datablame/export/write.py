"""Write an export whole or not at all."""

import tempfile
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import NamedTuple

from datablame import __version__
from datablame.engine.files import build_atomically, write_atomic
from datablame.errors import RequestError, problem
from datablame.export.flat import write_csv, write_parquet
from datablame.export.hub import check_repository, upload
from datablame.export.inspect_logs import check_inspect, write_logs
from datablame.export.source import Source, opened
from datablame.report.wording import filled
from datablame.tables import SurfaceSample

KINDS = ("inspect", "parquet", "csv", "datasets", "hub")


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
            hidden = write(source, "datasets", folder)
            where, files = upload(folder, repo), _files(folder)
    else:
        if out is None or repo is not None:
            raise RequestError(problem("export", "folder needs", to=to))
        if to == "inspect":
            check_inspect()
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise RequestError(problem("export", "not empty", out=out))
        source, counts = opened(root, redact=redact), list[int]()
        folder = out.resolve()
        if folder.exists():
            folder.rmdir()
        build_atomically(folder, lambda part: counts.append(write(source, to, part)))
        where, files, [hidden] = str(out), _files(folder), counts
    return Exported(to, where, files, redact, hidden, source.left_out)


def write(source: Source, to: str, folder: Path) -> int:
    """Make the folder with the files of a format in it; how many texts are hidden.

    Tables come with a README that explains each column; it is the card of a dataset too.
    """
    import yaml

    folder.mkdir()
    if to == "inspect":
        return write_logs(source, folder)
    tables, hidden = write_csv(source, folder) if to == "csv" else write_parquet(source, folder)
    configs = [
        {
            "config_name": table.name,
            "data_files": f"{table.name}.parquet",
            **({"default": True} if table.row is SurfaceSample else {}),
        }
        for table in tables
    ]
    head = f"---\n{yaml.safe_dump({'configs': configs}, sort_keys=False)}---\n\n" if to == "datasets" else ""
    template = resources.files("datablame.export").joinpath("readme.md.j2").read_text(encoding="utf-8")
    text = filled(template, source=source, tables=tables, hidden=hidden, to=to, version=__version__)
    write_atomic(folder / "README.md", head + text)
    return hidden


def _files(folder: Path) -> int:
    return sum(path.is_file() for path in folder.rglob("*"))
