"""Data: what is learnt is exactly the answers, what is left out is said, and packing changes nothing but the speed."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow
import pytest
import transformers
from pyarrow import parquet
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from suture.errors import FormatError, InputError
from suture.training.config import DataConfig
from suture.training.data import IGNORED, Example, prepare, templated

CHATML = (
    "{% if tools %}<|im_start|>tools\n{{ tools[0].name }}<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
MARKED = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}{% generation %}{{ m.content }}"
    "END{% endgeneration %}{% else %}{{ m.content }}<|im_end|>{% endif %}{{ '\n' }}{% endfor %}"
)
# Forgets what earlier answers thought: the beginning of a conversation renders otherwise than the whole.
FORGETFUL = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content if loop.last else m.content.split('>')[-1] }}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPECIAL = ["<pad>", "<s>", "</s>", "<|im_start|>", "<|im_end|>"]
MERGES = [("Ġ", "4"), ("h", "i"), ("Ċ", "Ċ")]


def make_tokenizer(template: str | None = CHATML, *, bos: bool = False) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer with three merges: " 4", "hi" and two line feeds."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate([*SPECIAL, *letters, *(a + b for a, b in MERGES)])}
    inner = Tokenizer(models.BPE(vocabulary, MERGES))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    if bos:
        inner.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="<|im_end|>",
        extra_special_tokens=["<|im_start|>", "</s>"],
    )
    tokenizer.chat_template = template
    return tokenizer


def turn(*contents: str) -> list[dict[str, str]]:
    """A conversation that the user begins."""
    return [{"role": ("user", "assistant")[i % 2], "content": content} for i, content in enumerate(contents)]


def lines(folder: Path, rows: Sequence[Mapping[str, Any]], name: str = "train.jsonl") -> str:
    path = folder / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def settings(train: str, **changes: Any) -> DataConfig:
    return DataConfig(**{"train": train, "eval_share": 0.0, **changes})


def learnt(example: Example, tokenizer: Any) -> list[str]:
    """The texts of the stretches on which the loss counts."""
    stretches: list[list[int]] = [[]]
    for token, label in zip(example.input_ids.tolist(), example.labels.tolist(), strict=True):
        if label == IGNORED:
            stretches.append([])
        else:
            assert label == token
            stretches[-1].append(token)
    return [tokenizer.decode(stretch) for stretch in stretches if stretch]


# -------------------------------------------------------------------------------------------------------- conversations


def test_the_loss_counts_on_answers_and_their_end(tmp_path):
    tokenizer = make_tokenizer()
    messages = [{"role": "system", "content": "be brief"}, *turn("hi", "héllo 4", "more", "bye ☃")]
    prepared = prepare(settings(lines(tmp_path, [{"messages": messages}])), tokenizer, 0)
    (example,) = prepared.train
    assert prepared.format == "chat"
    assert learnt(example, tokenizer) == ["héllo 4<|im_end|>", "bye ☃<|im_end|>"]
    assert example.input_ids.tolist() == tokenizer.apply_chat_template(messages)["input_ids"]
    assert example.n_counted == int((example.labels != IGNORED).sum())
    assert example.starts == (0,)


def test_the_loss_can_count_on_everything(tmp_path):
    data = lines(tmp_path, [{"messages": turn("hi", "ho")}])
    (example,) = prepare(settings(data, loss_on="all"), make_tokenizer(), 0).train
    assert example.labels.tolist() == [IGNORED, *example.input_ids[1:].tolist()]


def test_markers_and_prefixes_agree(tmp_path):
    data = lines(tmp_path, [{"messages": turn("hi", "a 4", "x\n", "\nb")}, {"messages": turn("q", "a")}])
    plain = prepare(settings(data), make_tokenizer(), 0)
    marked = prepare(settings(data), make_tokenizer(MARKED.replace("END", "<|im_end|>")), 0)
    unended = MARKED.replace("END{% endgeneration %}", "{% endgeneration %}<|im_end|>")
    outside = prepare(settings(data), make_tokenizer(unended), 0)
    assert plain.sha256 == marked.sha256 == outside.sha256
    assert [note for note in outside.notes if "marked without the token that ends them" in note]
    assert not [note for note in (*plain.notes, *marked.notes) if "ends them" in note]


def test_a_template_may_end_the_last_message_with_the_end_of_the_text(tmp_path):
    template = CHATML.replace("<|im_end|>", "</s>") + "{% if not add_generation_prompt %}{{ eos_token }}{% endif %}"
    tokenizer = make_tokenizer(template)
    (example,) = prepare(settings(lines(tmp_path, [{"messages": turn("q", "a", "r", "b")}])), tokenizer, 0).train
    assert learnt(example, tokenizer) == ["a</s>", "b</s>\n<|im_end|>"]


def test_an_answer_that_the_template_leaves_out_is_named(tmp_path):
    parts = CHATML.replace("{{ m.content }}", "{% for part in m.content %}{{ part.text }}{% endfor %}")
    data = lines(tmp_path, [{"messages": turn("q", "a")}])
    with pytest.raises(InputError, match="row 1: what message 2 says is not in the text"):
        prepare(settings(data), make_tokenizer(parts), 0)
    typed = [{"role": role, "content": [{"type": "text", "text": role}]} for role in ("user", "assistant")]
    tokenizer = make_tokenizer(parts)
    (example,) = prepare(settings(lines(tmp_path, [{"messages": typed}])), tokenizer, 0).train
    assert learnt(example, tokenizer) == ["assistant<|im_end|>"]


def test_an_answer_that_never_ends_is_told(tmp_path):
    data = lines(tmp_path, [{"messages": turn("q", "a")}])
    notes = prepare(settings(data), make_tokenizer(CHATML.replace("<|im_end|>", "")), 0).notes
    assert [note for note in notes if "does not learn to stop" in note]


def test_the_config_names_another_template(tmp_path):
    (tmp_path / "t.jinja").write_text(CHATML, encoding="utf-8")
    data, tokenizer = lines(tmp_path, [{"messages": turn("q", "a")}]), make_tokenizer(None)
    with pytest.raises(InputError, match="no chat template"):
        prepare(settings(data), tokenizer, 0)
    named = settings(data, template=tmp_path / "t.jinja")
    own = prepare(named, templated(named, tokenizer), 0)
    assert own.sha256 == prepare(settings(data), make_tokenizer(), 0).sha256
    assert tokenizer.chat_template is None
    with pytest.raises(InputError, match="cannot be read"):
        templated(settings(data, template=tmp_path / "no.jinja"), tokenizer)


def test_a_template_that_hides_its_answers_is_refused_unless_trl_knows_it(tmp_path):
    from trl.chat_template_utils import qwen3_chat_template

    data = lines(tmp_path, [{"messages": turn("q", "<think>why</think>a", "r", "b")}])
    with pytest.raises(InputError, match="answers cannot be told from the rest"):
        prepare(settings(data), make_tokenizer(FORGETFUL), 0)
    assert prepare(settings(data, loss_on="all"), make_tokenizer(FORGETFUL), 0).train
    tokenizer = make_tokenizer(qwen3_chat_template)
    prepared = prepare(settings(data), tokenizer, 0)
    first, second = learnt(prepared.train[0], tokenizer)
    assert first == "<think>\nwhy\n</think>\n\na<|im_end|>"
    assert second.endswith("b<|im_end|>")
    assert [note for note in prepared.notes if "renders 1 of 1 conversations differently" in note]


def test_tools_and_empty_keys_reach_the_template(tmp_path):
    tool = {"name": "look", "description": "d", "parameters": {}}
    messages = [{**message, "tool_calls": None} for message in turn("q", "a")]
    rows = [{"messages": messages, "tools": tools} for tools in ([tool], json.dumps([tool]))]
    seen = CHATML.replace("{{ m.role }}", "{{ m.role + ('!' if m.tool_calls is defined else '') }}")
    tokenizer = make_tokenizer(seen)
    one, two = prepare(settings(lines(tmp_path, rows)), tokenizer, 0).train
    assert one.input_ids.tolist() == two.input_ids.tolist()
    text = tokenizer.decode(one.input_ids)
    assert text.startswith("<|im_start|>tools\nlook<|im_end|>")
    assert "!" not in text


def test_a_template_that_writes_the_date_writes_the_same_every_day(tmp_path):
    data = lines(tmp_path, [{"messages": turn("q", "a")}])
    tokenizer = make_tokenizer("{{ strftime_now('%d %b %Y') }}\n" + CHATML)
    prepared = prepare(settings(data), tokenizer, 0)
    assert tokenizer.decode(prepared.train[0].input_ids).startswith("26 Jul 2024\n<|im_start|>")
    assert [note for note in prepared.notes if "today's date" in note]


def test_conversations_that_the_template_refuses_are_named(tmp_path):
    strict = "{% if messages[0].role != 'user' %}{{ raise_exception('user first') }}{% endif %}" + CHATML
    rows = [{"messages": turn("q", "a")}, {"messages": [{"role": "system", "content": "s"}, *turn("q", "a")]}]
    with pytest.raises(InputError, match=r"refuses 1 of 2 conversations\n  row 2: user first"):
        prepare(settings(lines(tmp_path, rows)), make_tokenizer(strict), 0)


# ----------------------------------------------------------------------------------------------------- prompts and text


def test_completions_are_learnt_with_their_end(tmp_path):
    tokenizer = make_tokenizer(bos=True)
    rows = [{"prompt": "Q: hi\nA:", "completion": " yes"}, {"prompt": "", "completion": "free"}]
    one, two = prepare(settings(lines(tmp_path, rows)), tokenizer, 0).train
    assert one.input_ids.tolist() == [*tokenizer("Q: hi\nA: yes")["input_ids"], tokenizer.eos_token_id]
    assert learnt(one, tokenizer) == [" yes<|im_end|>"]
    assert learnt(two, tokenizer) == ["free<|im_end|>"]
    assert two.input_ids[0] == tokenizer.bos_token_id


def test_no_token_spans_the_border_to_the_completion(tmp_path):
    tokenizer = make_tokenizer()
    data = lines(tmp_path, [{"prompt": "2+2= ", "completion": "4"}, {"prompt": "2+2=", "completion": " 4"}])
    prepared = prepare(settings(data), tokenizer, 0)
    assert [learnt(example, tokenizer) for example in prepared.train] == [["4<|im_end|>"], [" 4<|im_end|>"]]
    assert prepared.train[0].input_ids[:-2].tolist() == tokenizer("2+2= ")["input_ids"]  # what inference begins with
    assert [note for note in prepared.notes if note.startswith("1 completions were tokenised apart")]


def test_text_counts_in_full(tmp_path):
    tokenizer = make_tokenizer()
    (example,) = prepare(settings(lines(tmp_path, [{"body": "abc"}]), fields={"text": "body"}), tokenizer, 0).train
    assert tokenizer.decode(example.input_ids) == "abc<|im_end|>"
    assert learnt(example, tokenizer) == ["bc<|im_end|>"]  # nothing predicts the first token


# ---------------------------------------------------------------------------------------------------------- what is cut


def test_long_examples_are_cut_dropped_or_refused(tmp_path):
    data, tokenizer = lines(tmp_path, [{"text": "a" * n} for n in (3, 12, 9)]), make_tokenizer()
    cut = prepare(settings(data, max_length=8), tokenizer, 0)
    assert [len(example.input_ids) for example in cut.train] == [4, 8, 8]
    assert "train: 2 of 3 examples were cut to 8 tokens; 7 tokens lost" in cut.notes
    dropped = prepare(settings(data, max_length=8, too_long="drop"), tokenizer, 0)
    assert [len(example.input_ids) for example in dropped.train] == [4]
    assert "train: 2 of 3 examples with more than 8 tokens were dropped" in dropped.notes
    with pytest.raises(InputError, match="2 of 3 examples have more than 8 tokens, the first in row 2"):
        prepare(settings(data, max_length=8, too_long="refuse"), tokenizer, 0)
    assert len(prepare(settings(data, max_length=13, too_long="refuse"), tokenizer, 0).train) == 3


def test_an_example_without_anything_to_learn_is_dropped(tmp_path):
    tokenizer = make_tokenizer()
    data = lines(tmp_path, [{"prompt": "p" * 9, "completion": "c"}, {"prompt": "p", "completion": "c"}])
    prepared = prepare(settings(data, max_length=9), tokenizer, 0)
    assert [learnt(example, tokenizer) for example in prepared.train] == [["c<|im_end|>"]]
    assert "train: 1 of 2 examples were dropped: no token within 9 counts" in prepared.notes
    with pytest.raises(InputError, match="none of 1 examples has a token to learn"):
        prepare(settings(lines(tmp_path, [{"prompt": "p" * 9, "completion": "c"}]), max_length=9), tokenizer, 0)


def test_the_split_follows_the_seed(tmp_path):
    data, tokenizer = lines(tmp_path, [{"text": f"text {n}"} for n in range(40)]), make_tokenizer()

    def texts(examples: Sequence[Example]) -> list[str]:
        return [tokenizer.decode(example.input_ids) for example in examples]

    one, again, other = (prepare(settings(data, eval_share=0.1), tokenizer, seed) for seed in (1, 1, 2))
    assert (len(one.train), len(one.eval)) == (36, 4)
    assert sorted(texts(one.train) + texts(one.eval)) == sorted(f"text {n}<|im_end|>" for n in range(40))
    assert one.sha256 == again.sha256 != other.sha256
    assert texts(one.eval) != texts(other.eval)
    assert len(prepare(settings(data, eval_share=0.001), tokenizer, 0).eval) == 1
    held = lines(tmp_path, [{"text": "e"}], "e.jsonl")
    given = prepare(settings(data, eval=held, eval_share=0.5), tokenizer, 0)
    assert (len(given.train), texts(given.eval)) == (40, ["e<|im_end|>"])


def test_examples_that_are_in_both_sets_are_told(tmp_path):
    data = lines(tmp_path, [{"text": "a"}, {"text": "b"}])
    held = lines(tmp_path, [{"text": "b"}, {"text": "c"}], "eval.jsonl")
    notes = prepare(settings(data, eval=held), make_tokenizer(), 0).notes
    assert "eval: 1 of 2 examples are in train as well, word for word" in notes


def test_the_digest_sees_labels_order_and_set(tmp_path):
    rows = [{"prompt": "pp", "completion": "c"}, {"prompt": "qq", "completion": "d"}]
    data, turned = lines(tmp_path, rows), lines(tmp_path, rows[::-1], "turned.jsonl")
    first, second = (lines(tmp_path, [row], f"{i}.jsonl") for i, row in enumerate(rows))
    variants = [settings(data), settings(data, loss_on="all"), settings(turned), settings(first, eval=second)]
    assert len({prepare(variant, make_tokenizer(), 0).sha256 for variant in variants}) == 4


# -------------------------------------------------------------------------------------------------------------- reading


def test_all_kinds_of_files_hold_the_same(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    rows = [{"messages": turn("q", f"a{n}", "r", "b")} for n in range(3)]
    source = lines(tmp_path, rows)
    (tmp_path / "list.json").write_text(json.dumps(rows), encoding="utf-8")
    (tmp_path / "lines.json").write_text(Path(source).read_text().replace("\n", "\n\n"), encoding="utf-8")
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "t.parquet")
    (tmp_path / "folder").mkdir()
    lines(tmp_path / "folder", rows)
    names = [source, *(str(tmp_path / name) for name in ("list.json", "lines.json", "t.parquet", "folder"))]
    assert len({prepare(settings(name), make_tokenizer(), 0).sha256 for name in names}) == 1


@pytest.mark.parametrize(
    ("text", "where", "said"),
    [
        ('{"text": "a"}\n{"text": }\n', ", line 2", "not JSON at column 10"),
        ('{"text": "a"}\n\n[1]\n', "", "row 3: not an object"),
        ("3\n", "", "row 1 is not an object"),
        ("\n", "", "no examples"),
        ('{"conversations": []}\n', "", "no known columns; it has 'conversations'"),
        ('{"text": "a"}\n{"txt": "a"}\n', "", "1 of 2 rows cannot be used\n  row 2: no value in the column 'text'"),
        ('{"text": ""}\n', "", "row 1: the text to learn is empty"),
        ('{"prompt": "a", "completion": 4}\n', "", "row 1: 'completion' is not text"),
        ('{"messages": []}\n', "", "row 1: the messages are not a list with at least one message"),
        ('{"messages": [{"role": "user", "content": "x"}]}\n', "", "row 1: no answer"),
        ('{"messages": [{"from": "human", "value": "x"}]}\n', "", "message 1 has no role (from/value"),
        ('{"messages": [{"role": "user"}]}\n', "", "message 1 (user) has no content"),
        ('{"messages": [{"role": "user", "content": 3}]}\n', "", "the content of message 1 is not text"),
        ('{"messages": [{"role": "assistant", "content": "x"}], "tools": "{"}\n', "", "the tools are not JSON"),
        ('{"text": 1}\n' * 7, "", "row 5: 'text' is not text\n  … and 2 more"),
    ],
)
def test_bad_rows_are_named(tmp_path, text, where, said):
    path = tmp_path / "train.jsonl"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(InputError) as caught:
        prepare(settings(str(path)), make_tokenizer(), 0)
    assert said in caught.value.found
    assert caught.value.where == f"{path}{where}"


def test_what_cannot_be_read_is_an_error_without_traceback(tmp_path):
    (tmp_path / "t.parquet").write_bytes(b"PAR1")
    (tmp_path / "t.jsonl").write_bytes(b'{"text": "\xff"}')
    (tmp_path / "empty").mkdir()
    cases = {"t.parquet": "not Parquet", "t.jsonl": "not UTF-8", "no.json": "no such file", "empty": "cannot be read"}
    for name, said in cases.items():
        with pytest.raises(InputError, match=said):
            prepare(settings(str(tmp_path / name)), make_tokenizer(), 0)
    with pytest.raises(InputError, match="the data set cannot be read"):
        prepare(settings("nobody/has-this"), make_tokenizer(), 0)
    with pytest.raises(FormatError):
        prepare(settings(str(tmp_path / "t.parquet")), make_tokenizer(), 0)


def test_packed_data_is_the_same_data_in_fewer_rows(tmp_path):
    data, tokenizer = lines(tmp_path, [{"text": "a" * (n % 7 + 1)} for n in range(20)]), make_tokenizer()
    loose, packed = (prepare(settings(data, packing=packing, max_length=16), tokenizer, 3) for packing in (False, True))
    assert len(packed.train) < len(loose.train)
    assert sum(e.n_counted for e in packed.train) == sum(e.n_counted for e in loose.train)
    assert [
        note for note in packed.notes if note.startswith(f"train: 20 examples packed into {len(packed.train)} rows")
    ]
    assert packed.sha256 == prepare(settings(data, packing=True, max_length=16), tokenizer, 3).sha256 != loose.sha256


@pytest.mark.slow
def test_a_real_tokenizer_learns_to_answer_and_to_stop(tmp_path):
    folder = Path.home() / ".cache/suture/models/SmolLM2-135M-Instruct"
    if not folder.is_dir():
        pytest.skip("the model is not in the cache")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    rows = [{"messages": turn("What is 2+2?", "\n4, I think: ☃", "Sure?", " Yes.")}, {"messages": turn("hi", "ho")}]
    one, two = prepare(settings(lines(tmp_path, rows)), tokenizer, 0).train
    assert learnt(one, tokenizer) == ["\n4, I think: ☃<|im_end|>", " Yes.<|im_end|>"]
    assert learnt(two, tokenizer) == ["ho<|im_end|>"]
    assert one.input_ids.tolist() == tokenizer.apply_chat_template(rows[0]["messages"])["input_ids"]
