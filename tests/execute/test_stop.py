"""Signals raise the flag while a run is on, and mean what they meant before and after."""

import os
import signal
import threading

import pytest

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
