"""# A214 alpha-unusual

## What it finds
An alpha in the adapter's config (`lora_alpha`, or a value of `alpha_pattern`) that is zero or negative, or a config
without `lora_alpha`.

## Why it matters
Every update is multiplied by alpha / r. With zero, the adapter does nothing in these modules; with a negative number
the merge moves the weights away from what was learned. Neither is a setting that anyone trains with: such numbers
come from an edited config, or from a tool that looked the scale up and did not find it. Where the number is missing,
PEFT takes 8, whatever it was in training; it always writes the field itself.

## How it is detected
From `adapter_config.json`.

## How to fix
Put back the alpha of the training run. If the adapter is to be taken out of a model on purpose, go on: this is a
warning.

## References
- unslothai/unsloth#2966, unslothai/unsloth-zoo#806: a scale that is not found and becomes zero
"""

from __future__ import annotations

from collections.abc import Iterable

from suture.rules.base import Case, Rule
from suture.values import Finding


def check(case: Case) -> Iterable[Finding]:
    """One finding for each alpha that is not positive, and one if there is none."""
    config = case.adapter.config
    if config.get("lora_alpha") is None:
        yield RULE.finding(
            "adapter_config.json: lora_alpha",
            "it is missing, and 8 is taken instead",
            "the alpha of the training run, as PEFT writes it",
            "Put the field back: every update is scaled by alpha / r.",
        )
    alphas = {"lora_alpha": config.get("lora_alpha")}
    alphas |= {f"alpha_pattern: {key}": alpha for key, alpha in (config.get("alpha_pattern") or {}).items()}
    for field, alpha in alphas.items():
        if isinstance(alpha, (int, float)) and alpha <= 0:
            effect = "nothing is added to these modules" if alpha == 0 else "updates are subtracted"
            yield RULE.finding(
                f"adapter_config.json: {field}",
                f"alpha is {alpha}: {effect}",
                "a positive number",
                "Put back the alpha that the adapter was trained with.",
            )


RULE = Rule("A214", "alpha-unusual", "warning", check, modes=("F61",))
