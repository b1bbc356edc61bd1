"""W712: a chat template in two places."""

from __future__ import annotations

import pytest
from model_cases import copied, edit, found, only
from tiny import TEMPLATE, make_base


@pytest.fixture(scope="module")
def base(tmp_path_factory, quiet_torch):
    return make_base(tmp_path_factory.mktemp("base") / "base")


@pytest.fixture
def folder(base, tmp_path):
    return copied(base, tmp_path / "model")


@pytest.mark.parametrize("template", ["other", [{"name": "default", "template": "other"}]])
def test_two_texts(folder, template):
    edit(folder / "tokenizer_config.json", lambda c: c.update(chat_template=template))
    finding = only(folder, "W712")
    assert (finding.severity, finding.where) == ("warning", "tokenizer_config.json: chat_template")


def test_a_processors_file(folder):
    edit(folder / "chat_template.json", lambda c: c.update(chat_template="other"))
    assert only(folder, "W712").where == "chat_template.json: chat_template"


def test_the_same_text_twice(folder):
    edit(folder / "tokenizer_config.json", lambda c: c.update(chat_template=TEMPLATE + "\n"))
    assert not found(folder, "W712")


def test_only_named_templates(folder):
    edit(folder / "tokenizer_config.json", lambda c: c.update(chat_template=[{"name": "rag", "template": "x"}]))
    assert not found(folder, "W712")
