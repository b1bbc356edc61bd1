"""Mutations that know what they change: JSON by its tokens, safetensors files with a length that fits again."""

from __future__ import annotations

import random
import re
import struct

# Numbers, words and characters at the edges of what readers expect.
NUMBERS = (
    *(
        "0",
        "-0",
        "1",
        "-1",
        "2",
        "3",
        "7",
        "8",
        "64",
        "255",
        "1e0",
        "0.5",
        "1e999",
        "-1e999",
        "1e-999",
        "NaN",
        "Infinity",
    ),
    *("2147483648", "4294967296", "9007199254740993", "9223372036854775807", "9223372036854775808"),
    *("18446744073709551615", "18446744073709551616", "-Infinity", "1" + "0" * 400, "9" * 4301, "01", "+1", "1.", ".5"),
)
VALUES = (
    *(
        "null",
        "true",
        "false",
        "[]",
        "{}",
        '""',
        "[[]]",
        "[0]",
        '{"a": 1}',
        '"\\ud800"',
        '"\\ud83d\\ude00"',
        '"\\u0000"',
    ),
    *('"\\u001b[31m"', '"\u202e"', '"../x"', '"/etc/passwd"', '"' + "x" * 300 + '"', "[" * 70 + "]" * 70, '"\ufeff"'),
    *('"a\\nb"', '"(a+)+$"', '".*"', '"["', '"."', '"__metadata__"', '"\\\\"', "[null]", '["a"]', "[true]", "[1.5]"),
)
BYTES = (
    b"\x00",
    b"\xff",
    b"\xef\xbb\xbf",
    b"\xed\xa0\x80",
    b"\x1b",
    b"\x7f",
    b"{",
    b"}",
    b"[",
    b"]",
    b'"',
    b",",
    b":",
    b"\\",
)
_NUMBER = re.compile(rb"-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?")
_TEXT = re.compile(rb'"(?:[^"\\]|\\.)*"')
_VALUE = re.compile(rb'"(?:[^"\\]|\\.)*"|-?\d[\d.eE+-]*|true|false|null|\[[^\[\]{}]*\]|\{[^{}\[\]]*\}')
_MEMBER = re.compile(rb'"(?:[^"\\]|\\.)*"\s*:\s*(?:\{[^{}]*\}|\[[^\[\]]*\]|"(?:[^"\\]|\\.)*"|[^,{}\[\]]+)')


def json_text(raw: bytes, rng: random.Random, n: int = 1) -> bytes:
    """JSON text after `n` mutations: numbers, texts, values and members replaced, copied or dropped; bytes too."""
    for _ in range(n):
        raw = rng.choice(_CHANGES)(raw, rng)
    return raw


def safetensors(raw: bytes, rng: random.Random, n: int = 1) -> bytes:
    """A safetensors file whose header was mutated; mostly the length and the data fit the new header."""
    header, data = raw[8:], b""
    if len(raw) >= 8 and (length := struct.unpack("<Q", raw[:8])[0]) <= len(raw) - 8:
        header, data = raw[8 : 8 + length], raw[8 + length :]
    header = json_text(header, rng, n)
    kind = rng.randrange(12)
    length = len(header) if kind else rng.choice((0, 1, len(header) - 1, len(header) + 1, 2**31, 2**63, 2**64 - 1))
    if kind in (1, 2, 3):
        end = max((int(m) for m in re.findall(rb"\d{1,6}(?=\s*\])", header)), default=0)
        data = (data + bytes(range(256)) * (min(end, 1 << 16) // 256 + 1))[: min(end, 1 << 16)]
    elif kind == 4:
        data = data[: rng.randrange(len(data) + 1)] + rng.randbytes(rng.randrange(9))
    return struct.pack("<Q", length % 2**64) + header + data


def _replaced(pattern: re.Pattern[bytes], raw: bytes, rng: random.Random, new: bytes) -> bytes:
    found = list(pattern.finditer(raw))
    if not found:
        return raw + new
    match = rng.choice(found)
    return raw[: match.start()] + new + raw[match.end() :]


def _number(raw: bytes, rng: random.Random) -> bytes:
    new = rng.choice(NUMBERS) if rng.random() < 0.6 else str(rng.randrange(40))
    return _replaced(_NUMBER, raw, rng, new.encode())


def _value(raw: bytes, rng: random.Random) -> bytes:
    return _replaced(_VALUE, raw, rng, rng.choice(VALUES).encode())


def _text(raw: bytes, rng: random.Random) -> bytes:
    texts = _TEXT.findall(raw) or [b'""']
    return _replaced(_TEXT, raw, rng, rng.choice(texts))


def _copied(raw: bytes, rng: random.Random) -> bytes:
    found = list(_MEMBER.finditer(raw))
    if not found:
        return raw * 2 if len(raw) < 4096 else raw
    what, where = rng.choice(found), rng.choice(found)
    return raw[: where.start()] + what.group() + b"," + raw[where.start() :]


def _dropped(raw: bytes, rng: random.Random) -> bytes:
    return _replaced(_MEMBER, raw, rng, b"").replace(b",,", b",").replace(b"{,", b"{").replace(b",}", b"}")


def _byte(raw: bytes, rng: random.Random) -> bytes:
    place = rng.randrange(len(raw) + 1)
    new = rng.choice(BYTES) if rng.random() < 0.7 else rng.randbytes(1)
    return raw[:place] + new + raw[place + rng.randrange(2) :]


def _cut(raw: bytes, rng: random.Random) -> bytes:
    place = rng.randrange(len(raw) + 1)
    return raw[:place] + raw[place + rng.randrange(1, 9) :]


def _nested(raw: bytes, rng: random.Random) -> bytes:
    depth = rng.choice((2, 65, 200, 3000))
    found = list(_VALUE.finditer(raw))
    if not found:
        return b"[" * depth
    match = rng.choice(found)
    return raw[: match.start()] + b"[" * depth + match.group() + b"]" * depth + raw[match.end() :]


_CHANGES = (_number, _number, _number, _value, _value, _text, _copied, _dropped, _byte, _cut, _nested)
