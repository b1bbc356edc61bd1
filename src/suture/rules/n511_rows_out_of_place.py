"""# N511 rows-out-of-place

## What it finds
Trained rows of the vocabulary that do not belong to the base's rows of the same numbers: all zero, in another order,
shifted by some tokens, stored as differences, or those of another model.

## Why it matters
Row 17 of an embedding is token 17. A whole matrix in the adapter, or a list of trained tokens, takes the place of the
base's rows, so a wrong order or a wrong content goes straight into the model: the merge is right, and every such token
means something else. It comes from an edited `trainable_token_indices`, from a tool that stores what was added instead
of the rows themselves (the name `trainable_tokens_delta` invites it: PEFT keeps whole rows under it), from zeros that a
sharded save left behind, or from a base with another vocabulary of the same size.

## How it is detected
With `check --deep`, for rows that the base has too: training moves a row, but seldom so far that nothing is left of
where it began. Of a whole matrix, 128 rows are compared with the base's by their direction, seen from the mean of the
rows. It is odd if more than half of them are nearer to another row of the base than to their own, and the cosine with
their own is below 0.15 in the median. Of a list, up to 32 tokens are compared by their distance. It is odd if half of
them are less than half as far from another row (of the list, up to eight rows away, or of a sample) as from their own.
Either is odd if its rows are shorter than a third of the base's in the median. An all-zero matrix of any module is told
without looking at the base. Only a fact about most rows is told: a few that were made anew are nothing special.

On a 135M model the cosine was 0.996 or more after sixty steps at 1e-3, with every row nearest to its own; with rows in
another order it was below 0.03. In a tiny model with random values, trained for 300 steps at 1e-2 until its rows were
fourteen times as long as before, it was still 0.21. Two versions of one model have nearly the same rows: this rule
cannot tell them apart.

## How to fix
Take the adapter and its config as the trainer saved them, and the base that it was trained on. If you made the rows
anew on purpose, for a new tokenizer, nothing is wrong.

## References
- huggingface/peft#2399, huggingface/peft#2863: trained tokens, and which rows they are
- vllm-project/vllm#36501: trained tokens are rows that replace, not differences
- huggingface/peft#2450: matrices that sharded training did not save whole
"""

from __future__ import annotations

from collections.abc import Iterable

from suture.measures import Places
from suture.rules.base import Case, Rule, listed
from suture.values import Finding

ENOUGH = 16  # of fewer rows of a matrix, a few may be unlike by chance
HALF = 0.5
UNLIKE = 0.15
SHORT = 1 / 3


def check(case: Case) -> Iterable[Finding]:
    """One finding for all matrices of zeros, and one for each other tensor whose rows are out of place."""
    full = {
        u.replacement.name for u in case.resolved.updates.values() if u.replacement and len(u.replacement.shape) > 1
    }
    zero = {name for name in full if case.stats and name in case.stats and not case.stats[name].n_nonzero}
    zero -= {name for name in zero if case.stats and (case.stats[name].n_nan or case.stats[name].n_inf)}
    if zero:
        yield RULE.finding(
            f"{case.adapter.file}: {listed(zero)}",
            f"{len(zero)} {'matrix' if len(zero) == 1 else 'matrices'} to take the place of the base's: all zero",
            "values that training has moved",
            "The file was not saved whole: save the adapter again, or take an earlier checkpoint.",
        )
    for seen in case.measures.places if case.measures else ():
        if seen.tensor not in zero and (what := _oddity(seen)):
            yield RULE.finding(
                f"{case.adapter.file}: {seen.tensor}",
                what,
                "rows near those that training began with",
                "Use the adapter's own trainable_token_indices and the base that it was trained on; a file whose rows"
                " are differences has to be saved again, as whole rows.",
            )


def _oddity(seen: Places) -> str:
    """What is odd about these rows, or nothing."""
    if seen.is_whole and seen.n_looked_at < ENOUGH:
        return ""
    n, astray = f"{seen.n_looked_at:,}", f"{seen.n_astray:,}"
    if 0 < seen.length < SHORT:
        return (
            f"the {n} rows looked at are far shorter than the base's: in the median {seen.length:.2g} of their length"
        )
    is_most = seen.n_astray > HALF * seen.n_looked_at
    if seen.cosine is not None and is_most and seen.cosine < UNLIKE:
        return (
            f"{astray} of {n} rows are nearer to another row of the base than to their own; the cosine with their own"
            f" is {seen.cosine:.2f} in the median"
        )
    if not seen.is_whole and seen.n_astray >= HALF * seen.n_looked_at:
        return f"{astray} of {n} rows are much nearer to another row of the base than to their own"
    return ""


RULE = Rule("N511", "rows-out-of-place", "warning", check, deep=True, modes=("F06", "F12", "F28"))
