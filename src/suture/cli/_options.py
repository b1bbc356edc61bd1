"""The options that commands share, in groups. A group turns into the library's value of the same meaning."""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from suture.errors import UsageError

if TYPE_CHECKING:
    from suture.pipeline import Reading
    from suture.values import Options
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


class Tokenizer(StrEnum):
    """--tokenizer"""

    auto = "auto"
    base = "base"
    adapter = "adapter"


class Durability(StrEnum):
    """--durability"""

    full = "full"
    fast = "fast"


class Thoroughness(StrEnum):
    """--verify"""

    sample = "sample"
    full = "full"


BaseArgument = Annotated[str, typer.Argument(metavar="BASE", help="Base model: a folder or a Hub id.")]
_Adapter = typer.Argument(metavar="ADAPTER", help="LoRA adapter: a folder or a Hub id.", show_default=False)
AdapterArgument = Annotated[str, _Adapter]
OptionalAdapter = Annotated[str | None, _Adapter]
OutOption = Annotated[
    Path, typer.Option("--out", "-o", metavar="OUT", help="Folder for the merged model; must be new or empty.")
]
MergedArgument = Annotated[Path, typer.Argument(metavar="MERGED", help="Folder of the merged model, of any tool.")]


SubjectArgument = Annotated[
    str, typer.Argument(metavar="BASE", help="Base model (folder or Hub id); or, alone, a finished model or a run.")
]


@dataclass(frozen=True, slots=True)
class Forms:
    """In which form a command tells findings, beside text and --json."""

    sarif: Annotated[bool, typer.Option("--sarif", help="Print SARIF 2.1.0, which code hosts read.")] = False
    github: Annotated[bool, typer.Option("--github", help="Print annotations for a GitHub workflow.")] = False


@dataclass(frozen=True, slots=True)
class Pair:
    """The two sides."""

    base: BaseArgument
    adapter: AdapterArgument


@dataclass(frozen=True, slots=True)
class Sources:
    """How to read the two sides."""

    adapter_name: Annotated[
        str | None, typer.Option(metavar="NAME", help="Which adapter, where ADAPTER holds several.")
    ] = None
    revision: Annotated[str | None, typer.Option(metavar="REV", help="Branch, tag or commit of BASE on the Hub.")] = (
        None
    )
    adapter_revision: Annotated[
        str | None, typer.Option(metavar="REV", help="Branch, tag or commit of ADAPTER on the Hub.")
    ] = None
    allow_pickle: Annotated[
        bool, typer.Option("--allow-pickle", help="Read tensors of .bin files too; their code is never run.")
    ] = False
    offline: Annotated[bool, typer.Option("--offline", help="Use what is on this disk; never ask the Hub.")] = False

    def reading(self) -> Reading:
        """The library's value. With --offline the Hub's client, not imported yet, is told to stay offline."""
        if self.offline:
            os.environ["HF_HUB_OFFLINE"] = "1"
        from suture.pipeline import Reading

        return Reading(self.revision, self.adapter_revision, self.adapter_name, self.allow_pickle)


@dataclass(frozen=True, slots=True)
class Choices:
    """What may be chosen about the bytes of a merge."""

    tied: Annotated[
        Tied, typer.Option(help="Tied parameters: separate them when needed, always, never, or refuse to.")
    ] = Tied.auto
    dtype: Annotated[Dtype | None, typer.Option(help="Type of all float tensors. Default: as in BASE.")] = None
    tokenizer: Annotated[
        Tokenizer, typer.Option(help="Whose tokenizer: the adapter's when it extends the base's, or as told.")
    ] = Tokenizer.auto
    ignore: Annotated[
        list[str] | None,
        typer.Option(
            metavar="CODE", help="Pass over this rule; a merge allows it for some rules only. May be repeated."
        ),
    ] = None

    def of_bytes(self) -> Options:
        """The library's value, without `ignore`."""
        from suture.values import Options

        dtype = self.dtype.value.upper() if self.dtype else None
        return Options(tied=self.tied.value, dtype=dtype, tokenizer=self.tokenizer.value)

    def options(self) -> Options:
        """The library's value.

        Raises:
            UsageError: a code that there is not, or that cannot be ignored.
        """
        codes = tuple(sorted({code.upper() for code in self.ignore or ()}))
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
    """How to run a merge; nothing here changes a byte of the model."""

    workers: Annotated[int | None, typer.Option(min=1, help="Threads. Default: as many as there are cores.")] = None
    durability: Annotated[
        Durability, typer.Option(help="full: return when the disk holds every byte. fast: leave that to the system.")
    ] = Durability.full
    verify: Annotated[
        Thoroughness, typer.Option(help="Check a sample of the rows of every tensor, or recompute all of them.")
    ] = Thoroughness.sample


@dataclass(frozen=True, slots=True)
class Forward:
    """Whether and how to compare the forward passes of the merged and the unmerged model."""

    logits: Annotated[
        bool, typer.Option("--logits", help="Compare the logits of the merged model with those of base + adapter.")
    ] = False
    prompt: Annotated[list[str] | None, typer.Option(help="Text for --logits. May be repeated.")] = None
    device: Annotated[str | None, typer.Option(help="Device for --logits: cpu, cuda, cuda:1 …")] = None

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
        return LogitsSettings(device=self.device, prompts=tuple(self.prompt), n_prompts=len(self.prompt))
