"""The settings of a training run: what each is for, what it may be, and how a YAML file becomes one checked value.

Relative paths are relative to the current folder, as in other tools, not to the file that names them.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, Strict, ValidationError, ValidationInfo, field_validator

from suture.errors import UsageError
from suture.training.complaints import complaints
from suture.training.yamlfile import override, read_mapping, to_text

SECTIONS = ("data", "adapter")  # an empty one is as good as none

Name = Annotated[str, Field(min_length=1)]
Folder = Annotated[Path, Strict(False)]
# An int is taken for a float, text never is, and a boolean is no number.
_RULES = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False, validate_default=True)


def _home(value: Any) -> Any:
    """A path or name without its leading ~."""
    if isinstance(value, str | Path) and str(value).startswith("~"):
        return type(value)(Path(value).expanduser())
    return value


def _once(names: Sequence[str]) -> None:
    """ValueError where a name stands twice."""
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"{', '.join(map(repr, twice))} more than once; expected each name once")


def _pattern(text: str) -> None:
    """ValueError where a text is no regular expression."""
    try:
        re.compile(text)
    except re.error as error:
        raise ValueError(f"{text!r} is no regular expression ({error}); expected one as of Python's re") from None


class DataConfig(BaseModel):
    """What a run learns from."""

    model_config = _RULES

    train: Name = Field(
        description="Training examples: a .jsonl, .json or .parquet file, or the name or folder of a data set.",
        examples=["train.jsonl"],
    )
    eval: Name | None = Field(
        default=None,
        description="Examples for the evaluation loss, in the same form; null: cut from train (see eval_share).",
    )
    eval_share: float = Field(
        default=0.05,
        ge=0,
        lt=1,
        description="Share of train that is held out for evaluation where eval is null; 0: none.",
    )
    split: Name = Field(default="train", description="Split to read where train or eval is a data set and not a file.")
    format: Literal["auto", "chat", "prompt", "text"] = Field(
        default="auto",
        description="chat: a column `messages` of {role, content}; prompt: columns `prompt` and `completion`; text: a "
        "column `text`; auto: whichever is there.",
    )
    fields: dict[Literal["messages", "prompt", "completion", "text", "tools"], Name] = Field(
        default={}, description="Columns that have other names in the file: {messages: conversations}."
    )
    template: Folder | None = Field(
        default=None, description="File with a Jinja chat template; null: the template of the tokenizer."
    )
    loss_on: Literal["answers", "all"] = Field(
        default="answers",
        description="answers: the loss counts on what the assistant says (or the completion) and on the token that "
        "ends it; all: on every token. Plain text always counts in full.",
    )
    packing: bool = Field(
        default=False,
        description="Put several whole examples into one row of max_length tokens, with positions that restart and no "
        "attention between them. Faster where examples are short; not for models that carry a state (Mamba).",
    )
    max_length: int = Field(default=1024, ge=2, description="Longest row in tokens; memory grows with it.")
    too_long: Literal["truncate", "drop", "refuse"] = Field(
        default="truncate",
        description="An example of more than max_length tokens is cut at its end, dropped, or stops the run before it "
        "begins. What was cut or dropped is counted and said.",
    )

    _expand = field_validator("train", "eval", "template", mode="before")(_home)


class AdapterConfig(BaseModel):
    """The adapter that is trained, in PEFT's terms."""

    model_config = _RULES

    method: Literal["lora", "rslora", "dora"] = Field(
        default="lora",
        description="lora: W + alpha/rank · BA; rslora: alpha/√rank instead, for large ranks; dora: LoRA with a "
        "trained length of each row, slower.",
    )
    rank: int = Field(default=16, ge=1, description="Rank of BA (PEFT's r): parameters and memory grow with it.")
    alpha: float = Field(
        default=32,
        gt=0,
        description="Scale of BA (PEFT's lora_alpha). Twice the rank is common; keep alpha/rank with lr.",
    )
    dropout: float = Field(default=0.0, ge=0, lt=1, description="Dropout on the adapter's input (PEFT's lora_dropout).")
    targets: Name | list[Name] = Field(
        default="all-linear",
        description="Modules that get LoRA (PEFT's target_modules): all-linear is every linear layer but the head; "
        "else a list of names like [q_proj, v_proj], or one regular expression on full names.",
    )
    exclude: list[Name] = Field(
        default=[], description="Names that targets would match but that get none (exclude_modules)."
    )
    parameters: list[Name] = Field(
        default=[],
        description="Parameters that are no linear layers, such as fused experts: [mlp.experts.gate_up_proj, "
        "mlp.experts.down_proj] (PEFT's target_parameters). Without dropout and not with dora.",
    )
    rank_pattern: dict[Name, Annotated[int, Field(ge=1)]] = Field(
        default={},
        description="Other ranks for some modules, {name or regular expression: rank}. The first match counts, in "
        "alphabetical order, because adapter files keep them in that order.",
    )
    alpha_pattern: dict[Name, Annotated[float, Field(gt=0)]] = Field(
        default={}, description="Other alphas for some modules, in the same way."
    )
    bias: Literal["none", "all", "lora_only"] = Field(
        default="none",
        description="Biases that train with it: none, all of the model, or those of the modules with LoRA.",
    )
    init: Literal["default", "gaussian", "orthogonal"] = Field(
        default="default",
        description="Start of A (B starts at zero); orthogonal (both, their product is zero) wants even ranks.",
    )

    @field_validator("targets", "exclude", "parameters")
    @classmethod
    def _names(cls, value: str | list[str]) -> str | list[str]:
        if not isinstance(value, str):
            _once(value)
        elif value != "all-linear":
            _pattern(value)
        return value

    @field_validator("targets")
    @classmethod
    def _some(cls, value: str | list[str]) -> str | list[str]:
        if not value:
            raise ValueError("an empty list; expected the names of modules, or all-linear")
        return value

    @field_validator("exclude")
    @classmethod
    def _not_targets(cls, value: list[str], info: ValidationInfo) -> list[str]:
        both = _in_both(value, info.data.get("targets"))
        if both:
            raise ValueError(f"{', '.join(both)} in targets as well; expected a module in one of the two")
        return value

    @field_validator("parameters")
    @classmethod
    def _wrapped(cls, value: list[str], info: ValidationInfo) -> list[str]:
        if value and info.data.get("method") == "dora":
            raise ValueError("set with method: dora; expected lora or rslora, PEFT has no DoRA for bare parameters")
        if value and info.data.get("dropout"):
            raise ValueError("set with a dropout; expected dropout: 0, PEFT has none for bare parameters")
        return value

    @field_validator("rank_pattern", "alpha_pattern")
    @classmethod
    def _sorted(cls, value: dict[str, Any]) -> dict[str, Any]:
        for key in value:
            _pattern(key)
        return dict(sorted(value.items()))

    @field_validator("init")
    @classmethod
    def _even(cls, value: str, info: ValidationInfo) -> str:
        ranks = [info.data.get("rank", 2), *info.data.get("rank_pattern", {}).values()]
        odd = [rank for rank in ranks if rank % 2]
        if value == "orthogonal" and odd:
            raise ValueError(f"orthogonal with rank {odd[0]}; expected even ranks")
        return value


def _in_both(names: Sequence[str], targets: Any) -> list[str]:
    """Names that stand in a list of targets, in full or as the last part of a path."""
    if not isinstance(targets, list):
        return []
    return [
        name for name in names if any(f".{a}".endswith(f".{b}") for t in targets for a, b in ((name, t), (t, name)))
    ]


class RunConfig(BaseModel):
    """All settings of a run."""

    model_config = _RULES

    base: Name = Field(
        description="The base model: a folder, or a name on the Hugging Face Hub.",
        examples=["HuggingFaceTB/SmolLM2-135M-Instruct"],
    )
    revision: Name | None = Field(
        default=None, description="Branch, tag or commit of the base on the Hub; null: its main."
    )
    out: Folder = Field(description="Folder of the run: checkpoints, logs, the adapter.", examples=["runs/first"])
    data: DataConfig = Field(description="What the run learns from.")
    adapter: AdapterConfig = Field(default_factory=AdapterConfig, description="The adapter that is trained.")
    save: list[Name] = Field(
        default=[],
        description="Modules that are trained in full and saved whole, such as [embed_tokens, lm_head] (PEFT's "
        "modules_to_save).",
    )
    new_tokens: list[Name] | dict[Name, Name | None] = Field(
        default=[],
        description="Tokens to add: a list, or {token: words whose mean embedding its row starts from}. Rows of a "
        "list, and of null, start from the mean of all rows.",
    )
    new_rows: Literal["full", "only"] = Field(
        default="full",
        description="With new_tokens, full: train the embedding and the head in full; only: train just the new rows.",
    )
    ties: Literal["refuse", "untie", "together"] = Field(
        "refuse",
        description="Where the base keeps embedding and head as one tensor and the run would train one or both: refuse "
        "to begin, untie (each gets a tensor of its own), or train both together as one.",
    )
    quantize: Literal["nf4", "int8"] | None = Field(
        default=None,
        description="Load the base's linear layers in 4 or 8 bits (bitsandbytes): less memory, slower on a CPU.",
    )
    precision: Literal["auto", "f32", "bf16", "f16"] = Field(
        default="auto", description="Type of the frozen weights and the arithmetic; auto: what device and base can do."
    )
    device: Literal["auto", "cpu", "cuda"] = Field(
        default="auto", description="Where to train; auto: a GPU if there is one."
    )
    gradient_checkpointing: bool = Field(
        True, description="Compute activations again in the backward pass: less memory, about a third more time."
    )
    optimizer: Literal["adamw", "adamw_8bit", "paged_adamw_8bit", "adafactor", "sgd"] = Field(
        default="adamw", description="Optimiser; the 8-bit ones (bitsandbytes) keep their state in less memory."
    )
    lr: float = Field(
        default=2e-4, gt=0, description="Peak learning rate of the adapter; usual for LoRA: 1e-4 to 5e-4."
    )
    embedding_lr: float | None = Field(
        default=None, gt=0, description="Peak learning rate of embeddings, head and new rows; null: a tenth of lr."
    )
    lora_plus_ratio: float | None = Field(
        default=None,
        gt=0,
        description="LoRA+: B learns with this multiple of lr, 16 in the paper; null: with lr, like A.",
    )
    weight_decay: float = Field(
        default=0.0, ge=0, description="Decay of weights by the optimiser; not of biases and norms."
    )
    max_grad_norm: float = Field(
        default=1.0, gt=0, description="Gradients are scaled down to this norm where it is larger."
    )
    schedule: Literal["linear", "cosine", "constant"] = Field(
        default="cosine",
        description="Learning rate after the warm-up: falls to zero in a line or a half cosine, or stays.",
    )
    warmup: float = Field(
        default=0.03, ge=0, description="Steps in which the rate rises from zero; below 1 a share of all steps."
    )
    epochs: float = Field(default=1.0, gt=0, description="Passes over the training examples.")
    steps: int | None = Field(default=None, ge=1, description="Optimiser steps, in place of epochs.")
    batch_size: int = Field(
        default=4, ge=1, description="Rows of one forward pass in each process; memory grows with it."
    )
    accumulate: int = Field(default=1, ge=1, description="Forward passes of one optimiser step.")
    seed: int = Field(
        default=0, ge=0, lt=2**32, description="Seed of the initial values, the split, the order and dropout."
    )
    log_every: int = Field(default=1, ge=1, description="Steps between two lines of the log.")
    eval_every: int | None = Field(default=None, ge=1, description="Steps between evaluations; null: only at the end.")
    early_stop: int | None = Field(
        default=None, ge=1, description="Stop after so many evaluations without a better loss; null: never."
    )
    save_every: int | None = Field(
        default=None, ge=1, description="Steps between checkpoints; null: at the end of each epoch."
    )
    keep: int = Field(default=2, ge=1, description="Checkpoints that are kept, the newest.")
    prove: Literal["full", "reload", "off"] = Field(
        default="full",
        description="At the end, compare the losses before and after reloading the adapter (reload), and after merging "
        "it into the base as well (full).",
    )
    merge_dtype: Literal["f32", "base"] = Field(
        default="f32",
        description="Type of the weights merged for that proof: f32 shows errors of the merge, not of rounding.",
    )
    tensorboard: bool = Field(default=True, description="Write curves for TensorBoard, if it is installed.")

    _expand = field_validator("base", "out", mode="before")(_home)

    @property
    def embedding_rate(self) -> float:
        """Peak learning rate of embeddings, head and new rows."""
        return self.lr / 10 if self.embedding_lr is None else self.embedding_lr

    @field_validator("save")
    @classmethod
    def _one_way(cls, value: list[str], info: ValidationInfo) -> list[str]:
        _once(value)
        adapter = info.data.get("adapter")
        both = _in_both(value, adapter.targets) if adapter else []
        if both:
            raise ValueError(
                f"{', '.join(both)}, which adapter.targets names as well; a module cannot be both trained in full and "
                "have LoRA: expected it in one of the two"
            )
        return value

    @field_validator("new_tokens")
    @classmethod
    def _distinct(cls, value: list[str] | dict[str, str | None]) -> list[str] | dict[str, str | None]:
        _once(list(value))
        return value

    @field_validator("new_rows")
    @classmethod
    def _of_tokens(cls, value: str, info: ValidationInfo) -> str:
        if value == "only" and not info.data.get("new_tokens", True):
            raise ValueError("only, without new_tokens; expected new_tokens, or full")
        return value

    @field_validator("warmup")
    @classmethod
    def _share_or_steps(cls, value: float) -> float:
        if value >= 1 and value != int(value):
            raise ValueError(f"{value}; expected a share below 1, or a whole number of steps")
        return value

    @field_validator("eval_every")
    @classmethod
    def _has_eval(cls, value: int | None, info: ValidationInfo) -> int | None:
        data = info.data.get("data")
        if value is not None and data and data.eval is None and data.eval_share == 0:
            raise ValueError(f"{value}, but nothing to evaluate on; expected data.eval, or data.eval_share above 0")
        return value

    @field_validator("early_stop")
    @classmethod
    def _has_losses(cls, value: int | None, info: ValidationInfo) -> int | None:
        if value is not None and "eval_every" in info.data and info.data["eval_every"] is None:
            raise ValueError(f"{value}, but no evaluations to count; expected eval_every, in steps")
        return value


def load(path: Path, overrides: Sequence[str] = ()) -> RunConfig:
    """The settings in a YAML file, changed by overrides like `adapter.rank=32`; UsageError lists all that is wrong.

    A value on the right of = is YAML: `save=[embed_tokens, lm_head]`. Relative paths stay relative to the current
    folder. InputError where the file cannot be read.
    """
    values = {name: value for name, value in read_mapping(path).items() if value is not None or name not in SECTIONS}
    wrong = override(values, overrides, SECTIONS)
    try:
        config = RunConfig.model_validate(values)
    except ValidationError as error:
        wrong += complaints(error, RunConfig)
    if wrong:
        found = "\n".join(f"  {number}. {text}" for number, text in enumerate(wrong, 1))
        noun = "setting is" if len(wrong) == 1 else "settings are"
        raise UsageError(f"{len(wrong)} {noun} wrong\n{found}", where=str(path), do="correct the file or the options")
    return config


def dump(config: RunConfig) -> str:
    """YAML of all settings, defaults included; `load` reads it back to an equal value."""
    return to_text(config.model_dump(mode="json"))


def changed_fields(config: BaseModel) -> tuple[str, ...]:
    """Dotted names of the settings that were given in the file or by an override, whatever their value."""
    names: list[str] = []
    for name in type(config).model_fields:
        value = getattr(config, name)
        if name in config.model_fields_set:
            names += [f"{name}.{inner}" for inner in changed_fields(value)] if isinstance(value, BaseModel) else [name]
    return tuple(names)
