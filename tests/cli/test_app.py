"""The command as a whole: help, start-up, signals, pipes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import click
import pytest

import suture
from suture.cli.app import app

COMMANDS = ["inspect", "check", "explain", "plan", "merge", "verify"]
HEAVY = ["numpy", "torch", "transformers", "peft", "safetensors", "huggingface_hub", "rich.progress", "rich.table"]


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


def test_nothing_heavy_is_imported_at_the_start():
    code = f"import sys, suture.cli.app; print([m for m in {HEAVY} if m in sys.modules])"
    result = python(code)
    assert result.stdout.strip() == "[]", result.stderr


def test_the_version(run):

    assert run("--version").stdout == f"suture {suture.__version__}\n"


@pytest.mark.parametrize("call", ["nonsense", "check", "check a b --tied maybe", "merge a b", "check a b c"])
def test_wrong_calls(run, call):
    assert run(*call.split()).exit_code == 2


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
