"""# W702 index-contradicts

## What it finds
An index (`model.safetensors.index.json`) and weight files that do not say the same: files that are missing, tensors
that are listed and in no file, in a file and not listed, listed in another file, or stored twice; a wrong total size;
shards without an index, or numbered 1 to 3 of 4.

## Why it matters
A model in several files is loaded by its index. A tensor that the index does not find is left at random values or
stops the load; one that it does not list is loaded by some programs and passed over by others. Such folders come from
a save that was cut off, from a second save into the same folder, and from tools that write the index by hand.

## How it is detected
The headers of all weight files are read and compared with the index, both ways. `total_size` is the sum of the bytes
of all tensors; only programs that reserve memory by it are misled, so that alone is a warning.

## How to fix
Save the model again, into an empty folder. If only the index is wrong, write it again from the headers.

## References
- unslothai/unsloth-zoo#808: a stale set of shards stays beside the new one
- unslothai/unsloth#5410: tensors written several times
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping

from suture.formats.checkpoint import INDEX, SINGLE
from suture.model_folder import ModelFolder
from suture.rules.base import Rule, listed
from suture.values import Finding

SAVE = "Save the model again, into an empty folder."
_NUMBERED = re.compile(r"^(.+-)(\d+)-of-(\d+)(\.safetensors)$")


def check_model(model: ModelFolder) -> Iterable[Finding]:
    """Index against headers, numbering, and tensors that are stored twice."""
    index = model.documents.get(INDEX, {})
    listing = index.get("weight_map")
    files: Iterable[str] = model.weights
    if isinstance(listing, dict) and listing and INDEX not in model.unreadable:
        if not set(model.weights) <= set(listing.values()):
            return  # the index is not what is loaded, which W703 tells
        files = set(listing.values())
        yield from _files(model, listing)
        yield from _tensors(model, listing)
        yield from _size(model, index.get("metadata"))
    elif model.weights and model.weights != (SINGLE,):
        found = f"no index that can be used for {listed(model.weights)}: Transformers does not find them"
        yield RULE.finding(INDEX, found, "an index that says which tensor is in which file", SAVE)
    yield from _numbers(files)
    yield from _twice(model)


def _files(model: ModelFolder, listing: Mapping[str, str]) -> Iterable[Finding]:
    absent = sorted(set(listing.values()) - model.headers.keys() - model.unreadable.keys())
    if absent:
        n = sum(file in absent for file in listing.values())
        found = f"{len(absent)} files are listed and not there, with {n} tensors: {listed(absent)}"
        yield RULE.finding(f"{INDEX}: weight_map", found, "every listed file", "Finish the copy, or save again.")


def _tensors(model: ModelFolder, listing: Mapping[str, str]) -> Iterable[Finding]:
    places: dict[str, set[str]] = {}
    for file in model.weights:
        for tensor in model.headers[file]:
            places.setdefault(tensor.name, set()).add(file)
    read = {name: file for name, file in listing.items() if file in model.headers}
    complaints = {
        "are listed and in no file": [n for n in read if n not in places],
        "are in a file and not listed": [n for n in places if n not in listing],
        "are listed in another file than they are in": [n for n in read if n in places and read[n] not in places[n]],
    }
    for words, names in complaints.items():
        if names:
            found = f"{len(names)} tensors {words}: {listed(names)}"
            yield RULE.finding(f"{INDEX}: weight_map", found, "each tensor, listed in its own file", SAVE)


def _size(model: ModelFolder, metadata: object) -> Iterable[Finding]:
    said = metadata.get("total_size") if isinstance(metadata, dict) else None
    really = sum(tensor.n_bytes for tensor in model.tensors.values())
    whole = all(name in model.tensors for name in model.documents[INDEX]["weight_map"])
    if said is not None and said != really and whole:
        found = f"it says {said} bytes, the tensors have {really:,}"
        do = "Write the right number: programs that plan memory by it reserve too much or too little."
        yield RULE.finding(f"{INDEX}: total_size", found, f"{really}", do, severity="warning")


def _numbers(files: Iterable[str]) -> Iterable[Finding]:
    numbered = [match for file in sorted(files) if (match := _NUMBERED.match(file))]
    sets = Counter((m[1], int(m[3])) for m in numbered)
    for (stem, total), n in sorted(sets.items()):
        if n != total or len(sets) > 1:
            found = f"{n} of {total} files are named {stem}…-of-{total:05d}"
            found += f", beside those of {len(sets) - 1} other numberings" if len(sets) > 1 else ""
            yield RULE.finding(f"{stem}…", found, "one numbering, and every number of it", SAVE)


def _twice(model: ModelFolder) -> Iterable[Finding]:
    counts = Counter(tensor.name for file in model.weights for tensor in model.headers[file])
    twice = {name for name, n in counts.items() if n > 1}
    if twice:
        files = [f for f in model.weights if any(t.name in twice for t in model.headers[f])]
        found = f"{len(twice)} tensors are stored more than once, in {listed(files)}: {listed(twice)}"
        yield RULE.finding(files[0], found, "each tensor once", SAVE)


RULE = Rule("W702", "index-contradicts", "error", model=check_model, modes=("F42",))
