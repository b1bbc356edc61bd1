"""Signals raise the flag while a run is on, and mean what they meant before and after."""

import os
import signal
import threading

import pytest

from suture.errors import Interrupted
from suture.execute.stop import stop_signals


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_raises_the_flag_and_nothing_else(number):
    before = signal.getsignal(number)
    with stop_signals() as stop:
        assert not stop.requested
        os.kill(os.getpid(), number)
        os.kill(os.getpid(), number)
        assert stop.requested
    assert signal.getsignal(number) is before


def test_a_handler_that_ends_the_command_is_replaced():
    """As the command line sets it for SIGTERM."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with stop_signals() as stop:
            os.kill(os.getpid(), signal.SIGTERM)
            assert stop.requested
        assert signal.getsignal(signal.SIGTERM) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGTERM, before)


def test_inside_of_another_block_it_is_the_same_flag(tmp_path):
    with stop_signals() as outer:
        with stop_signals() as inner:
            assert inner is outer
            os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)  # the outer block still listens
        with pytest.raises(Interrupted, match="stopped"):
            outer.check(tmp_path)
    with stop_signals() as later:
        assert not later.requested


def test_a_programs_own_handler_is_left_alone():
    seen = []
    before = signal.signal(signal.SIGTERM, lambda *_: seen.append(1))
    try:
        with stop_signals() as stop:
            os.kill(os.getpid(), signal.SIGTERM)
            assert not stop.requested
        assert seen == [1]
    finally:
        signal.signal(signal.SIGTERM, before)


def test_other_threads_cannot_and_need_not_handle_signals():
    flags = []

    def run():
        with stop_signals() as stop:
            flags.append(stop.requested)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert flags == [False]
