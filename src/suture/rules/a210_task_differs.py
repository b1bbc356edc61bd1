"""# A210 task-differs

## What it finds
An adapter that was trained with the head of a task (a classifier, a reward or value head, the ends of an answer), on a
base whose class has no such head.

## Why it matters
For classification PEFT trains the head in full and saves it with the adapter, as `score.weight`, `classifier.weight`
or `qa_outputs.weight`. The model on the Hub is a language model, and its class has a `lm_head` in that place. The
trained head has nowhere to go; without it the merged model draws a new one at random as it is loaded as a classifier,
and answers by chance.

## How it is detected
From names and config: `task_type` is SEQ_CLS, TOKEN_CLS or QUESTION_ANS, or a tensor of the adapter belongs to a module
called score, classifier, qa_outputs, v_head or value_head (and a few more); and the class that the base's `config.json`
names has no module of that name. M301 names the tensors that found no place.

## How to fix
Save the base as a model of the task first, and merge onto that:
`AutoModelForSequenceClassification.from_pretrained(base, num_labels=…).save_pretrained(folder)`. The number of labels
is that of the rows of the trained head, and the finding names it where the file holds one. The head in there is
random, and the merge replaces it by the trained one. Heads of TRL's value models (`v_head`) belong to no class of
Transformers; they are needed for training only, so merge the adapter without them.

## References
- huggingface/peft#310, huggingface/peft#1070: classification heads and saving
- huggingface/peft#577: a head that was not in the file
- huggingface/sentence-transformers#3980: heads that are left behind
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from suture.rewriting import PREFIX
from suture.rules.base import Case, Rule, listed
from suture.values import Adapter, Finding

HEADS = ("score", "classifier", "classification_head", "qa_outputs", "v_head", "value_head", "reward_head", "summary")
_LAST = re.compile(r"(^|\.)(score|classifier|classification_head)(\.out_proj)?(\.modules_to_save)?\.weight$")
TASKS = {
    "SEQ_CLS": ("AutoModelForSequenceClassification", ("score", "classifier", "classification_head")),
    "TOKEN_CLS": ("AutoModelForTokenClassification", ("classifier", "score")),
    "QUESTION_ANS": ("AutoModelForQuestionAnswering", ("qa_outputs", "score")),
}


def check(case: Case) -> Iterable[Finding]:
    """At most one finding: heads in the adapter, or in its task, that the base's class does not have."""
    if case.arch.source == "headers":
        return
    parts = {part for name in case.arch.params for part in name.split(".")[:-1]}
    strangers = set(case.adapter.tensors) - set(case.resolved.used)
    heads = {part for key in strangers for part in key.removeprefix(PREFIX).split(".")[:-1] if part in HEADS} - parts
    task = str(case.adapter.config.get("task_type"))
    auto, names = TASKS.get(task, ("", ()))
    lacks = bool(names) and not parts & {*names, "logits_proj", "sequence_summary"}
    if not heads and not lacks:
        return
    trained = f"with the head {listed(heads)}" if heads else f"for the task {task}"
    named = f", for the task {task}" if heads and auto else ""
    yield RULE.finding(
        "config.json: architectures",
        f"the adapter was trained {trained}{named}; the base's class {case.arch.model_class} has no such head",
        "a base of the class that was trained",
        _do(auto, heads, _n_labels(case.adapter)),
    )


def _n_labels(adapter: Adapter) -> int | None:
    """Rows of the classifier's last matrix; None where the file does not hold it in full."""
    shapes = [t.shape for key, t in adapter.tensors.items() if _LAST.search(key) and len(t.shape) == 2]
    return shapes[0][0] if len({shape[0] for shape in shapes}) == 1 else None


def _do(auto: str, heads: set[str], n_labels: int | None) -> str:
    if heads and heads <= {"v_head", "value_head"}:
        return "A value head is needed for training only: remove its tensors from the file, and merge the rest."
    auto = auto or "AutoModelForSequenceClassification"
    counts = f", num_labels={n_labels}" if n_labels else ""
    load = f"{auto}.from_pretrained(base{counts}).save_pretrained(folder)"
    return f"Save the base as that class first, {load}, and merge onto it."


RULE = Rule("A210", "task-differs", "error", check, modes=("F35", "F11"))
