"""Patterns of strangers: what `re` says, whichever process tries them, and never for long."""

from __future__ import annotations

import os
import re
import threading
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from suture import patterns, targets
from suture.errors import FormatError
from suture.patterns import LONGEST, MAX_COST, Group, cost, guard
from suture.values import Arch, Param

# As configs on the Hub and the tools that write them have it.
SANE = (
    r".*\.(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)",
    r"model\.language_model\.layers\.\d+\.(self_attn|mlp)\.(q|k|v|o|gate|up|down)_proj",
    r"^(?!.*visual).*\.(q_proj|v_proj)",
    r"(?:.*?(?:language|text).*?(?:self_attn|mlp).*?(?:q_proj|v_proj).*?)|(?:\bmodel\.layers\.[\d]{1,}\.mlp\.(?:up_proj))",
    r".*(?<!lm_head)$",
    r"(model\.)?layers\.[0-9]+\.mlp",
    r"(?i:MODEL)\..*",
)
HOSTILE = (
    r"(a+)+$",
    r"(a|a)*b",
    r"(a|aa)+c",
    r"(.*)*x",
    "(a?){60}a{60}b",
    ".*" * 12 + "x",
    "(a|a)" * 40 + "b",
    r"(?:(?:a*)*)*b",
)
NAMES = ("model.layers.0.self_attn.q_proj", "model.language_model.layers.11.mlp.up_proj", "layers.3.mlp", "lm_head", "")
A = "a" * 60
PIECES = [
    *"ab.1",
    ".*",
    "a+?",
    r"\d*",
    "(a|.b)",
    "(?:b|1)",
    "[ab]",
    "[0-9]+",
    r"\.",
    "^",
    "$",
    "a?",
    "(a*)*",
    "(?=b)",
    r"\b",
    "{2}",
    "(",
    "|",
]


def tried(pattern: str, name: str, *, whole: bool) -> bool:
    return (re.fullmatch if whole else re.match)(pattern, name) is not None


@pytest.mark.parametrize("pattern", SANE)
def test_sane_patterns_mean_what_re_says(pattern):
    for name in (*NAMES, *(f"{n}.{'x' * LONGEST}" for n in NAMES)):
        assert bool(Group((pattern,), "whole").first(name)) == tried(pattern, name, whole=True)
        assert bool(Group((pattern,), "suffix").first(name)) == tried(rf"(.*\.)?({pattern})$", name, whole=False)


@settings(max_examples=150)
@given(
    st.lists(st.lists(st.sampled_from(PIECES), max_size=4).map("".join), max_size=3).map(tuple),
    st.sampled_from([*patterns._AROUND]),
    st.text("ab.1", max_size=9),
)
def test_any_patterns_mean_what_re_says(sources, how, name):
    before, after = patterns._AROUND[how]
    wanted: list[int] | None = []
    for place, source in enumerate(sources):
        try:
            found = (re.fullmatch if how == "whole" else re.match)(f"{before}{source}{after}", name)
        except re.error:
            wanted = None
            break
        wanted += [place] if found else []
    group = Group(sources, how)
    if wanted is None:
        with pytest.raises(FormatError, match="not a regular expression"):
            group.all(name)
        return
    assert [hit.place for hit in group.all(name)] == wanted
    first = group.first(name)
    assert (first and first.place) == (wanted[0] if wanted else None)


@pytest.mark.parametrize("pattern", HOSTILE)
def test_hostile_patterns_are_refused_by_name_and_stay_refused(pattern, monkeypatch):
    monkeypatch.setattr(patterns, "SECONDS", 0.1)
    group = Group((pattern,), "whole")
    with pytest.raises(FormatError, match="takes too long") as caught:
        group.first(A + "!")
    assert repr(pattern)[1:20] in caught.value.found
    asked = []
    monkeypatch.setattr(patterns.GUARD, "ask", asked.append)
    with pytest.raises(FormatError, match="takes too long"):
        group.first("a")
    assert asked == []


def test_the_time_is_the_groups_not_the_names(monkeypatch):
    monkeypatch.setattr(patterns, "SECONDS", 0.05)
    group = Group(("(a|aa)+c",), "whole")
    with pytest.raises(FormatError, match="takes too long"):
        any(group.first("a" * 22) for _ in range(10_000))


@pytest.mark.parametrize(
    "config",
    [
        {"target_modules": "(a+)+$"},
        {"target_modules": ["x"], "exclude_modules": "(a+)+$"},
        {"target_modules": ["x"], "modules_to_save": ["(a+)+$"]},
        {"target_modules": ["q"], "layers_to_transform": [0], "layers_pattern": ["(a+)+"]},
        {"target_modules": ["q"], "rank_pattern": {"(a+)+!": 2}},
        {"target_modules": ["q"], "alpha_pattern": {"(a+)+!": 2}},
    ],
    ids=lambda config: "-".join(config),
)
def test_every_field_with_patterns_is_bounded(config, monkeypatch):
    monkeypatch.setattr(patterns, "SECONDS", 0.1)
    patterns.group.cache_clear()
    targets._lookup.cache_clear()
    param = Param(f"{A}.q.weight", (4, 4), "Linear")
    arch = Arch("", "", {param.name: param}, (), (), (), None, None)
    with pytest.raises(FormatError, match="takes too long"):
        targets.expected(config, arch)


@pytest.mark.parametrize(
    ("pattern", "reason"),
    [
        ("(" * 5000 + ")" * 5000, "RecursionError|error"),
        ("a{99999999999999999999}", "OverflowError|error"),
        ("a{" + "9" * 5000 + "}", "ValueError|error"),
        ("[", "error: unterminated"),
        ("(?P<idx>a)(?P<idx>b)", "error: redefinition"),
    ],
)
def test_what_is_no_expression_is_told_shortly(pattern, reason):
    with pytest.raises(FormatError, match=reason) as caught:
        Group((pattern,), "whole").first("a")
    assert len(str(caught.value)) < 700


def test_too_much_text_is_refused():
    with pytest.raises(FormatError, match="characters"):
        Group(("a" * (patterns.MAX_CHARACTERS + 1),), "whole")


def test_too_much_memory_is_refused(monkeypatch):
    monkeypatch.setattr(patterns, "SECONDS", 30)
    with pytest.raises(FormatError, match="ended with"):
        Group(("(?:(a)|b)*c",), "whole").first("ab" * 4_000_000)


@pytest.mark.parametrize("pattern", [*SANE[:2], "mlp", "a.*b.*c", "(a|aa)(a|aa)"])
def test_common_patterns_need_no_process(pattern, monkeypatch):
    monkeypatch.setattr(patterns.GUARD, "ask", None)
    assert cost(pattern) < MAX_COST
    Group((pattern,), "whole").first("model.layers.0.mlp")


@pytest.mark.parametrize(
    "pattern", [*HOSTILE, "a??", "a*+", "(a|b)?", "a{2}", "(?i)a", r"(a)\1", "[^a]", "é", "(?#)", ""]
)
def test_only_shapes_of_known_cost_have_one(pattern):
    steps = cost(pattern)
    assert steps is None or steps > MAX_COST or pattern == ""


@pytest.mark.parametrize("n", [1, 2, 3])
def test_the_cost_of_a_group_is_the_sum(n, monkeypatch):
    group = Group(("a.*b.*c.*",) * n, "whole")
    assert len(group._near) == min(n, MAX_COST // cost("a.*b.*c.*"))


def test_the_child_ends_with_its_guard_and_another_takes_over():
    asker = guard.Guard()
    request = {"key": 1, "sources": ["a+"], "n": 1, "name": "aa", "whole": True, "first": True, "seconds": 1.0}
    assert asker.ask(request)["hits"] == [[0, None]]
    first = asker._process
    asker.close()
    assert first.returncode is not None
    assert asker.ask({**request, "sources": None}) == {"unknown": True, "used": pytest.approx(0, abs=1)}
    asker.close()


def test_an_answer_that_was_not_waited_for_is_not_taken_for_the_next(monkeypatch):
    asker = guard.Guard()
    request = {"key": 1, "sources": ["a+"], "n": 1, "name": "aa", "whole": True, "first": True, "seconds": 1.0}
    real = guard._exchange

    def interrupted(process, line):
        process.stdin.write(line)
        process.stdin.flush()
        raise KeyboardInterrupt

    monkeypatch.setattr(guard, "_exchange", interrupted)
    with pytest.raises(KeyboardInterrupt):
        asker.ask(request)
    monkeypatch.setattr(guard, "_exchange", real)
    assert asker.ask({**request, "key": 2, "name": "b"})["hits"] == []
    asker.close()


def test_threads_share_the_child():
    wild = Group((r"(?=m)(\w+\.)*q", r"(?=m)(\w+\.)*v"), "whole")
    wrong = []

    def ask(letter: str, place: int) -> None:
        wrong.extend(1 for _ in range(100) if [h.place for h in wild.all(f"m.a.{letter}")] != [place])

    threads = [threading.Thread(target=ask, args=pair) for pair in (("q", 0), ("v", 1)) * 2]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_fork_has_a_child_of_its_own():
    wild = Group((r"(?=m)(\w+\.)*q",), "whole")
    assert wild.first("m.q")
    mine = patterns.GUARD._process
    pid = os.fork()
    if pid == 0:  # pragma: no cover - in the fork
        right = bool(wild.first("m.b.q")) and patterns.GUARD._process is not mine
        patterns.GUARD.close()
        os._exit(0 if right else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert wild.first("m.c.q")
    assert patterns.GUARD._process is mine


def test_where_no_process_can_be_started_it_is_told(monkeypatch):
    monkeypatch.setattr(guard.sys, "executable", "/nowhere/python")
    with pytest.raises(Exception, match="none can be started") as caught:
        guard.Guard().ask({})
    assert caught.type.__name__ == "InputError"


def test_waiting_does_not_count_as_work():
    """The limit is of CPU time: a machine that is busy refuses nothing."""
    asker = guard.Guard()
    request = {"key": 1, "sources": ["a+"], "n": 1, "name": "aa", "whole": True, "first": True, "seconds": 0.05}
    asker.ask(request)
    time.sleep(0.1)
    assert asker.ask(request)["hits"] == [[0, None]]
    asker.close()
