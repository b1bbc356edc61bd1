"""A folder, or the id of a Hub repository, → a local folder. Downloads through huggingface_hub and its cache."""

from __future__ import annotations

import re
from pathlib import Path

from suture.errors import InputError, UsageError
from suture.formats.files import quoted

_NAME = r"[A-Za-z0-9_](?:[A-Za-z0-9_.-]{0,94}[A-Za-z0-9_])?"
_REPO_ID = re.compile(rf"(?:{_NAME}/)?{_NAME}", re.ASCII)
_REVISION = re.compile(r"[A-Za-z0-9][\w.+@/-]{0,254}", re.ASCII)

_SIDE_PATTERNS = ("*.json", "tokenizer.*", "*.model", "*.tiktoken", "*.txt", "*.jinja", "*.py", "LICENSE*")
_IGNORED = ("consolidated*", "original/*", "global_step*/*")  # the same weights in other layouts; trainer state


def locate(
    source: str | Path, revision: str | None = None, *, allow_pickle: bool = False, need_weights: bool = True
) -> Path:
    """The local folder of a model or adapter. An existing folder wins; a `Path` is never looked up on the Hub.

    Raises:
        InputError: no such folder; or the repository or revision does not exist, is gated, or cannot be reached and
            is not in the cache.
        UsageError: a revision was given for a folder.
    """
    try:
        folder = Path(source).expanduser()
        is_folder, is_file = source != "" and folder.is_dir(), folder.is_file()
    except (OSError, RuntimeError) as error:
        raise InputError(f"cannot be looked at: {_first_line(error)}", where=quoted(source)) from error
    if is_folder and revision is not None:
        raise UsageError(f"the revision {quoted(revision)} was given for a folder", where=str(folder))
    if is_folder:
        return folder
    if is_file:
        raise InputError("a file", where=str(folder), expected="a folder", do="Name the folder that holds the file.")
    repo_id = str(source)
    if isinstance(source, Path) or not _is_repo_id(repo_id):
        raise InputError(
            "there is no such folder",
            where=quoted(repo_id),
            expected="a folder, or a Hub id such as 'organisation/model'",
        )
    _check_revision(revision, repo_id)
    weights = ("*.safetensors", *(("*.bin",) if allow_pickle else ())) if need_weights else ()
    return _download(repo_id, revision, [*_SIDE_PATTERNS, *weights])


def on_disk(source: str) -> Path | None:
    """The folder that a name stands for: itself, or the newest in the Hub's cache. Never asks the Hub."""
    try:
        if Path(source).expanduser().is_dir():
            return Path(source).expanduser()
    except (OSError, RuntimeError, ValueError):
        return None
    if not _is_repo_id(source):
        return None
    from huggingface_hub import try_to_load_from_cache

    config = try_to_load_from_cache(source, "config.json")
    return Path(config).parent if isinstance(config, str) else None


def _is_repo_id(text: str) -> bool:
    return bool(_REPO_ID.fullmatch(text)) and not any(bad in text for bad in ("--", "..")) and not text.endswith(".git")


def _check_revision(revision: str | None, repo_id: str) -> None:
    if revision is None:
        return
    # huggingface_hub looks a revision up as a path below its cache.
    if not _REVISION.fullmatch(revision) or ".." in revision:
        raise InputError(
            f"the revision is {quoted(revision)}", where=repo_id, expected="the name of a branch or tag, or a commit"
        )


def _download(repo_id: str, revision: str | None, patterns: list[str]) -> Path:
    from huggingface_hub import errors, snapshot_download

    at = f"{repo_id} (revision {revision})" if revision else repo_id
    try:
        path = snapshot_download(repo_id, revision=revision, allow_patterns=patterns, ignore_patterns=list(_IGNORED))
    except errors.GatedRepoError as error:
        raise InputError(
            "the repository is gated, and you have no access to it",
            where=at,
            do=f"Ask for access at huggingface.co/{repo_id}, then run `hf auth login`.",
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise InputError(
            "there is no such folder here and no such repository on the Hub",
            where=at,
            do="Check the spelling; for a private repository run `hf auth login`.",
        ) from error
    except errors.RevisionNotFoundError as error:
        raise InputError(
            "the repository has no such revision", where=at, expected="the name of a branch or tag, or a commit"
        ) from error
    except errors.LocalEntryNotFoundError as error:
        raise InputError(
            f"the Hub was not reached, and the cache does not have all of it: {_first_line(error)}",
            where=at,
            do="Go online (unset HF_HUB_OFFLINE), or name a local folder.",
        ) from error
    except (OSError, ValueError, errors.HTTPError) as error:  # type: ignore[attr-defined]
        raise InputError(f"the download failed: {_first_line(error)}", where=at, do="Try again.") from error
    return Path(path)


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return quoted(lines[0], 300) if lines else type(error).__name__
