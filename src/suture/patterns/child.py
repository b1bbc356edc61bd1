"""The process in which doubtful regular expressions run. Never imported: `patterns.guard` starts it by its path.

One JSON object a line comes in, one goes out. The kernel ends the process when a request has used up its CPU time:
`re` cannot be interrupted by anything that Python does.
"""

from __future__ import annotations

import contextlib
import json
import re
import resource
import signal
import sys
import time
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

KEPT = 64  # groups whose compiled patterns are kept
MEMORY = 256 << 20  # bytes of address space; an interpreter without libraries takes a tenth


def main() -> None:
    """Answer requests until there are no more."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGPROF})
    with contextlib.suppress(ValueError, OSError):  # not every system can limit it
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    warnings.simplefilter("ignore")
    groups: dict[int, list[re.Pattern[str] | None]] = {}
    for line in sys.stdin:
        request = json.loads(line)
        start = time.process_time()
        signal.setitimer(signal.ITIMER_PROF, request["seconds"])
        answer = _answer(request, groups)
        signal.setitimer(signal.ITIMER_PROF, 0)
        sys.stdout.write(json.dumps({**answer, "used": time.process_time() - start}) + "\n")
        sys.stdout.flush()


def _answer(request: Mapping[str, Any], groups: dict[int, list[re.Pattern[str] | None]]) -> dict[str, Any]:
    """The places of the patterns that match, or that of the first one that is none; each is compiled when reached."""
    key, sources = request["key"], request["sources"]
    if key not in groups:
        if sources is None:
            return {"unknown": True}
        while len(groups) >= KEPT:
            groups.pop(next(iter(groups)))
        groups[key] = [None] * len(sources)
    return _hits(request, sources, groups[key])


def _hits(
    request: Mapping[str, Any], sources: Sequence[str] | None, compiled: list[re.Pattern[str] | None]
) -> dict[str, Any]:
    hits: list[tuple[int, str | None]] = []
    for i in range(request["n"]):
        pattern = compiled[i]
        if pattern is None:
            if sources is None:
                return {"unknown": True}
            try:
                pattern = compiled[i] = re.compile(sources[i])
            except (re.error, ArithmeticError, MemoryError, RecursionError, ValueError) as error:
                return {"hits": hits, "bad": i, "reason": f"{type(error).__name__}: {error}"}
        found = (pattern.fullmatch if request["whole"] else pattern.match)(request["name"])
        if found:
            hits.append((i, found.groupdict().get("idx")))
            if request["first"]:
                break
    return {"hits": hits}


if __name__ == "__main__":
    main()
