"""The command as a whole: help, start-up, signals, pipes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import click
import pytest

import suture.cli
from suture.cli.app import COMMANDS, app

HEAVY = ["numpy", "torch", "transformers", "peft", "safetensors", "huggingface_hub", "rich", "pydantic", "typer"]


def python(code, **kwargs):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, **kwargs)


def test_help_lists_the_commands(run):
    result = run("--help")
    assert result.exit_code == 0
    assert all(f" {name} " in result.stdout for name in COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_and_option_has_help(run, name):
    result = run(name, "--help")
    assert result.exit_code == 0
    assert "--json" in result.stdout

    command = app.get_command(click.Context(app), name)
    assert command.help
    assert all(getattr(parameter, "help", None) for parameter in command.params)


def test_defaults_are_shown(run):
    assert "[default: sample]" in run("merge", "--help").stdout


def test_the_list_of_commands_is_the_folder():
    names = {path.stem for path in Path(suture.cli.__file__).parent.glob("[a-z]*.py")}
    assert sorted(COMMANDS) == sorted(names - {"app"})


def imported(*arguments):
    """All modules that a command has imported when it ends, with no terminal around it."""
    code = f"""
import atexit, json, sys
atexit.register(lambda: print(json.dumps(sorted(sys.modules)), file=sys.__stderr__))
sys.argv = ["suture", *{list(arguments)}]
from suture.cli import app
app.main()
"""
    return set(json.loads(python(code).stderr.splitlines()[-1]))


@pytest.mark.parametrize("arguments", [["--version"], ["--help"], ["merge", "--help"], ["merge"], ["nonsense"]])
def test_nothing_heavy_is_imported_before_a_command_runs(arguments):
    modules = imported(*arguments)
    assert not modules & set(HEAVY)
    assert not modules & {"suture.pipeline", "suture.rules", "suture.values", "suture.training"}


def test_a_command_imports_no_other_command():
    modules = imported("explain", "T401")
    assert modules & {f"suture.cli.{name}" for name in COMMANDS} == {"suture.cli.explain"}


@pytest.mark.parametrize("arguments", [["explain", "T401"], ["check", "/none/a", "/none/b"], ["rules", "--json"]])
def test_rich_is_for_terminals(arguments):
    assert not imported(*arguments) & {"rich", "pydantic", "typer"}


def test_the_version(run):
    assert run("--version").stdout == f"suture {suture.__version__}\n"


@pytest.mark.parametrize(
    "call",
    ["", "nonsense", "check", "check a b --tied maybe", "merge a b", "check a b c", "merge a b -o c --workers 0"],
)
def test_wrong_calls(run, call):
    result = run(*call.split())
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith("Usage: suture ")


def test_a_command_that_is_nearly_right(run):
    assert "Did you mean 'check'?" in run("chekc").stderr


def test_without_arguments_help_is_shown_where_an_argument_is_needed(run):
    assert run("merge").stderr == run("merge", "--help").stdout
    assert run("rules").exit_code == 0


def test_ctrl_c_while_a_command_is_imported(run, monkeypatch):
    def stopped(name):
        raise KeyboardInterrupt

    monkeypatch.setattr("suture.cli.app._loaded", stopped)
    assert run("check", "a").exit_code == 130


def test_a_shell_completes_names(run):
    def completed(line):
        words = line.split(" ")
        asked = {"_SUTURE_COMPLETE": "bash_complete", "COMP_WORDS": line, "COMP_CWORD": str(len(words) - 1)}
        result = python("from suture.cli import app; app.main()", env={**os.environ, **asked})
        assert result.stderr == ""
        return result.stdout.split()

    assert completed("suture me") == ["plain,merge"]
    assert completed("suture nonsense --t") == []
    assert completed("suture merge --ti") == ["plain,--tied"]
    assert completed("suture merge --tied u") == ["plain,untie"]


HANGING = """
import time
from suture import checking
from suture.cli import app
def hang(*_, **__):
    print("ready", flush=True)
    time.sleep(60)
checking.check_files = hang
import sys; sys.argv = ["suture", "check", "a", "b"]
app.main()
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_a_command(number):
    with subprocess.Popen([sys.executable, "-c", HANGING], stdout=-1, stderr=-1, text=True) as process:
        assert process.stdout.readline() == "ready\n"
        process.send_signal(number)
        _, errors = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "Nothing was left behind." in errors
    assert "Traceback" not in errors


def test_a_reader_that_goes_away_is_no_error():
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "suture", "explain", "T401"]
    result = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True, check=False)
    os.close(write)
    assert result.returncode == 141
    assert result.stderr == ""


def test_stdout_that_knows_no_unicode():
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    command = [sys.executable, "-m", "suture", "explain", "lora"]
    result = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert (result.returncode, result.stderr) == (0, "")
    assert "s = \\u03b1 / r" in result.stdout
