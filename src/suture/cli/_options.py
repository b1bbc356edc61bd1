"""The options that commands share, in groups. A group's docstring is its heading in the help; a
group turns into the library's value of the same meaning."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from suture.cli._command import Argument, Option
from suture.errors import UsageError

if TYPE_CHECKING:
    from suture.pipeline import Reading
    from suture.values import Options, Plan
    from suture.values import Running as Settings
    from suture.verification.logits import LogitsSettings


class Tied(StrEnum):
    """--tied"""

    auto = "auto"
    untie = "untie"
    keep = "keep"
    refuse = "refuse"


class Dtype(StrEnum):
    """--dtype"""

    bf16 = "bf16"
    f16 = "f16"
    f32 = "f32"


class Onto(StrEnum):
    """--onto"""

    auto = "auto"
    original = "original"
    dequantized = "dequantized"


class TrainedOn(StrEnum):
    """--trained-on"""

    nf4 = "nf4"
    nf4_nested = "nf4-nested"
    fp4 = "fp4"
    fp4_nested = "fp4-nested"
    int8 = "int8"


class Output(StrEnum):
    """--output"""

    dense = "dense"
    same = "same"


class Tokenizer(StrEnum):
    """--tokenizer"""

    auto = "auto"
    base = "base"
    adapter = "adapter"


class Rounding(StrEnum):
    """--rounding"""

    nearest = "nearest"
    stochastic = "stochastic"


class Durability(StrEnum):
    """--durability"""

    full = "full"
    fast = "fast"


class Hash(StrEnum):
    """--hash"""

    sha256 = "sha256"
    none = "none"


class Thoroughness(StrEnum):
    """--verify"""

    sample = "sample"
    full = "full"


BaseArgument = Annotated[str, Argument("BASE", "Base model: a folder or a Hub id.")]
_Adapter = Argument("ADAPTER", "LoRA adapter: a folder or a Hub id.")
AdapterArgument = Annotated[str, _Adapter]
OptionalAdapter = Annotated[str | None, _Adapter]
OutOption = Annotated[Path, Option("Folder for the merged model; must be new or empty.", "OUT", short="-o")]
OptionalOut = Annotated[
    Path | None, Option("Where OUT will be: measures beside it how long the merge will take.", "OUT", short="-o")
]
MergedArgument = Annotated[Path, Argument("MERGED", "Folder of the merged model, of any tool.")]


SubjectArgument = Annotated[
    str, Argument("BASE", "Base model (folder or Hub id); or, alone, a finished model or a run.")
]


@dataclass(frozen=True, slots=True)
class Forms:
    """Other forms of the findings."""

    sarif: Annotated[bool, Option("Print SARIF 2.1.0, which code hosts read.")] = False
    github: Annotated[bool, Option("Print annotations for a GitHub workflow.")] = False


@dataclass(frozen=True, slots=True)
class Pair:
    """The two sides."""

    base: BaseArgument
    adapter: AdapterArgument


@dataclass(frozen=True, slots=True)
class Sources:
    """How to read the two sides."""

    adapter_name: Annotated[str | None, Option("Which adapter, where ADAPTER holds several.", "NAME")] = None
    revision: Annotated[str | None, Option("Branch, tag or commit of BASE on the Hub.", "REV")] = None
    adapter_revision: Annotated[str | None, Option("Branch, tag or commit of ADAPTER on the Hub.", "REV")] = None
    allow_pickle: Annotated[bool, Option("Read tensors of .bin files too; their code is never run.")] = False
    offline: Annotated[bool, Option("Use what is on this disk; never ask the Hub.")] = False

    def reading(self) -> Reading:
        """The library's value. With --offline the Hub's client, not imported yet, is told to stay offline."""
        if self.offline:
            os.environ["HF_HUB_OFFLINE"] = "1"
        from suture.pipeline import Reading

        return Reading(self.revision, self.adapter_revision, self.adapter_name, self.allow_pickle)


@dataclass(frozen=True, slots=True)
class Choices:
    """What may be chosen about a merge."""

    tied: Annotated[Tied, Option("Tied parameters: separate them when needed, always, never, or refuse to.")] = (
        Tied.auto
    )
    dtype: Annotated[Dtype | None, Option("Type of all float tensors. Default: as in BASE.")] = None
    onto: Annotated[
        Onto,
        Option(
            "Merge onto the weights of a 16-bit BASE, or onto what a quantised BASE or training with one stands for."
        ),
    ] = Onto.auto
    trained_on: Annotated[
        TrainedOn | None,
        Option("How BASE was quantised in training, for --onto dequantized; nested: double quantisation."),
    ] = None
    output: Annotated[
        Output, Option("Of a quantised BASE: write dequantised weights, or quantise them again as they were.")
    ] = Output.dense
    tokenizer: Annotated[
        Tokenizer, Option("Whose tokenizer: the adapter's when it extends the base's, or as told.")
    ] = Tokenizer.auto
    rounding: Annotated[
        Rounding, Option("Rounding of what changes to 16 bits: at random keeps small updates, on average.")
    ] = Rounding.nearest
    seed: Annotated[int | None, Option("Of the random bits of --rounding stochastic. Default: 0.", "N", min=0)] = None
    ignore: Annotated[
        tuple[str, ...], Option("Pass over this rule; a merge allows it for some rules only. May be repeated.", "CODE")
    ] = ()

    def of_bytes(self) -> Options:
        """The library's value, without `ignore`.

        Raises:
            UsageError: a seed where nothing is random.
        """
        if self.seed is not None and self.rounding is Rounding.nearest:
            raise UsageError("--seed is of random bits, and nothing is random", do="Add --rounding stochastic.")
        from suture.values import Options

        dtype = self.dtype.value.upper() if self.dtype else None
        return Options(
            tied=self.tied.value,
            dtype=dtype,
            onto=self.onto.value,
            trained_on=self.trained_on.value if self.trained_on else None,
            output=self.output.value,
            tokenizer=self.tokenizer.value,
            rounding=self.rounding.value,
            seed=self.seed or 0,
        )

    def options(self) -> Options:
        """The library's value.

        Raises:
            UsageError: a code that there is not, or that cannot be ignored; a seed where nothing is random.
        """
        codes = tuple(sorted({code.upper() for code in self.ignore}))
        if codes:
            _check_codes(codes)
        return dataclasses.replace(self.of_bytes(), ignore=codes)


def _check_codes(codes: tuple[str, ...]) -> None:
    from suture.rules import RULES

    allowed = [code for code, rule in RULES.items() if rule.may_ignore]
    for code in codes:
        if code not in allowed:
            found = f"{code} cannot be ignored" if code in RULES else f"there is no rule {code}"
            raise UsageError(found, where="--ignore", expected=f"one of {', '.join(allowed)}")


@dataclass(frozen=True, slots=True)
class Running:
    """How to run; nothing here is part of the plan."""

    workers: Annotated[int | None, Option("Threads. Default: as many as there are cores.", "N", min=1)] = None
    durability: Annotated[
        Durability, Option("full: return when the disk holds every byte. fast: leave that to the system.")
    ] = Durability.full
    verify: Annotated[Thoroughness, Option("Check a sample of the rows of every tensor, or recompute all of them.")] = (
        Thoroughness.sample
    )
    hash: Annotated[Hash, Option("sha256: of every file of OUT, in the receipt. none: of the small ones.")] = (
        Hash.sha256
    )
    hash_inputs: Annotated[bool, Option("Put the sha256 of BASE's weight files into the receipt as well.")] = False
    link: Annotated[
        bool,
        Option("Make files that do not change hard links to BASE's. Whoever changes them in place changes both."),
    ] = False
    max_memory: Annotated[str | None, Option("Stay within, with fewer threads if need be: 500MB, 2GiB.", "SIZE")] = None
    compute_device: Annotated[
        str | None, Option("Compute products with torch on this device: cuda, cuda:1 … Default: here.", "DEVICE")
    ] = None

    def settings(self, announce: Callable[[Plan], None] | None = None) -> Settings:
        """The library's value.

        Raises:
            UsageError: a size that cannot be read.
        """
        from suture.values import Running as Settings

        return Settings(
            workers=self.workers,
            durable=self.durability is Durability.full,
            hashes=self.hash is Hash.sha256,
            hash_inputs=self.hash_inputs,
            link=self.link,
            device=self.compute_device,
            max_memory=None if self.max_memory is None else _bytes(self.max_memory),
            full_verify=self.verify is Thoroughness.full,
            announce=announce,
        )


def _bytes(text: str) -> int:
    """A number of bytes: 500MB, 2GiB, 1.5 G."""
    found = re.fullmatch(r"(\d{1,9}(?:\.\d{1,3})?)\s*([KMGT]?)(i?)B?", text.strip(), re.IGNORECASE)
    if found is None:
        raise UsageError(f"{text!r} is not a size", where="--max-memory", expected="such as 500MB or 2GiB")
    number, unit, binary = found.groups()
    return int(float(number) * (1024 if binary else 1000) ** " KMGT".index(unit.upper() or " "))


@dataclass(frozen=True, slots=True)
class Forward:
    """Comparing the forward passes of the merged and the unmerged model."""

    logits: Annotated[bool, Option("Compare the logits of the merged model with those of base + adapter.")] = False
    prompt: Annotated[tuple[str, ...], Option("Text for --logits. May be repeated.", "TEXT")] = ()
    device: Annotated[str | None, Option("Device for --logits: cpu, cuda, cuda:1 …", "DEVICE")] = None

    def settings(self) -> LogitsSettings | None:
        """The library's value; None without --logits.

        Raises:
            UsageError: --prompt or --device without --logits.
        """
        if not self.logits:
            if self.prompt or self.device:
                raise UsageError("--prompt and --device say how to run --logits", do="Add --logits.")
            return None
        from suture.verification.logits import LogitsSettings

        if not self.prompt:
            return LogitsSettings(device=self.device)
        return LogitsSettings(device=self.device, prompts=self.prompt, n_prompts=len(self.prompt))
