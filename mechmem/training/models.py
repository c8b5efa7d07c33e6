"""The model that a training run starts from, and the folder it ends in."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import torch

from mechmem.errors import ModelError, TaskError
from mechmem.models.complete_weights import check_whole, copy_from_file
from mechmem.models.folders import check_folder, check_written
from mechmem.models.quiet import quiet_transformers
from mechmem.models.shipped import shipped_folder
from mechmem.seeding import keyed_seed
from mechmem.tasks.paper1.official import OfficialTask
from mechmem.training.settings import TrainingSettings
from mechmem.training.tokenizers import build_tokenizer
from mechmem.writing import written_to

SPLITS = {"colors": "words"}
SAMPLE = 500


def start(
    model: Any, tokenizer: Any, task: OfficialTask[Any], settings: TrainingSettings
) -> tuple[Any, Any]:
    """Model and tokenizer to train.

    Args:
        model: ``"scratch"``, a `transformers` configuration (first weights drawn by the seed), a
            folder, a hub name or one of ours (``"real/smollm2-135m"``), or a `transformers` model,
            which is copied.
        tokenizer: A tokenizer, or how to cut texts into pieces (`build_tokenizer`); left out, it is
            the model's own, or one built from the task's texts.
        task: Gives those texts.
        settings: Names method and seed.

    Raises:
        ModelError: When the model cannot be found.
        TaskError: When the tokenizer is missing.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer, PretrainedConfig

    if model == "scratch" or isinstance(model, PretrainedConfig):
        if tokenizer is None or isinstance(tokenizer, str):
            items = task.training(SAMPLE, settings.seed)
            split = tokenizer or SPLITS.get(task.name, "characters")
            tokenizer = build_tokenizer([item.text for item in items], split)
            longest = max(len(tokenizer(item.text)["input_ids"]) for item in items)
            tokenizer.model_max_length = longest + longest // 8 + 2
        return fresh_model(model, tokenizer, settings.seed), tokenizer
    if isinstance(model, torch.nn.Module):
        if tokenizer is None or isinstance(tokenizer, str):
            raise TaskError("An in-memory model needs its tokenizer: train(..., tokenizer=...).")
        return copy.deepcopy(model), tokenizer
    place = str(shipped_folder(str(model)) or model)
    if Path(place).is_dir():
        check_folder(Path(place))
        check_written(Path(place))
    try:
        with quiet_transformers():
            where: Any = {"pretrained_model_name_or_path": place, "trust_remote_code": False}
            own = tokenizer if tokenizer is not None else AutoTokenizer.from_pretrained(**where)
            causal: Any = AutoModelForCausalLM
            options: Any = {"dtype": torch.float32, "output_loading_info": True}
            body, found = causal.from_pretrained(**where, **options)
            check_whole(found, str(model), body)
            copy_from_file(body)
    except ModelError:
        raise
    except (OSError, ValueError, RuntimeError) as error:
        raise ModelError(
            f"Cannot load {model!r} to train it: {str(error).splitlines()[0]} Give 'scratch', a "
            "configuration, a folder, a hub name or a transformers model."
        ) from error
    return body, own


def fresh_model(config: Any, tokenizer: Any, seed: int) -> Any:
    """A model with weights drawn by the seed; ``"scratch"`` is a small GPT-2."""
    from transformers import AutoModelForCausalLM

    auto: Any = AutoModelForCausalLM  # untyped in the library
    # A copy: training writes into the configuration of its model.
    shape = small_gpt2(tokenizer) if config == "scratch" else copy.deepcopy(config)
    torch.manual_seed(keyed_seed(seed, "training", "weights"))
    return auto.from_config(shape)


def small_gpt2(
    tokenizer: Any, *, layers: int = 4, width: int = 128, heads: int = 4, dropout: float = 0.0
) -> Any:
    """The configuration of a GPT-2 that reads what the tokenizer writes."""
    from transformers import GPT2Config

    return GPT2Config(
        vocab_size=len(tokenizer),
        n_positions=int(tokenizer.model_max_length),
        n_layer=layers,
        n_embd=width,
        n_head=heads,
        activation_function="gelu_pytorch_tanh",
        resid_pdrop=dropout,
        embd_pdrop=dropout,
        attn_pdrop=dropout,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def seeded_gpt2(tokenizer: Any, seed: int, **shape: Any) -> Any:
    """A GPT-2 of the lab, its weights drawn from torch's generator.

    Args:
        tokenizer: What it reads.
        seed: Is given to torch as it is; `fresh_model` keys its own.
        shape: As in `small_gpt2`.
    """
    from transformers import GPT2LMHeadModel

    torch.manual_seed(seed)
    return GPT2LMHeadModel(small_gpt2(tokenizer, **shape))


def with_adapters(model: Any, settings: TrainingSettings) -> Any:
    """The model with fresh low-rank adapters; only these are trained.

    Raises:
        TaskError: When peft is missing, or the modules cannot be found.
    """
    try:
        from peft import LoraConfig, get_peft_model
        from transformers.pytorch_utils import Conv1D
    except ImportError as error:
        raise TaskError(
            "method='lora' needs peft; install it with: pip install 'mechmem[lora]'."
        ) from error
    modules = {name.rsplit(".", 1)[-1]: module for name, module in model.named_modules()}
    names = set(modules)
    targets = list(settings.lora_targets)
    if not targets and {"q_proj", "v_proj"} <= names:
        targets = ["q_proj", "v_proj"]
    torch.manual_seed(keyed_seed(settings.seed, "training", "adapters"))
    config = LoraConfig(
        r=settings.lora_rank,
        lora_alpha=settings.lora_alpha,
        lora_dropout=settings.lora_dropout,
        target_modules=targets or None,
        # GPT-2 keeps its weights transposed; peft sets this by itself, with a warning.
        fan_in_fan_out=any(isinstance(modules.get(name), Conv1D) for name in targets or ["c_attn"]),
        task_type="CAUSAL_LM",
    )
    try:
        return get_peft_model(model, config)
    except ValueError as error:
        raise TaskError(
            f"No adapters for this model: {str(error).splitlines()[0]} Name modules in "
            f"lora_targets; it has {', '.join(sorted(names - {''}))}."
        ) from error


def write_model(
    weights: Path, base: Any, tokenizer: Any, folder: Path, method: str, origin: str | None = None
) -> None:
    """The kept checkpoint as a folder that every library loads; adapters are merged, and kept
    beside in ``adapter``, where ``origin`` is the name of the model that they belong to.

    Raises:
        ArtifactError: When the folder cannot be written.
    """
    with written_to(folder), quiet_transformers():
        if method == "lora":
            from peft import PeftModel

            whole: Any = PeftModel.from_pretrained(base, str(weights))
            shutil.copytree(weights, folder / "adapter", dirs_exist_ok=True)
            if origin is not None:  # peft names the folder in which the base lay on this machine
                note = folder / "adapter" / "adapter_config.json"
                about = {**json.loads(note.read_text()), "base_model_name_or_path": origin}
                note.write_text(json.dumps(about, indent=2, sort_keys=True) + "\n")
            whole.merge_and_unload().save_pretrained(folder)
        else:
            shutil.copytree(weights, folder, dirs_exist_ok=True)
        tokenizer.save_pretrained(folder)
