import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from corpus.folders import TENSORS, adapter, single_model

from suture.errors import InputError, UsageError
from suture.formats import read_adapter, read_checkpoint
from suture.formats.hub import locate

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty Hub cache of this test's own."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


@pytest.fixture
def offline(cache, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return cache


def cached(cache: Path, repo_id: str, build) -> Path:
    """A repository in the cache as huggingface_hub lays it out: refs, blobs, and a snapshot of links to them."""
    repo = cache / f"models--{repo_id.replace('/', '--')}"
    snapshot = build(repo / "snapshots" / COMMIT)
    for folder in ("refs", "blobs"):
        (repo / folder).mkdir()
    (repo / "refs" / "main").write_text(COMMIT)
    for path in sorted(snapshot.iterdir()):
        path.rename(repo / "blobs" / path.name)
        path.symlink_to(f"../../blobs/{path.name}")
    return snapshot


class TestFolders:
    def test_an_existing_folder_wins_over_a_repository_of_the_same_name(self, tmp_path, monkeypatch, offline):
        cached(offline, "org/name", single_model)
        monkeypatch.chdir(tmp_path)
        (tmp_path / "org" / "name").mkdir(parents=True)
        assert locate("org/name") == Path("org/name")

    def test_the_home_folder_may_be_abbreviated(self, tmp_path, monkeypatch):
        monkeypatch.setenv("HOME", str(tmp_path))
        (tmp_path / "model").mkdir()
        assert locate("~/model") == tmp_path / "model"

    def test_a_file_is_not_a_folder(self, tmp_path):
        (tmp_path / "model.safetensors").touch()
        with pytest.raises(InputError, match="Name the folder"):
            locate(tmp_path / "model.safetensors")

    @pytest.mark.parametrize("source", ["./model", "/no/such/folder", "~/no/such", "a/b/c", "org/name/", "C:\\model"])
    def test_what_looks_like_a_path_is_not_looked_up(self, source):
        with pytest.raises(InputError, match="there is no such folder"):
            locate(source)

    @pytest.mark.parametrize("source", ["~nobody-of-this-name/model", "a" * 5000])
    def test_what_the_system_cannot_look_at_is_an_input_error(self, source):
        with pytest.raises(InputError, match="cannot be looked at"):
            locate(source)

    def test_a_path_is_never_looked_up(self):
        with pytest.raises(InputError, match="there is no such folder"):
            locate(Path("org/name"))

    def test_a_revision_of_a_folder_makes_no_sense(self, tmp_path):
        with pytest.raises(UsageError, match="revision 'main'"):
            locate(tmp_path, "main")


@pytest.mark.parametrize(
    "source", ["", " ", "org/", "/name", "org//name", "or g/name", "org/na--me", "org/..", "-org/name", "org/name.git",
               "org/name.", "a" * 97, "org/näme", "org/name\n", "https://huggingface.co/org/name", "\0"],
)  # fmt: skip
def test_malformed_ids_are_refused_without_a_lookup(source, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="there is no such folder"):
        locate(source)


@pytest.mark.parametrize("repo_id", ["gpt2", "org/name", "meta-llama/Llama-3.1-8B", "a_b/c.d_e-f", "01-ai/Yi-6B"])
def test_well_formed_ids_are_looked_up(repo_id, offline):
    from huggingface_hub.utils import validate_repo_id

    validate_repo_id(repo_id)
    with pytest.raises(InputError, match="the Hub was not reached"):
        locate(repo_id)


class TestOffline:
    def test_a_cached_model_is_read(self, offline):
        snapshot = cached(offline, "org/name", single_model)
        for revision in (None, "main", COMMIT):
            found = read_checkpoint("org/name", revision=revision)
            assert found.folder == snapshot
            assert found.tensors.keys() == TENSORS.keys()

    def test_a_cached_adapter_is_read(self, offline):
        cached(offline, "org/lora", adapter)
        assert read_adapter("org/lora").config["peft_type"] == "LORA"

    def test_what_is_not_cached_is_an_error_that_says_how_to_go_on(self, offline):
        with pytest.raises(InputError) as caught:
            read_checkpoint("org/name")
        assert "org/name" in caught.value.where
        assert "HF_HUB_OFFLINE" in caught.value.do

    def test_a_revision_that_is_not_cached_is_an_error(self, offline):
        cached(offline, "org/name", single_model)
        with pytest.raises(InputError) as caught:
            locate("org/name", "v2")
        assert "revision v2" in caught.value.where

    @pytest.mark.parametrize(
        "revision", ["", "../../../etc/hostname", "a/../b", "/etc", "-x", "a b", "x" * 300, "a\0b"]
    )
    def test_a_revision_is_not_a_path(self, offline, revision):
        cached(offline, "org/name", single_model)
        with pytest.raises(InputError, match="the revision is"):
            locate("org/name", revision)

    def test_a_download_that_was_interrupted_is_an_error(self, offline):
        snapshot = cached(offline, "org/name", single_model)
        (snapshot / "model.safetensors").unlink()
        tree = {n: {"size": 1, "blob_id": "0"} for n in ("config.json", "model.safetensors", "pytorch_model.bin")}
        trees = snapshot.parent.parent / "trees"
        trees.mkdir()
        (trees / f"{COMMIT}.json").write_text(json.dumps({"format_version": 1, "files": tree}))
        with pytest.raises(InputError, match=r"model\.safetensors"):
            locate("org/name")
        assert locate("org/name", need_weights=False) == snapshot


class Hub(BaseHTTPRequestHandler):
    """A Hub of one repository, org/name; the others answer with the errors that huggingface.co gives."""

    files: dict[str, bytes]
    asked: list[str]

    def do_GET(self):
        self.asked.append(self.path)
        owner, _, rest = self.path.removeprefix("/api/models/").lstrip("/").partition("/")
        name, _, rest = rest.partition("/")
        if owner == "gated":
            self.answer(403, error=("GatedRepo", "Access to this model is restricted"))
        elif owner == "broken":
            self.answer(500)
        elif (owner, name) != ("org", "name"):
            self.answer(404, error=("RepoNotFound", "Repository not found"))
        elif rest.startswith("revision/") and rest not in ("revision/main", f"revision/{COMMIT}"):
            self.answer(404, error=("RevisionNotFound", "Invalid rev id"))
        elif rest.startswith("tree/"):
            files = [{"type": "file", "path": n, "size": len(c), "oid": n} for n, c in self.files.items()]
            self.answer(200, json.dumps(files).encode())
        elif rest.startswith("resolve/"):
            file = rest.partition(COMMIT)[2].lstrip("/").partition("?")[0]
            self.answer(200, self.files[file], ETag=f'"{file}"', **{"X-Repo-Commit": COMMIT})
        else:
            self.answer(200, json.dumps({"id": "org/name", "sha": COMMIT, "siblings": []}).encode())

    do_HEAD = do_GET

    def answer(self, status, body=b"{}", error=None, **headers):
        self.send_response(status)
        if error:
            headers |= {"X-Error-Code": error[0], "X-Error-Message": error[1]}
        for key, value in ({"Content-Length": str(len(body)), "Content-Type": "application/json"} | headers).items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *args):
        """Quiet."""


def go_online(monkeypatch, endpoint):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", endpoint + "/{repo_id}/resolve/{revision}/{filename}")


@pytest.fixture
def hub(cache, monkeypatch, tmp_path):
    """A Hub on this machine, which huggingface_hub is pointed at."""
    folder = single_model(tmp_path / "remote")
    others = [
        "pytorch_model.bin",
        "tokenizer.model",
        "original/params.json",
        "rust_model.ot",
        "consolidated.safetensors",
    ]
    others += ["code.py", "LICENSE", "chat_template.jinja"]
    Hub.files = {path.name: path.read_bytes() for path in folder.iterdir()} | dict.fromkeys(others, b"x")
    Hub.asked = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever, args=[0.01])
    thread.start()
    go_online(monkeypatch, f"http://127.0.0.1:{server.server_port}")
    yield Hub
    server.shutdown()
    server.server_close()
    thread.join()


class TestOnline:
    def test_a_model_is_fetched_without_pickles_and_duplicates(self, hub):
        found = read_checkpoint("org/name")
        assert found.tensors.keys() == TENSORS.keys()
        names = {p.relative_to(found.folder).as_posix() for p in found.folder.rglob("*") if p.is_file()}
        assert names == {
            "config.json",
            "model.safetensors",
            "tokenizer.model",
            "code.py",
            "LICENSE",
            "chat_template.jinja",
        }

    def test_pickles_are_fetched_when_allowed(self, hub):
        assert (locate("org/name", allow_pickle=True) / "pytorch_model.bin").exists()

    def test_weights_that_nobody_needs_are_not_fetched(self, hub):
        found = read_checkpoint("org/name", need_weights=False)
        assert (found.tensors, found.config["model_type"]) == ({}, "llama")
        assert not any("safetensors" in path for path in hub.asked)

    @pytest.mark.parametrize(
        ("repo_id", "revision", "message"),
        [
            ("org/typo", None, "no such repository on the Hub"),
            ("gated/name", None, "the repository is gated"),
            ("org/name", "v9", "no such revision"),
            ("broken/name", None, "the Hub was not reached"),
        ],
    )
    def test_errors_of_the_hub_are_told_in_words(self, hub, repo_id, revision, message):
        with pytest.raises(InputError, match=message) as caught:
            locate(repo_id, revision)
        assert repo_id in caught.value.where

    def test_a_hub_that_cannot_be_reached_is_an_input_error(self, cache, monkeypatch):
        go_online(monkeypatch, "http://127.0.0.1:9")
        with pytest.raises(InputError, match="the Hub was not reached"):
            locate("org/name")
