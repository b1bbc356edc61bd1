"""Whatever ends a merge, the output is whole or absent, and the next run gives the bytes of an undisturbed one."""

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from crash import runner
from execute.made_plans import contents, make_pair, make_plan

import suture
from suture import execute
from suture.errors import InputError, Interrupted, OutputError, OutputLocked
from suture.execute import journal, pieces
from suture.values import Running, Verdict

TESTS = Path(__file__).resolve().parent.parent
ENVIRONMENT = {
    **os.environ,
    "PYTHONPATH": f"{TESTS}{os.pathsep}{Path(suture.__path__[0]).parent}",
    "OMP_NUM_THREADS": "1",
}
KILLED = -signal.SIGKILL


@pytest.fixture(autouse=True)
def same_pieces(monkeypatch):
    monkeypatch.setattr(pieces, "PIECE_BYTES", runner.PIECE_BYTES)


@pytest.fixture
def folder():
    """A folder that any user may look into."""
    with tempfile.TemporaryDirectory(prefix="suture-crash-") as name:
        Path(name).chmod(0o755)
        (Path(name) / "made").mkdir()
        yield Path(name)


@pytest.fixture
def pair(folder):
    return make_pair(folder / "in", **runner.SHAPE)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    pair = make_pair(folder / "in", **runner.SHAPE)
    staged = execute.run(make_plan(pair), pair.inputs, folder / "out", Running(workers=2))
    out = execute.publish(staged, Verdict(True, ()))
    return contents(out)


def start(folder: Path, fault: str, n: int = 0) -> subprocess.Popen:
    command = [sys.executable, runner.__file__, str(folder), fault, str(n)]
    return subprocess.Popen(
        command, env=ENVIRONMENT, cwd=folder, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def merge(folder: Path, fault: str, n: int = 0) -> tuple[int, str]:
    """Exit code and error message of a merge with a fault."""
    process = start(folder, fault, n)
    _, message = process.communicate(timeout=60)
    return process.returncode, message


def merge_here(pair, folder: Path) -> Path:
    staged = execute.run(make_plan(pair), pair.inputs, folder / "made" / "out")
    return execute.publish(staged, Verdict(True, ()))


def noted(shop: Path) -> set[int]:
    """Pieces that the journal says are written."""
    lines = (shop / "journal").read_text().splitlines()
    return {int(line[1:]) for line in lines if line.startswith("+")}


def made(folder: Path) -> list[str]:
    return sorted(p.name for p in (folder / "made").iterdir())


@pytest.mark.parametrize(
    ("fault", "n"),
    [
        ("kill-pwrite", 1),
        ("kill-pwrite", 7),
        ("kill-pwrite", 30),
        ("kill-note", 1),
        ("kill-note", 12),
        ("kill-fsync", 1),
        ("kill-fsync", 6),
        ("kill-rename", 1),
    ],
)
def test_a_killed_merge_leaves_no_output_and_is_continued(folder, pair, undisturbed, fault, n):
    assert merge(folder, fault, n) == (KILLED, "")
    assert made(folder) == [".out.suture"]
    assert contents(merge_here(pair, folder)) == undisturbed
    assert made(folder) == ["out"]


def kill_in_the_middle(folder: Path) -> None:
    assert merge(folder, "kill-note", 8) == (KILLED, "")


def test_only_what_is_missing_is_computed(folder, pair, undisturbed):
    kill_in_the_middle(folder)
    seen = []
    plan = make_plan(pair)
    staged = execute.run(plan, pair.inputs, folder / "made" / "out", progress=seen.append)
    headers = sum(len(pieces.header_bytes(f)) for f in plan.files)
    assert headers < seen[0] < plan.n_bytes_written
    assert sum(seen) == plan.n_bytes_written
    assert contents(execute.publish(staged, Verdict(True, ()))) == undisturbed


def test_bytes_that_the_journal_does_not_vouch_for_are_written_again(folder, pair, undisturbed):
    kill_in_the_middle(folder)
    plan = make_plan(pair)
    shop = folder / "made" / ".out.suture"
    vouched = noted(shop)
    (stage,) = (p for p in shop.iterdir() if p.is_dir())
    for piece in pieces.split(plan):
        if piece.number not in vouched:
            with (stage / piece.file).open("r+b") as file:
                file.seek(piece.begin)
                file.write(b"\xee" * piece.n_bytes)
    assert contents(merge_here(pair, folder)) == undisturbed


def test_bytes_that_the_journal_vouches_for_are_not_computed_again(folder, pair, undisturbed):
    """The counterpart: what it vouches for is taken as it is, so the test above proves something."""
    kill_in_the_middle(folder)
    shop = folder / "made" / ".out.suture"
    first = min(noted(shop))
    piece = pieces.split(make_plan(pair))[first]
    (stage,) = (p for p in shop.iterdir() if p.is_dir())
    with (stage / piece.file).open("r+b") as file:
        file.seek(piece.begin)
        file.write(b"\xee")
    assert contents(merge_here(pair, folder))[piece.file] != undisturbed[piece.file]


@pytest.mark.parametrize("spoil", ["reboot", "kernel", "input", "journal", "old journal", "size", "gone"])
def test_what_cannot_be_trusted_is_started_over(folder, pair, undisturbed, spoil, monkeypatch, caplog):
    kill_in_the_middle(folder)
    shop = folder / "made" / ".out.suture"
    (stage,) = (p for p in shop.iterdir() if p.is_dir())
    for path in stage.glob("*.safetensors"):
        path.write_bytes(b"\xee" * (path.stat().st_size - (spoil == "size")))
        if spoil == "gone":
            path.unlink()
    match spoil:
        case "reboot":
            monkeypatch.setattr(execute, "boot_id", lambda: "another boot")
        case "kernel":
            monkeypatch.setattr(execute, "kernel_name", lambda *_: "another kernel")
        case "input":
            os.utime(folder / "in" / "base" / "model-00001-of-00003.safetensors", ns=(1, 1))
        case "journal":
            (shop / "journal").unlink()
        case "old journal":
            (shop / "journal").write_bytes((shop / "journal").read_bytes().replace(b"\n+", b"\n"))
    assert weights(merge_here(pair, folder)) == {k: v for k, v in undisturbed.items() if k.endswith(".safetensors")}
    assert ("started over" in caplog.text) == (spoil != "journal")


def test_a_date_that_was_set_back_hides_no_change(folder, pair, caplog):
    path = folder / "in" / "base" / "model-00001-of-00003.safetensors"
    date = path.stat().st_mtime_ns
    kill_in_the_middle(folder)
    with path.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\x55")
    os.utime(path, ns=(date, date))
    out = merge_here(pair, folder)
    assert "started over (the base's or the adapter's files were touched since)" in caplog.text
    shutil.move(out, folder / "first")
    assert contents(merge_here(pair, folder)) == contents(folder / "first")


def weights(folder: Path) -> dict[str, bytes]:
    return {k: v for k, v in contents(folder).items() if k.endswith(".safetensors")}


def test_a_merge_that_is_killed_again_and_again_gets_done(folder, pair, undisturbed):
    for k in range(4):
        assert merge(folder, "kill-note", 6)[0] == KILLED
        assert len(noted(folder / "made" / ".out.suture")) >= 6 * (k + 1)
    assert contents(merge_here(pair, folder)) == undisturbed


def test_a_line_that_was_torn_does_not_spoil_the_next_one(folder, pair, undisturbed):
    journal_file = folder / "made" / ".out.suture" / "journal"
    kill_in_the_middle(folder)
    n_noted = len(noted(journal_file.parent))
    with journal_file.open("ab") as file:
        file.write(b"+4")
    assert merge(folder, "kill-note", 3)[0] == KILLED
    lines = journal_file.read_text().splitlines()[1:]
    assert len(lines) == len(set(lines)) >= n_noted + 3
    assert all(number < len(pieces.split(make_plan(pair))) for number in noted(journal_file.parent))
    assert contents(merge_here(pair, folder)) == undisturbed


@pytest.mark.parametrize("n", [1, 20])
def test_a_read_error_names_file_and_tensor_and_keeps_what_is_done(folder, pair, undisturbed, n):
    code, message = merge(folder, "bad-preadv", n)
    assert code == InputError.exit_code
    assert re.search(r"model-0000\d-of-00003\.safetensors: '\w+': cannot be read: Input/output error", message)
    assert ("run again" in message) == (made(folder) == [".out.suture"])
    assert n == 1 or made(folder) == [".out.suture"]
    assert contents(merge_here(pair, folder)) == undisturbed


def test_a_parent_that_must_not_be_written_to(folder, pair):
    if os.geteuid() != 0:
        (folder / "made").chmod(0o555)
    code, message = merge(folder, "nobody" if os.geteuid() == 0 else "none")
    (folder / "made").chmod(0o755)
    assert code == OutputError.exit_code
    assert f"{folder / 'made'}: cannot be written: Permission denied" in message
    assert made(folder) == []


def test_a_second_writer_is_locked_out_and_the_first_gets_done(folder, pair, undisturbed):
    process = start(folder, "slow")
    assert process.stdout.readline() == "writing\n"
    with pytest.raises(OutputLocked):
        merge_here(pair, folder)
    process.communicate(timeout=60)
    assert process.returncode == 0
    assert contents(folder / "made" / "out") == undisturbed


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_leaves_nothing(folder, number):
    process = start(folder, "slow")
    for _ in range(5):
        assert process.stdout.readline() == "writing\n"
    process.send_signal(number)
    process.send_signal(number)  # an impatient second one must not leave half of it
    _, message = process.communicate(timeout=60)
    assert (process.returncode, made(folder)) == (Interrupted.exit_code, [])
    assert "stopped" in message


def test_the_boot_id_is_what_the_journal_records(folder, pair):
    kill_in_the_middle(folder)
    assert journal.boot_id() in (folder / "made" / ".out.suture" / "journal").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["kill-pwrite", "kill-note"])
def test_killed_after_every_single_write(folder, pair, undisturbed, fault):
    n = 0
    while True:
        n += 1
        code, _ = merge(folder, fault, n)
        if code == 0:
            break
        assert code == KILLED
        assert made(folder) == [".out.suture"]
        out = merge_here(pair, folder)
        assert contents(out) == undisturbed
        shutil.rmtree(out)
    assert n > 20
    assert contents(folder / "made" / "out") == undisturbed
