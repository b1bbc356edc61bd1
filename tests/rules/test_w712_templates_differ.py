"""W712: a chat template in two places."""

from __future__ import annotations

import pytest
from model_cases import edit, found, only
from tiny import TEMPLATE


@pytest.mark.parametrize("template", ["other", [{"name": "default", "template": "other"}]])
def test_two_texts(with_tokenizer, template):
    edit(with_tokenizer / "tokenizer_config.json", lambda c: c.update(chat_template=template))
    finding = only(with_tokenizer, "W712")
    assert (finding.severity, finding.where) == ("warning", "tokenizer_config.json: chat_template")


def test_a_processors_file(with_tokenizer):
    edit(with_tokenizer / "chat_template.json", lambda c: c.update(chat_template="other"))
    assert only(with_tokenizer, "W712").where == "chat_template.json: chat_template"


def test_the_same_text_twice(with_tokenizer):
    edit(with_tokenizer / "tokenizer_config.json", lambda c: c.update(chat_template=TEMPLATE + "\n"))
    assert not found(with_tokenizer, "W712")


def test_only_named_templates(with_tokenizer):
    edit(with_tokenizer / "tokenizer_config.json", lambda c: c.update(chat_template=[{"name": "rag", "template": "x"}]))
    assert not found(with_tokenizer, "W712")
