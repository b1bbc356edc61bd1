"""Which values of which config fields change nothing: tried in groups, and by halves where a group does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from probing import Subject

from suture.arch.fields import MAX_COUNT, MAX_FLOAT, MAX_WHOLE, WORDS
from suture.arch.meta import NEUTRAL
from suture.values import Json

_LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
_ROPES: tuple[Json, ...] = (
    {"rope_type": "default"},
    {"rope_type": "default", "rope_theta": 100},
    {"type": "linear", "factor": 1.0, "partial_rotary_factor": 0.25},
    {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5},
    {"rope_type": "default", "rope_theta": 1e6, "partial_rotary_factor": 1},
    {"rope_type": "linear", "factor": 8.0, "rope_theta": MAX_FLOAT},
    {"rope_type": "llama3", **_LLAMA3, "rope_theta": 500000.0},
    {"type": "llama3", "rope_type": "llama3", **_LLAMA3, "factor": 1, "low_freq_factor": 0.5, "high_freq_factor": 64},
)

_STRETCHED: tuple[Json, ...] = (
    {"type": "dynamic", "factor": 1e6},
    {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768},
    {"rope_type": "yarn", "factor": 1, "original_max_position_embeddings": 1, "rope_theta": 100.0},
)

# For each word, values at its limits and between them. `vocab` stands for the last token id.
_VOCAB = object()
_SAMPLES: Mapping[str, tuple[Any, ...]] = {
    "null": (None,),
    "bool": (True, False),
    "text": ("x", "", "/a b", "eager"),
    "whole": (0, 1, 2, 7, 4096, MAX_WHOLE),
    "positive": (1, 2, 3, 7, 4096, MAX_WHOLE),
    "count": (1, 2, 3, 7, 4096, MAX_COUNT),
    "float": (0.0, 1e-6, 0.3, 1.0, 7.5, MAX_FLOAT),
    "unit": (0.0, 1e-6, 0.25, 0.5, 1.0),
    "share": (0.25, 0.4, 0.5, 1.0),
    "token": (0, 1, _VOCAB),
    "tokens": ([], [0], [1, _VOCAB]),
    "layers": (["full_attention"] * 2, ["sliding_attention"] * 2, ["sliding_attention", "full_attention"]),
    "marks": ([0, 0], [0, 1], [1, 1]),
    "rope": _ROPES,
    "stretched_rope": _STRETCHED,
    "ropes": tuple(
        {"full_attention": r, "sliding_attention": s} for r, s in zip(_ROPES, reversed(_ROPES), strict=True)
    ),
    "data": ({}, {"a": {"b": [1, None, True, "x"]}}, {"type": "llama3"}, {"rope_type": "yarn", "factor": "x"}),
}
assert {*_SAMPLES, "any"} == WORDS.keys()

Word = tuple[str, str]  # a key, and a word or a single value


@dataclass(frozen=True)
class Trial:
    """A value of a key, as the n-th sample of a word."""

    key: str
    word: Word
    number: int
    value: Any


# These override each other, so they are not tried together.
_ROPE_KEYS = ("rope_parameters", "rope_scaling")
_BASE_KEYS = ("rope_theta", "rope_local_base_freq", "rotary_emb_base")
_ROTARY_KEYS = (*_ROPE_KEYS, *_BASE_KEYS, "partial_rotary_factor", "rotary_pct")

# Single values where no word fits, for keys whose name holds one of these.
_SINGLE: Mapping[str, tuple[Any, ...]] = {
    "activation": (_ACTIVATIONS := ("gelu", "gelu_fast", "gelu_new", "gelu_pytorch_tanh", "relu", "silu", "swish")),
    "hidden_act": _ACTIVATIONS,
    "dtype": ("bfloat16", "float16", "float32"),
    "cache_implementation": ("hybrid", "dynamic"),
    "_token_id": (-1,),
}
_WORDS: Mapping[str, tuple[str, ...]] = {
    "activation": ("null",),
    "hidden_act": ("null",),
    "dtype": ("null",),
    "cache_implementation": ("null",),
    "max_position_embeddings": ("positive",),
    "partial_rotary_factor": ("null", "share"),
    "rotary_pct": ("null", "share"),
    "_token_id": ("null", "token", "tokens", "whole"),
    **dict.fromkeys(_BASE_KEYS, ("whole", "float")),
    **dict.fromkeys(_ROPE_KEYS, ("null", "whole", "float", "rope", "ropes", "stretched_rope")),
    "": ("null", "bool", "text", "whole", "count", "float", "unit", "layers", "marks", "data"),
}

# Keys that stand in config.json files although the class has no field of that name.
_OTHERS = [
    "_name_or_path",
    "transformers_version",
    "torch_dtype",
    "rope_theta",
    "rope_scaling",
    "rope_local_base_freq",
    "attention_bias",
    "mlp_bias",
    "head_dim",
    "num_key_value_heads",
    "sliding_window",
    "sliding_window_pattern",
    "max_window_layers",
    "use_sliding_window",
    "_sliding_window_pattern",
    "partial_rotary_factor",
    "rotary_pct",
    "rotary_emb_base",
    "pretraining_tp",
    "is_llama_config",
    "rope_interleaved",
    "transformers.js_config",
    "unsloth_fixed",
    "unsloth_version",
    "cache_implementation",
    "hidden_activation",
    "final_logit_softcapping",
    "attn_logit_softcapping",
    "n_ctx",
    "task_specific_params",
    "max_length",
    "min_length",
    "do_sample",
    "gradient_checkpointing",
    "use_mrope",
    "hidden_act",
    "use_qkv_bias",
    "use_qk_norm",
    "qk_layernorm",
    "num_experts_per_tok",
    "router_jitter_noise",
    "output_router_logits",
    "router_aux_loss_coef",
    "output_attentions",
    "output_past",
    "temperature",
    "top_p",
    "top_k",
    "bos_token_id",
    "eos_token_id",
    "sep_token_id",
    "unk_token_id",
    "torchscript",
    "use_bfloat16",
    "pruned_heads",
    "add_cross_attention",
    "return_dict_in_generate",
    "tie_encoder_decoder",
    "tf_legacy_loss",
    "bos_token",
    "mamba_ssm_dtype",
    "query_pre_attn_scalar",
    "attention_softmax_in_fp32",
    "masked_softmax_fusion",
    "bias_dropout_fusion",
    "skip_bias_add",
    "offset_alibi",
    "skip_bias_add_qkv",
    "norm_type",
    "mlp_type",
    "activation_function",
    "clip_qkv",
    "mlp_only_layers",
    "use_bidirectional_attention",
    "original_max_position_embeddings",
    "model_max_length",
    "seq_length",
]


def accepted(subject: Subject, used: Sequence[str], contexts: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """What each field may hold without a change of the model, as `suture.arch.fields.accepts` reads it.

    Args:
        used: fields that the table reads; they are left out.
        contexts: configs in which every value is tried.
    """
    keys = sorted(
        {*subject.fields, *_OTHERS}
        - {*used, "architectures", "model_type", *(k for k, v in subject.aliases.items() if v in used), *NEUTRAL}
    )
    defaults = {k: v for k, v in subject.resolved(subject.config()).to_dict().items() if not isinstance(v, dict)}
    trials = [t for key in keys if key not in subject.pinned for t in _trials(key, defaults)]
    failed = _refused(subject, trials)
    for context in contexts:
        for n in range(max(len(v) for v in _SAMPLES.values())):  # what fails at once is not tried again
            failed |= _failing(subject, context, [t for t in trials if t.number == n and t.word not in failed])
    found: dict[str, list[Any]] = {key: _said(trials, key, failed) for key in keys}
    found |= {key: ["", defaults.get(key)] for key in subject.pinned}
    return {k: v for k, v in {**found, **{k: ["any"] for k in sorted(NEUTRAL)}}.items() if v != [""]}


def _trials(key: str, defaults: Mapping[str, Any]) -> list[Trial]:
    """All that is tried of a key: samples of words, the single values, and what the class itself says."""
    names = next(names for part, names in _WORDS.items() if part in key)
    single = next((values for part, values in _SINGLE.items() if part in key), ())
    trials = [Trial(key, (key, name), n, v) for name in names for n, v in enumerate(_SAMPLES[name])]
    own = (defaults[key],) if key in defaults else ()
    return trials + [Trial(key, (key, repr(v)), 0, v) for v in (*single, *own)]


def _said(trials: Sequence[Trial], key: str, failed: set[Word]) -> list[Any]:
    """The row of the table for one key."""
    mine = [t for t in trials if t.key == key]
    words = list(dict.fromkeys(t.word[1] for t in mine if t.word[1] in WORDS and t.word not in failed))
    single = {t.word[1]: t.value for t in mine if t.word[1] not in WORDS and t.word not in failed}
    if words == list(_WORDS[""]):
        return ["any"]
    return [" ".join(_needed(words)), *(single[k] for k in sorted(single) if not _is_said(single[k], words))]


def _needed(words: Sequence[str]) -> list[str]:
    """Words that no other one contains."""
    within = {"unit": "float", "count": "whole", "token": "whole"}
    return [w for w in words if within.get(w) not in words]


def _is_said(value: Any, words: Sequence[str]) -> bool:
    return any(WORDS[w](value, 2, 2) for w in words)


def _refused(subject: Subject, trials: Sequence[Trial]) -> set[Word]:
    """Words that the config class does not take."""
    plain = subject.config()
    vocab = subject.resolved(plain).vocab_size
    return {t.word for t in trials if subject.resolved({**plain, t.key: _real(t.value, vocab)}) is None}


def _failing(subject: Subject, context: Mapping[str, Any], trials: Sequence[Trial]) -> set[Word]:
    """Words with which a config is refused, or gives another model.

    A group has one trial of each key, and of one key about rotary embeddings: these override each other.
    """
    plain = subject.config(**context)
    vocab = subject.resolved(plain).vocab_size
    wanted = subject.signature(plain)
    if wanted is None:
        raise ValueError(f"{subject.model}: nothing can be tried in {plain}, which is refused")
    groups: list[dict[str, Trial]] = []
    for trial in trials:
        place = "rope" if trial.key in _ROTARY_KEYS else trial.key
        free = next((g for g in groups if place not in g), None)
        if free is None:
            groups.append(free := {})
        free[place] = trial
    return {t.word for g in groups for t in _culprits(subject, plain, wanted, list(g.values()), vocab)}


def _culprits(subject: Subject, plain: Json, wanted: Any, group: list[Trial], vocab: int) -> list[Trial]:
    """Members of a group that change the model, found by halving it."""
    if subject.signature({**plain, **{t.key: _real(t.value, vocab) for t in group}}) == wanted:
        return []
    if len(group) == 1:
        return group
    half = len(group) // 2
    found = [c for part in (group[:half], group[half:]) for c in _culprits(subject, plain, wanted, part, vocab)]
    return found or _breaking(subject, plain, wanted, group, vocab)


def _breaking(subject: Subject, plain: Json, wanted: Any, group: list[Trial], vocab: int) -> list[Trial]:
    """Members that change the model only beside others: those without which the rest does not."""
    kept: dict[str, Any] = {}
    found: list[Trial] = []
    for trial in sorted(group, key=lambda t: t.key not in subject.fields):  # declared fields stay
        more = {**kept, trial.key: _real(trial.value, vocab)}
        if subject.signature({**plain, **more}) == wanted:
            kept = more
        else:
            found.append(trial)
    return found


def _real(value: Any, vocab: int) -> Any:
    if isinstance(value, list):
        return [_real(v, vocab) for v in value]
    return vocab - 1 if value is _VOCAB else value
