"""# A211 second-stage

## What it finds
Signs beside the adapter that it was trained on top of another adapter, or on a model that was merged before, and not on
the base that its config names.

## Why it matters
In training by stages (first examples, then preferences) the second adapter starts from base plus first adapter. Many
trainers merge the first one in memory and save only the second, and its config still names the original base. Merged
onto that base, the second stage corrects a model that is not there: what the first stage taught is missing.

## How it is detected
From the small text files in the adapter's folder; names are compared by their last part, in lower case, and a
quantised copy counts as its original. Only values of one line are read, and of lists those with one element.
- The front matter of `README.md` names another `base_model` than `adapter_config.json`.
- The Axolotl config in `README.md` names another `base_model`.
- A YAML file of LLaMA-Factory lists several adapters in `adapter_name_or_path` (all but the last are merged before
  training), or one of them with `create_new_adapter: true`.

An adapter that was loaded and trained further (`lora_model_dir` of Axolotl, or a single `adapter_name_or_path`) is an
info: the new file contains the old one, unless the trainer was told to start another.

## How to fix
Merge in the order of training: first adapter onto the base, then this one onto the result. If the first adapter was
only trained further, there is nothing to do.

## References
- hiyouga/LLaMA-Factory#2588, hiyouga/LLaMA-Factory#2031: several adapters in order
- huggingface/trl#4713: a trainer that merged the user's adapter and did not save the base
- huggingface/alignment-handbook#78: which base a second stage has
"""

from __future__ import annotations

from collections.abc import Iterable

from suture.beside import AXOLOTL, README
from suture.rules.a204_base_differs import QUANTIZED, short_name
from suture.rules.base import Case, Rule
from suture.values import Finding

EXPECTED = "the base that the adapter's config names, with nothing merged into it"
DO = "Merge in the order of training: the earlier adapter first, and this one onto the result."
NOTHING = ("null", "~", "", "false", "none")


def check(case: Case) -> Iterable[Finding]:
    """One finding for each sign."""
    for where, found in _bases(case):
        yield RULE.finding(where, found, EXPECTED, DO)
    for where, names, was_merged in _adapters(case):
        if was_merged:
            found = f"before this adapter was trained, another one was merged into the base: {names}"
            yield RULE.finding(where, found, EXPECTED, DO)
        else:
            found = f"training went on from an adapter: {names}"
            do = "Nothing, if that adapter was trained further: this file contains it. Else merge it first."
            yield RULE.finding(where, found, "", do, severity="info")


def _bases(case: Case) -> Iterable[tuple[str, str]]:
    """Files that name another base than the config."""
    ours = case.adapter.config.get("base_model_name_or_path")
    if not isinstance(ours, str) or not ours.strip():
        return
    for file in (README, AXOLOTL):
        theirs = case.beside.settings.get(file, {}).get("base_model")
        if isinstance(theirs, str) and theirs.lower() not in NOTHING and _plain(theirs) != _plain(ours):
            yield f"{file}: base_model", f"it is {theirs}, while adapter_config.json names {ours}"


def _plain(name: str) -> str:
    return QUANTIZED.sub("", short_name(name))


def _adapters(case: Case) -> Iterable[tuple[str, str, bool]]:
    """Trainers' settings that load adapters before training: place, names, and whether they went into the base."""
    for file, settings in sorted(case.beside.settings.items()):
        field = "lora_model_dir" if file == AXOLOTL else "adapter_name_or_path"
        names = str(settings.get(field) or "").strip()
        if file != README and names.lower() not in NOTHING:
            starts_anew = str(settings.get("create_new_adapter")).lower() == "true"
            yield f"{file}: {field}", names, "," in names or starts_anew


RULE = Rule("A211", "second-stage", "warning", check, modes=("F07",))
