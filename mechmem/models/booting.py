"""Making a bridge from a Hugging Face model or folder, without touching what the caller owns."""

from __future__ import annotations

import contextlib
import copy
import inspect
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from mechmem.errors import ModelError, did_you_mean, listed
from mechmem.models.architectures import mend_rotation
from mechmem.models.complete_weights import check_whole, copy_from_file
from mechmem.models.faithful import Sample, check_faithful, sampled, small_of_its_kind
from mechmem.seeding import caller_state_kept

PASSED_ON = ("quantization_config",)
_PLACEMENT = ("device_map", "n_devices", "max_memory", "offload_folder")


def boot(where: str, tokenizer: Any, options: Mapping[str, Any], body: Any = None) -> Any:
    """A `TransformerBridge` in evaluation mode.

    Args:
        where: Folder or hub name; with ``body`` only its name.
        tokenizer: Stays as it is: TransformerLens gets a copy of its own.
        options: For ``TransformerBridge.boot_transformers``.
        body: A ``transformers`` model to rewire.

    Raises:
        ModelError: When TransformerLens cannot make it, or makes another model of it.
    """
    given: dict[str, Any] = {"hf_model": body}
    more = {key: options[key] for key in PASSED_ON if options.get(key) is not None}
    device = options.get("device") or ("cuda" if torch.cuda.is_available() else None)
    changes = options.get("hf_config_overrides")
    if not isinstance(changes, Mapping | None):
        raise ModelError(
            "hf_config_overrides must be a dictionary of fields of the configuration, got "
            f"{changes!r:.80}; for example {{'rms_norm_eps': 1e-5}}."
        )
    whole = _Whole(more, device, changes or {}, bool(placement(options)))
    if body is None:
        given = {"model_class": whole}
    options = {key: value for key, value in options.items() if key not in PASSED_ON}
    if body is not None and not getattr(body.config, "architectures", None):
        # A model made from a config does not name its class there, and is not recognized by it.
        body.config.architectures = [type(body).__name__]
    try:
        with _private(tokenizer) as private, kept_still():
            # Asked before the bridge is made, which wraps the model's own modules.
            sample = None if body is None else sampled(body)
            bridge = _bridge_class().boot_transformers(where, tokenizer=private, **given, **options)
    except ModelError:
        raise
    except Exception as error:  # neither library has errors of its own for a broken model
        raise ModelError(
            f"TransformerLens cannot load {where!r}: {first_words(error)}. Check that its files "
            "are whole, and that TransformerLens knows this architecture."
        ) from error
    mend_rotation(bridge)
    check_faithful(bridge.eval(), whole.sample if body is None else sample, where)
    small = small_of_its_kind(bridge)
    if small is not None:
        # For the comparison alone: it raises where float32 shows what half precision hides.
        boot(f"a small model of the kind of {where}", tokenizer, {}, small)
    return bridge


def boot_options() -> tuple[str, ...]:
    """Options that ``TransformerBridge.boot_transformers`` of the installed version knows."""
    known = inspect.signature(_bridge_class().boot_transformers).parameters
    ours = (
        "self", "model_name", "model_class", "hf_model", "tokenizer", "device", "dtype",
        "load_weights",
    )  # fmt: skip
    return (*(name for name in known if name not in ours), *PASSED_ON)


def refuse_options(
    given: Mapping[str, Any], what: str, meant: tuple[str, ...], *, known: tuple[str, ...] = ()
) -> None:
    """Refuse options that would have no effect on this kind of source.

    Args:
        given: Name to value; ``None`` is not given.
        what: The kind of source, for the message.
        meant: Options that do have an effect.
        known: Options that exist at all; default ``meant``.

    Raises:
        ModelError: For the first other option.
    """
    for name, value in given.items():
        if value is None or name in meant:
            continue
        if known and name not in known:
            raise ModelError(
                f"load_model has no option {name!r}; options are {listed(known, 30)}."
                f"{did_you_mean(name, known)}"
            )
        allowed = f"; options with an effect are {listed(meant)}" if meant else ""
        raise ModelError(f"{name}={value!r} would have no effect on {what}{allowed}. Leave it out.")


def placement(options: Mapping[str, Any]) -> list[str]:
    """Options that say where weights go; an in-memory model has been placed already."""
    return [name for name in _PLACEMENT if options.get(name) is not None]


def check_causal(config: Any, name: str) -> None:
    """Refuse encoders and encoder-decoders.

    Raises:
        ModelError: When the configuration is not that of a causal language model.
    """
    said = getattr(config, "architectures", None) or ()
    if not isinstance(said, (list, tuple)):
        raise ModelError(f"config.json of {name} says architectures={said!r:.80}, not a list.")
    classes = [str(item) for item in said]
    other = [item for item in classes if not item.endswith(("CausalLM", "LMHeadModel"))]
    unfit = ("ForMaskedLM", "ForConditionalGeneration", "Encoder", "ForSequenceClassification")
    if getattr(config, "is_encoder_decoder", False) or any(
        part in item for item in other for part in unfit
    ):
        raise ModelError(
            f"{name} is {' / '.join(classes) or 'an encoder-decoder'}, not a causal language "
            "model; mechmem reads prompts left to right and needs a ...ForCausalLM model."
        )


def check_quantized(config: Any, name: str) -> None:
    """Refuse packed weights of a kind that transformers does not know and would take for plain.

    Raises:
        ModelError: For another ``quant_method``.
    """
    from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING

    settings = getattr(config, "quantization_config", None)
    settings = settings if isinstance(settings, dict) else getattr(settings, "__dict__", {})
    method = settings.get("quant_method")
    # "bitsandbytes" is one of two there: transformers adds how many bits.
    known = [str(key).removesuffix("_4bit") for key in AUTO_QUANTIZATION_CONFIG_MAPPING]
    if method is not None and str(getattr(method, "value", method)) not in known:
        raise ModelError(
            f"config.json of {name} says quant_method={method!r:.40}, which transformers does not "
            f"know; it knows {listed(known, 30)}. Give the model's plain weights, or mend "
            "config.json."
        )


def tokenizer_at(where: str, options: Mapping[str, Any]) -> Any:
    """The tokenizer saved in a folder or named on the hub.

    Raises:
        ModelError: When there is none.
    """
    from transformers import AutoTokenizer

    wanted = {key: options[key] for key in ("revision", "trust_remote_code") if key in options}
    wanted.setdefault("trust_remote_code", False)  # None would ask on standard input
    try:
        found = AutoTokenizer.from_pretrained(where, **wanted)
        if len(found) <= len(set(found.all_special_ids)):
            # transformers 5 makes an empty one for a GPT-2 folder without tokenizer files.
            raise OSError("it has no tokenizer files")
        return found
    except Exception as error:  # whatever the tokenizer's files make the library raise
        if not Path(where).exists():
            folders = [path.name for path in Path(where).parent.glob("*/") if path.is_dir()]
            raise ModelError(
                f"There is no folder {where!r}, and the hub gave nothing by that name: "
                f"{first_words(error)}. Give the path of a folder with a model and its tokenizer, "
                f"or a name on the hub.{did_you_mean(Path(where).name, folders)}"
            ) from error
        raise ModelError(
            f"No tokenizer can be loaded from {where!r}: {first_words(error)}. Save one there "
            "with tokenizer.save_pretrained(folder), or pass tokenizer=."
        ) from error


def parse_dtype(dtype: torch.dtype | str | None) -> torch.dtype:
    """A floating dtype from its name; ``None`` means float32.

    Raises:
        ModelError: For anything else.
    """
    if dtype is None:
        return torch.float32
    found = dtype if isinstance(dtype, torch.dtype) else getattr(torch, str(dtype), None)
    if found not in (torch.float32, torch.bfloat16, torch.float16, torch.float64):
        raise ModelError(
            f"{dtype!r} is not a floating dtype that models compute in; use 'float32', 'bfloat16' "
            "or 'float16'."
        )
    return found


def parse_device(device: torch.device | str | None) -> torch.device | None:
    """A device from its name.

    Raises:
        ModelError: For a name that torch does not know.
    """
    if device is None:
        return None
    try:
        found = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise ModelError(
            f"{device!r} is not a device; use 'cpu', 'cuda', 'cuda:1' or 'mps'."
        ) from error
    if found.type != "cpu":
        module = getattr(torch, found.type, None)
        count = module.device_count() if module is not None and module.is_available() else 0
        if (found.index or 0) >= count:
            raise ModelError(
                f"device={str(device)!r}: this machine, or this build of PyTorch, has "
                f"{count or 'no'} {found.type} device{'s' * (count != 1)}. Use device='cpu', or "
                "install PyTorch for your accelerator."
            )
    return found


@contextlib.contextmanager
def kept_still() -> Iterator[None]:
    """The caller's random state and grad mode as they were; gradients on inside."""
    with caller_state_kept(), torch.enable_grad():
        yield


@contextlib.contextmanager
def _private(tokenizer: Any) -> Iterator[Any]:
    """A copy of the tokenizer on disk for TransformerLens, which reloads and changes it."""
    from transformers import AutoTokenizer

    with tempfile.TemporaryDirectory() as folder:
        try:
            tokenizer.save_pretrained(folder)
            private = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        except Exception:  # a class that AutoTokenizer does not know
            private = copy.deepcopy(tokenizer)
        yield private


class _Whole:
    """In place of a model class: the usual one loads, and every weight has to be there.

    Args:
        more: Options of ``from_pretrained`` that TransformerLens does not pass on.
        device: Where the model will be, if that is known.
        changes: What the configuration shall say instead.
        placed: Options say where every weight lies, some of them perhaps in their file.
    """

    def __init__(
        self, more: Mapping[str, Any], device: Any, changes: Mapping[str, Any], placed: bool
    ) -> None:
        self.more, self.changes, self.placed = more, changes, placed
        self.device = None if placed else device
        self.sample: Sample | None = None

    def from_pretrained(self, where: str, **options: Any) -> Any:
        from transformer_lens.model_bridge.sources import transformers as sources

        _check_changes(self.changes, options["config"], where)
        source: Any = sources
        architecture = source.determine_architecture_from_hf_config(options["config"])
        usual = source.get_hf_model_class_for_architecture(architecture)
        model, found = usual.from_pretrained(
            where, output_loading_info=True, **options, **self.more
        )
        # transformers fills what the files lack with random numbers, and only warns.
        check_whole(found, where, model)
        if not self.placed:
            copy_from_file(model)
        if self.device is not None and getattr(model, "hf_quantizer", None) is None:
            model.to(self.device)  # where TransformerLens puts it next: no slow pass elsewhere
        self.sample = sampled(model.eval(), usual=True)
        return model


def _check_changes(changes: Mapping[str, Any], config: Any, name: str) -> None:
    """Refuse changes of fields that a configuration has not, or has by another name: they would
    change nothing, or only what TransformerLens believes."""
    try:
        known = {key for key in vars(type(config)()) if not key.startswith("_")}
    except Exception:  # a class from the model's own code may need more
        return
    for key in changes:
        # TransformerLens would set it beside the field, where transformers never looks.
        own = getattr(type(config), "attribute_map", {}).get(key)
        if own is not None or key not in known:
            raise ModelError(
                f"hf_config_overrides names {key!r:.80}, which is no field in the configuration of "
                f"{name} ({type(config).__name__}). "
                + (f"There it is {own!r}." if own else f"Fields are {listed(sorted(known), 60)}.")
                + ("" if own else did_you_mean(str(key), known))
            )


def _bridge_class() -> Any:
    from transformer_lens.model_bridge import TransformerBridge

    return TransformerBridge


def first_words(error: BaseException, limit: int = 240) -> str:
    """The first line of an error; TransformerLens's list of all architectures is long."""
    if "trust_remote_code" in str(error):
        return "it brings code of its own, which is run only after trust_remote_code=True"
    lines = str(error).strip().split("\n") if str(error).strip() else [type(error).__name__]
    if lines[0].endswith(":"):  # what it is about stands below
        lines[0] = " ".join(" ".join(lines).split())
    text = lines[0].split(" Available architectures")[0]
    text = text.rstrip(".")
    return text if len(text) <= limit else text[: limit - 3] + "..."
