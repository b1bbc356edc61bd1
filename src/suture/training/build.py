"""From a run's config to the model that trains: loaded, quantised, its vocabulary extended, its adapter injected."""

from __future__ import annotations

import difflib
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig, PreTrainedModel
from transformers.utils import logging

from suture import targets
from suture.errors import InputError, MissingExtra, UsageError
from suture.rewriting import PREFIX
from suture.training.config import RunConfig
from suture.values import Arch, Json

DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}
CAUSAL = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")  # how Transformers names such classes
TIES_DO = (
    "choose one of\n"
    "    ties=untie     train the ends apart; a merge writes both and turns the tie flag off (the model grows)\n"
    "    ties=together  train one tensor for both ends; a merge stays tied\n"
    "    or leave {modules} out of `save` and `adapter.targets`"
)


def peft_config(config: RunConfig, arch: Arch, new_ids: Sequence[int]) -> dict[str, Any]:
    """The adapter_config.json that a run's config asks for.

    Args:
        new_ids: rows of the new tokens.
    """
    adapter = config.adapter
    embed, head = (name and name.rpartition(".")[2] for name in (arch.input_embedding, arch.output_embedding))
    saved, rows = list(config.save), None
    if new_ids and config.new_rows == "only":
        tied = any(
            {f"{arch.input_embedding}.weight", f"{arch.output_embedding}.weight"} <= set(t.members) for t in arch.ties
        )
        rows = list(new_ids) if tied or not head else {str(embed): list(new_ids), str(head): list(new_ids)}
    elif new_ids:
        saved += [name for name in (embed, head) if name and name not in saved]
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": config.base,
        "revision": config.revision,
        "r": adapter.rank,
        "lora_alpha": int(adapter.alpha) if adapter.alpha == int(adapter.alpha) else adapter.alpha,
        "lora_dropout": adapter.dropout,
        "use_rslora": adapter.method == "rslora",
        "use_dora": adapter.method == "dora",
        "target_modules": adapter.targets if isinstance(adapter.targets, str) else list(adapter.targets),
        "exclude_modules": list(adapter.exclude) or None,
        "target_parameters": list(adapter.parameters) or None,
        "rank_pattern": dict(adapter.rank_pattern),
        "alpha_pattern": dict(adapter.alpha_pattern),
        "bias": adapter.bias,
        "init_lora_weights": True if adapter.init == "default" else adapter.init,
        "modules_to_save": saved or None,
        "trainable_token_indices": rows,
        "ensure_weight_tying": config.ties == "together",
    }


def on_cpu(config: RunConfig) -> bool:
    """True where the run has no GPU, or wants none."""
    return config.device == "cpu" or (config.device == "auto" and not torch.cuda.is_available())


def check_device(config: RunConfig) -> None:
    """Refuse a device or a precision that is not there, before anything is read.

    Raises:
        UsageError: it is not.
    """
    has_cuda = torch.cuda.is_available()
    if config.device == "cuda" and not has_cuda:
        raise UsageError("cuda, but torch finds no GPU", where="device", expected="auto or cpu")
    if config.precision == "f16" and on_cpu(config):
        raise UsageError("f16 on a CPU, which cannot train in it", where="precision", expected="f32 or bf16")


def check_class(config: Json) -> None:
    """Refuse a base that does not predict the next token.

    Raises:
        UsageError: its class is another one.
    """
    names = [str(name) for name in config.get("architectures") or ()]
    if names and (config.get("is_encoder_decoder") or not names[0].endswith(CAUSAL)):
        raise UsageError(
            f"the base is a {names[0]}",
            where="base",
            expected="a causal language model, which predicts the next token",
            do="Train it with its own tool; suture.ProofCallback works in any Trainer.",
        )


def check_names(adapter: Json, arch: Arch) -> None:
    """Every name in the adapter's config must stand for something in the base: PEFT passes over one that does not.

    Raises:
        UsageError: names that match nothing; all of them are listed, with what comes close.
    """
    claims = targets.expected(adapter, arch)
    modules = {p.module for p in arch.params.values()}
    asked = {
        "save": [
            n for n in adapter.get("modules_to_save") or () if not targets.saved_params({"modules_to_save": [n]}, arch)
        ],
        "adapter.targets": _unmatched(adapter.get("target_modules"), claims.lora_modules),
        "adapter.exclude": _unmatched(adapter.get("exclude_modules"), modules),
        "adapter.parameters": [
            n
            for n in adapter.get("target_parameters") or ()
            if not targets.target_parameters({"target_parameters": [n]}, arch)
        ],
        "adapter.rank_pattern": _no_pattern(adapter.get("rank_pattern"), [*claims.lora_modules, *arch.params]),
        "adapter.alpha_pattern": _no_pattern(adapter.get("alpha_pattern"), [*claims.lora_modules, *arch.params]),
    }
    lines = [
        f"  {field}: {name}" + (f"; did you mean {' or '.join(close)}?" if (close := _close(name, modules)) else "")
        for field, names in asked.items()
        for name in names
    ]
    if lines:
        raise UsageError(
            "names that match nothing in the base:\n" + "\n".join(lines),
            where=", ".join(field for field, names in asked.items() if names),
            expected="the last parts of names of modules",
            do="`suture inspect BASE` shows what is there.",
        )


def _unmatched(names: Any, modules: Collection[str]) -> list[str]:
    """Names of a list that end no module's path. A regular expression is left to PEFT, which refuses an idle one."""
    if not names or isinstance(names, str):
        return []
    return [name for name in names if not any(m == name or m.endswith(f".{name}") for m in modules)]


def _no_pattern(patterns: Mapping[str, Any] | None, names: Sequence[str]) -> list[str]:
    found = patterns or {}
    return [key for key in found if not any(targets.first_match({key: 1}, name) is not None for name in names)]


def _close(name: str, modules: Set[str]) -> list[str]:
    parts = sorted({part for module in modules for part in module.split(".") if not part.isdigit()})
    return difflib.get_close_matches(name.rpartition(".")[2], parts, n=2)


def check_ends(arch: Arch) -> None:
    """Refuse a base whose vocabulary cannot be found.

    Raises:
        UsageError: it has no input embedding that Transformers knows.
    """
    if arch.input_embedding is None:
        raise UsageError(
            f"Transformers does not know where {arch.model_class} has its embedding",
            where="base",
            expected="an architecture of Transformers",
            do="Install the version of Transformers that the model was saved with.",
        )


def check_ties(config: RunConfig, adapter: Json, arch: Arch, known: Json | None = None) -> tuple[str, ...]:
    """Decide about tied ends before anything is loaded; notes say what was decided.

    Args:
        known: the config of an adapter that the run goes on from, about whose ends was decided before.

    Raises:
        UsageError: the policy is refuse, or the architecture cannot do what was asked for.
    """
    before = targets.expected(known, arch).tensors if known is not None else {}
    touched = {
        key.removeprefix(PREFIX).split(".lora_")[0].removesuffix(".weight")
        for key in targets.expected(adapter, arch).tensors.keys() - before.keys()
        if ".token_adapter." not in key
    }
    for tie in arch.ties:
        members = [member.removesuffix(".weight") for member in tie.members]
        ends = [module for module in members if module in touched]
        if ends and config.ties == "together":
            _require_in_full(ends, members, adapter)
            return (f"ties: {' and '.join(members)} will train as one tensor",)
        if ends:
            _require_untie(config, tie.separable, tie.why, ends, members)
    return ()


def _require_in_full(ends: Sequence[str], members: Sequence[str], adapter: Json) -> None:
    saved = tuple(adapter.get("modules_to_save") or ())
    if by_factors := [module for module in ends if not module.endswith(saved)]:
        names = " and ".join(module.rpartition(".")[2] for module in by_factors)
        raise UsageError(
            f"{' and '.join(members)} cannot train as one tensor with LoRA on {names}: the factors of one end are "
            "those of the other turned over, and an optimiser would move them twice, or apart",
            where="ties: together",
            expected="ends that train in full",
            do=f"Move {names} from adapter.targets to `save`, or set ties=untie.",
        )


def _require_untie(config: RunConfig, separable: bool, why: str, ends: Sequence[str], members: Sequence[str]) -> None:
    names = " and ".join(module.rpartition(".")[2] for module in ends)
    if config.ties == "refuse":
        raise UsageError(
            f"{' and '.join(members)} are one tensor in this base, and the run would train {names}.\n"
            "  What changes one end then changes the other too, or makes two tensors of one. Most tools choose\n"
            "  without a word, and merging two different updates into the one tensor gives noise",
            where="ties",
            expected="a choice",
            do=TIES_DO.format(modules=names),
        )
    if not separable:
        raise UsageError(
            f"{' and '.join(members)} cannot be separated in this architecture: {why}",
            where="ties: untie",
            do="Set ties=together, or leave the ends of the vocabulary out of `save` and `adapter.targets`.",
        )


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer of a folder.

    Raises:
        InputError: there is none that can be used.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, ImportError) as error:
        raise InputError(f"no tokenizer: {error}", where=str(folder), expected="the tokenizer's files") from error
    return tokenizer


def pad_id(tokenizer: Any) -> int:
    """The id that fills short rows. What it is does not matter: it is masked and never counts."""
    found = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    return int(found or 0)


def load_base(folder: Path, config: RunConfig, device: torch.device) -> PreTrainedModel:
    """The base model in the run's precision and quantisation.

    Raises:
        MissingExtra: quantisation needs bitsandbytes.
        InputError: Transformers cannot load it.
    """
    dtype = DTYPES[precision(config, device)]
    options: dict[str, Any] = {"dtype": dtype, "local_files_only": True, "trust_remote_code": False}
    if config.quantize:
        options |= {"quantization_config": quantization(config.quantize, dtype), "device_map": {"": device}}
    try:
        plain = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        with expected_warnings():
            model = _model_class(plain).from_pretrained(folder, **options)
    except (OSError, ValueError, RuntimeError) as error:
        raise InputError(f"Transformers cannot load the base: {error}", where=str(folder)) from error
    if model.config.is_encoder_decoder:
        raise UsageError(f"the base is a {type(model).__name__}", where="base", expected="a decoder alone")
    model.config.use_cache = False
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            # In evaluation bitsandbytes repacks 4-bit weights for this CPU, their scales rounded to bf16, and quantises
            # the scales anew on the way back: the base would be another one after the first evaluation.
            module.support_avx512bf16_for_cpu = False
    return model if config.quantize else model.to(device)


def _model_class(config: Any) -> Any:
    """The class that the config names; causal language models go through the auto class, which knows aliases."""
    names = config.architectures or []
    found = getattr(transformers, names[0], None) if names else None
    return found or AutoModelForCausalLM


def quantization(scheme: str, dtype: torch.dtype) -> BitsAndBytesConfig:
    """The bitsandbytes settings of QLoRA (NF4, nested) or of LLM.int8.

    Raises:
        MissingExtra: bitsandbytes is not installed.
    """
    try:
        import bitsandbytes  # noqa: F401
    except ImportError as error:
        raise MissingExtra("the package bitsandbytes is not installed", do="pip install 'suture[train]'") from error
    if scheme == "int8":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
    )


def precision(config: RunConfig, device: torch.device) -> str:
    """The dtype of the base and of the products: as asked for, or bf16 on a GPU that has it and f32 elsewhere."""
    if config.precision != "auto":
        return config.precision
    return "bf16" if device.type == "cuda" and torch.cuda.is_bf16_supported() else "f32"


def add_tokens(tokenizer: Any, tokens: Mapping[str, str | None]) -> dict[int, list[int]]:
    """Add tokens to a tokenizer; for the id of each, the ids of its words, or nothing for the mean of all rows.

    Raises:
        UsageError: a token is there already, or its words are no tokens.
    """
    if known := sorted(set(tokens) & set(tokenizer.get_vocab())):
        raise UsageError(f"{known} are tokens of the base already", where="new_tokens", do="Leave them out.")
    words = {token: _ids(tokenizer, text) for token, text in tokens.items()}
    tokenizer.add_tokens(list(tokens))
    return {int(tokenizer.convert_tokens_to_ids(token)): ids for token, ids in words.items()}


def _ids(tokenizer: Any, words: str | None) -> list[int]:
    found = tokenizer(words, add_special_tokens=False)["input_ids"] if words else []
    if words and not found:
        raise UsageError(f"{words!r} has no tokens", where="new_tokens", do="Give other words, or none.")
    return list(found)


def extend(model: PreTrainedModel, n_rows: int, words: Mapping[int, Sequence[int]]) -> tuple[str, ...]:
    """Give the vocabulary n_rows rows, and the new tokens their starting values, at both ends.

    A row starts as the mean of the rows of its words, or of all rows of the base, computed in float32.
    """
    n_before = model.get_input_embeddings().weight.shape[0]
    if n_rows != n_before:
        model.resize_token_embeddings(n_rows, mean_resizing=False)
    ends = {
        id(m.weight): m.weight for m in (model.get_input_embeddings(), model.get_output_embeddings()) if m is not None
    }
    with torch.no_grad():
        for weight in ends.values():
            rows = weight[:n_before].float()
            weight[n_before:] = rows.mean(0).to(weight.dtype)
            for i, sources in words.items():
                weight[i] = (rows[list(sources)] if sources else rows).mean(0).to(weight.dtype)
    if not words:
        return (f"the vocabulary: {n_before:,} → {n_rows:,} rows",) if n_rows != n_before else ()
    grown = f"{n_before:,} → {n_rows:,} rows" if n_rows != n_before else "in rows that the base had to spare"
    return (f"{len(words):,} new tokens: {grown}",)


def inject(base: PreTrainedModel, adapter: Json, config: RunConfig) -> PeftModel:
    """The base with an adapter, freshly initialised by the run's seed; everything that trains is float32.

    Raises:
        UsageError: PEFT does not accept the config for this model.
    """
    base.name_or_path = config.base
    torch.manual_seed(config.seed)
    try:
        with expected_warnings():
            model = get_peft_model(base, LoraConfig(**adapter))
    except (ValueError, TypeError, NotImplementedError) as error:
        raise UsageError(f"PEFT does not accept this adapter: {error}", where="adapter") from error
    for parameter in model.parameters():
        if parameter.requires_grad and parameter.dtype != torch.float32:
            parameter.data = parameter.data.float()
    return model


@contextmanager
def expected_warnings() -> Iterator[None]:
    """Loading bars off, and no warnings of what is decided (tied ends) or is not ours (PEFT's use of an old name)."""
    bars = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*(tie_word_embeddings|ensure_weight_tying).*")
            warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*", category=FutureWarning)
            yield
    finally:
        if bars:
            logging.enable_progress_bar()
