"""SIGKILL at seeded random moments of whole merges: the output is whole or absent, and the next runs make it whole.

Moments are drawn in time, over the length of an undisturbed run of the real command, and in calls: before or after the
n-th one that changes anything below the output's parent, or that reads there, which is hashing and verification.
"""

from __future__ import annotations

import os
import random
import shutil
import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from crash.commands import (
    CHANGES,
    KILL_AFTER,
    KILL_BEFORE,
    KILLED,
    READ,
    RENAME,
    Fault,
    Scene,
    Server,
    environment,
    sums,
)

from suture.errors import OutputExists

MOST_KILLS = 3  # of one merge, before it is let end


@dataclass
class Campaign:
    """Merges of one pair that are killed; what was seen of them."""

    server: Server
    scene: Scene
    whole: dict[str, str]
    seed: int
    kills: int = 0
    continued: int = 0
    published: int = 0  # killed between the rename and the end
    environment: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)
        self.environment = {
            **environment(),
            **{n: str(self.scene.folder / n.lower()) for n in ("TMPDIR", "SUTURE_CACHE")},
        }
        (self.scene.folder / "tmpdir").mkdir()
        shutil.copytree(os.environ["SUTURE_CACHE"], self.scene.folder / "suture_cache")
        self.cache = sums(self.scene.folder / "suture_cache")

    def measure(self) -> None:
        """How long the command takes, and how many calls it makes."""
        start = time.monotonic()
        assert self.by_time(None)[0] == 0
        self.seconds = time.monotonic() - start
        self.check_whole()
        self.calls = {}
        for kinds in (CHANGES, READ):
            ended = self.server.run(self.scene.merge, Fault(kinds, str(self.scene.folder / "made")))
            assert ended.code == 0, ended.stderr
            self.calls[kinds] = ended.count
            self.check_whole()

    def by_time(self, delay: float | None) -> tuple[int, str]:
        """Run the real command, and kill it after that many seconds."""
        process = self.scene.popen(env=self.environment)
        if delay is not None:
            time.sleep(delay)
            process.kill()
        _, told = process.communicate(timeout=120)
        return process.returncode, told

    def by_call(self) -> tuple[int, str]:
        """Run the command in a fork, and kill it at a call."""
        kinds, action = self.random.choice([CHANGES, CHANGES, READ]), self.random.choice([KILL_BEFORE, KILL_AFTER])
        at = self.random.randint(1, self.calls[kinds])
        ended = self.server.run(self.scene.merge, Fault(kinds, str(self.scene.folder / "made"), at, action))
        return ended.code, ended.stderr

    def merge(self, *, by_time: bool) -> None:
        """One merge: killed one to three times, then let end, unless it has ended before."""
        for _ in range(self.random.randint(1, MOST_KILLS)):
            code, told = self.by_time(self.random.uniform(0, self.seconds)) if by_time else self.by_call()
            self.continued += "going on with" in told
            if code == 0 or self.scene.out.exists():
                break
            assert code == KILLED, told
            self.kills += 1
            assert set(self.scene.left()) <= {".out.suture"}
        if code == KILLED and self.scene.out.exists():
            self.kills += 1
            self.published += 1
        else:
            code, told = self.by_time(None) if by_time else (0, "")
            if not by_time:
                ended = self.server.run(self.scene.merge)
                code, told = ended.code, ended.stderr
            self.continued += "going on with" in told
        self.check_whole()

    def check_whole(self) -> None:
        """The output is that of an undisturbed merge, and nothing else is left; remove it."""
        assert sums(self.scene.out) == self.whole
        assert self.server.run(self.scene.merge).code == OutputExists.exit_code
        assert self.scene.left() == ["out"]
        assert list((self.scene.folder / "tmpdir").iterdir()) == []
        assert sums(self.scene.folder / "suture_cache") == self.cache
        shutil.rmtree(self.scene.out)


@pytest.fixture
def campaign(server, scene, whole):
    def begin(inputs: Path, seed: int, *options: str) -> Campaign:
        begun = Campaign(server, scene(inputs, *options), whole(inputs, *options), seed)
        begun.measure()
        return begun

    return begin


def test_killed_at_some_calls(campaign, llama):
    killed = campaign(llama, 1)
    while killed.kills < 10:
        killed.merge(by_time=False)
    assert killed.continued


def test_random_bits_do_not_depend_on_kills(campaign, llama, whole):
    options = ("--rounding", "stochastic", "--seed", "5")
    killed = campaign(llama, 4, *options)
    assert whole(llama, *options) != whole(llama)
    while killed.kills < 10:
        killed.merge(by_time=False)
    assert killed.continued


@pytest.mark.slow
def test_a_mixture_of_experts_is_killed_at_any_moment(campaign, moe):
    killed = campaign(moe, 2)
    killed.server.run(killed.scene.merge, Fault(RENAME, ".out.suture", 2, KILL_BEFORE))
    assert (killed.scene.shop / "journal").read_bytes().count(b"\n+") >= 100
    while killed.kills < 80:
        killed.merge(by_time=killed.random.random() < 0.3)
    print(f"\n{killed.kills} kills, {killed.continued} runs went on, {killed.published} were killed after the rename")
    assert killed.continued  # how many, the machine's load decides: most kills are by the clock


@pytest.mark.slow
def test_a_real_model_is_killed_at_any_moment(campaign, smollm2_shards):
    killed = campaign(smollm2_shards, 3)
    while killed.kills < 25:
        killed.merge(by_time=killed.random.random() < 0.7)
    print(f"\n{killed.kills} kills, {killed.continued} runs went on, {killed.published} were killed after the rename")
    assert killed.continued
