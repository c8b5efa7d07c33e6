"""GGUF files: quantized weights of llama.cpp, dequantized into a plain `transformers` model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from mechmem.errors import ArtifactError, ModelError
from mechmem.models.booting import first_words, kept_still
from mechmem.models.complete_weights import check_whole
from mechmem.models.gguf_counts import check_counts
from mechmem.models.sizes import check_held, check_size


def is_gguf(file: Path) -> bool:
    """Whether a file is named, or begins, as GGUF files do."""
    if not file.is_file():
        return False
    with file.open("rb") as opened:
        return file.suffix == ".gguf" or opened.read(4) == b"GGUF"


def open_gguf(file: Path, dtype: torch.dtype, tokenizer: Any = None) -> tuple[Any, Any]:
    """Model and tokenizer of a GGUF file, of any architecture that `transformers` reads.

    Args:
        file: The file; of a model in several parts, there is no way to read it.
        dtype: Of the dequantized weights. What quantization took from them stays lost.
        tokenizer: Used instead of the file's own.

    Returns:
        A model without a trace of its quantization, so that it can be saved as any other, and the
        tokenizer, its chat template included.

    Raises:
        ModelError: When the gguf package is missing, the file is broken or cut off, or its
            architecture is not one that `transformers` reads.
    """
    try:
        held = check_counts(file)
    except ArtifactError as error:
        raise ModelError(str(error)) from error
    try:
        import gguf  # noqa: F401
    except ImportError as error:
        raise ModelError(
            f"{file} needs the gguf package: pip install 'mechmem[exchange]'."
        ) from error
    import transformers

    where: dict[str, Any] = {"gguf_file": file.name, "trust_remote_code": False}
    home = str(file.absolute().parent)
    try:
        with kept_still():
            if tokenizer is None:
                tokenizer = transformers.AutoTokenizer.from_pretrained(home, **where)
            config = transformers.AutoConfig.from_pretrained(home, **where)
            check_size(config, str(file))
            check_held(config, held, str(file))
            causal: Any = transformers.AutoModelForCausalLM
            body, found = causal.from_pretrained(
                home, config=config, dtype=dtype, output_loading_info=True, **where, **_dequantize()
            )
    except ModelError:
        raise
    except Exception as error:  # the reader has no error of its own for a broken file
        raise ModelError(
            f"{str(file)!r} cannot be read as a GGUF model: {first_words(error)}. It may be cut "
            "off, one of several parts, or of an architecture that transformers does not read from "
            "GGUF; use the model's folder or hub name."
        ) from error
    check_whole(found, str(file), body)
    # The record would say that the weights are quantized still, and forbid to save them.
    if hasattr(body.config, "quantization_config"):
        del body.config.quantization_config
    for name in ("hf_quantizer", "quantization_method"):
        body.__dict__.pop(name, None)
    return body, tokenizer


def _dequantize() -> dict[str, Any]:
    """Newer versions may keep weights packed where a kernel for them is installed."""
    import transformers

    settings = getattr(transformers, "GgufConfig", None)
    return {} if settings is None else {"quantization_config": settings(dequantize=True)}
