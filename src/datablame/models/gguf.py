"""GGUF files: dequantised by transformers, once, and kept as an ordinary checkpoint."""

import importlib.util
import io
import os
import shutil
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

from datablame.engine.files import file_lock, hash_file
from datablame.errors import RequestError


def cache_folder() -> Path:
    """$DATABLAME_CACHE, or ~/.cache/datablame."""
    return Path(os.environ.get("DATABLAME_CACHE") or Path.home() / ".cache" / "datablame")


def converted(file: Path) -> Path:
    """The folder with a GGUF file's checkpoint; made by the first process that asks, while others wait.

    Raises RequestError where the file cannot be read as a model, or the cache cannot be written.
    """
    folder = cache_folder() / f"gguf-{hash_file(file)[:16]}"
    if not folder.is_dir():
        with file_lock(folder):
            if not folder.is_dir():
                part = folder.with_name(folder.name + ".part")
                shutil.rmtree(part, ignore_errors=True)
                convert(file, part)
                part.replace(folder)
    return folder


def convert(file: Path, folder: Path) -> None:
    """Write a GGUF file's model, dequantised to float32, and its tokenizer as `save_pretrained` does.

    transformers marks a model that it read from GGUF as quantised and then refuses to save it; the marks are removed.
    Raises RequestError where the gguf package is missing, or the file is no model that transformers knows.
    """
    if importlib.util.find_spec("gguf") is None:
        raise RequestError(f"{file} needs the package gguf to be read; pip install gguf")
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    source: dict[str, Any] = {"pretrained_model_name_or_path": str(file.parent), "gguf_file": file.name}
    try:
        # Its own progress bar listens to no setting of transformers.
        with redirect_stderr(io.StringIO()):
            # An architecture that transformers does not know is found here, before any tensor is read.
            AutoConfig.from_pretrained(**source)
            tokenizer = AutoTokenizer.from_pretrained(**source)
            model = AutoModelForCausalLM.from_pretrained(**source, dtype="float32")
    except (OSError, ValueError, KeyError, IndexError, TypeError, RuntimeError, NotImplementedError) as error:
        reason = " ".join(str(error).split())[:200]
        raise RequestError(
            f"{file} cannot be read as a GGUF model ({reason}); give another file or a hub id"
        ) from error
    model.hf_quantizer = None
    for mark in ("is_quantized", "quantization_method"):
        if hasattr(model, mark):
            delattr(model, mark)
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.float().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
