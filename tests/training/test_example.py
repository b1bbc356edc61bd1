"""The example file: complete, explained, and equal to the defaults."""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path

from suture.training.config import AdapterConfig, DataConfig, RunConfig, changed_fields, load
from suture.training.example import example
from suture.training.yamlfile import parse


def test_it_loads_to_the_defaults(tmp_path: Path):
    path = tmp_path / "run.yaml"
    path.write_text(example(), encoding="utf-8")
    config = load(path)
    plain = RunConfig(base=config.base, out=config.out, data=DataConfig(train=config.data.train))
    assert config == plain


def test_only_what_must_be_set_is_set(tmp_path: Path):
    """A run that goes on from an adapter inherits what its file does not name."""
    path = tmp_path / "run.yaml"
    path.write_text(example(), encoding="utf-8")
    assert changed_fields(load(path)) == ("base", "out", "data.train")


def test_every_setting_stands_in_it_below_its_description():
    # what stands behind a # without a space is a setting that is switched off
    values = parse("\n".join(re.sub(r"^( *)#(?=\w)", r"\1", line) for line in example().splitlines()))
    sections = ((RunConfig, values), (DataConfig, values["data"]), (AdapterConfig, values["adapter"]))
    for section, inside in sections:
        assert list(inside) == list(section.model_fields)
    words = " ".join(line.strip().lstrip("# ") for line in example().splitlines())
    for section, _ in sections:
        for field in section.model_fields.values():
            assert field.description in words


def test_lines_are_short_and_comments_come_first():
    lines = example().splitlines()
    assert max(map(len, lines)) <= 100
    for before, line in pairwise(lines):
        if line and not line.lstrip().startswith("# "):
            assert before.lstrip().startswith("# ") or before.endswith(":"), line
