"""The hash of a file written in any order, by several threads, is the hash of the file."""

import hashlib
import itertools
import random
import threading

import pytest

from suture.execute.prefix import PrefixHash

DATA = random.Random(0).randbytes(10_000)
BOUNDS = [0, 100, 4096, 4097, 9000, 10_000]
SHA256 = hashlib.sha256(DATA).hexdigest()


def reader(offset: int, buffer: memoryview) -> None:
    buffer[:] = DATA[offset : offset + len(buffer)]


def buffer() -> memoryview:
    return memoryview(bytearray(1000))


@pytest.mark.parametrize("order", list(itertools.permutations(BOUNDS[1:-1])))
def test_pieces_in_any_order(order):
    prefix = PrefixHash(BOUNDS, reader)
    prefix.finish(0)
    told = [prefix.advance(buffer())]
    for begin in order:
        prefix.finish(begin)
        told.append(prefix.advance(buffer()))
    assert told == [False] * 4 + [True]
    assert prefix.hexdigest() == SHA256


def test_what_is_fed_is_not_read_again():
    reads = []
    prefix = PrefixHash(BOUNDS, lambda offset, buffer: (reads.append(offset), reader(offset, buffer)))
    for begin, end in itertools.pairwise(BOUNDS):
        prefix.feed(begin, memoryview(DATA[begin:end]))
        prefix.finish(begin)
    assert prefix.advance(buffer())
    assert not prefix.advance(buffer())
    assert prefix.hexdigest() == SHA256
    assert reads == []


def test_what_is_fed_out_of_order_is_read_later():
    prefix = PrefixHash(BOUNDS, reader)
    prefix.feed(100, memoryview(DATA[100:200]))
    prefix.feed(0, memoryview(DATA[:50]))  # half of a piece
    for begin in BOUNDS[:-1]:
        prefix.finish(begin)
    assert prefix.advance(buffer())
    assert prefix.hexdigest() == SHA256


def test_a_file_that_is_not_whole_has_no_hash():
    prefix = PrefixHash(BOUNDS, reader)
    prefix.finish(0)
    assert not prefix.advance(buffer())
    with pytest.raises(AssertionError):
        prefix.hexdigest()


def test_a_piece_that_is_finished_while_the_holder_lets_go_is_not_left_behind():
    class LateLock:
        def __init__(self, late):
            self.held, self.late = False, [late]

        def acquire(self, *, blocking):
            free, self.held = not self.held, True
            return free

        def release(self):
            if self.late:
                self.late.pop()()
            self.held = False

    prefix = PrefixHash([0, 100, 10_000], reader)
    prefix._lock = LateLock(lambda: (prefix.finish(100), prefix.advance(buffer())))
    prefix.finish(0)
    assert prefix.advance(buffer())
    assert prefix.hexdigest() == SHA256


def test_many_threads():
    bounds = list(range(0, 10_001, 10))
    prefix = PrefixHash(bounds, reader)
    order = bounds[:-1]
    random.Random(1).shuffle(order)
    told = []

    def work(mine):
        own = buffer()
        for begin in mine:
            prefix.feed(begin, memoryview(DATA[begin : begin + 10]))
            prefix.finish(begin)
            told.append(prefix.advance(own))

    threads = [threading.Thread(target=work, args=(order[k::4],)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert told.count(True) == 1
    assert prefix.hexdigest() == SHA256
