"""Damage to valid files, from a seed: bytes flipped, cut, doubled, moved, and values that readers trip over."""

import random

NASTY = [
    *(b"", b"\0", b"\0" * 8, b"\xff" * 4, b"\xff" * 8, b"\x7f\xff\xff\xff", b"\x80\0\0\0"),
    *(b"\n", b"\r\n", b" " * 50, b'"', b"'", b"#", b",", b"=", b";", b"..", b"%s%n"),
    *(b"{", b"[", b"]}" * 3, b"[" * 2000, b'{"a":' * 500, b"null", b"true", b"x" * 3000),
    *(b"-1", b"0", b"1e999", b"nan", b"inf", b"9" * 25, b"9" * 5000, b"0x" + b"f" * 300),
    *(b"\xef\xbb\xbf", b"\xed\xa0\x80", b"\x1b[31m"),
    *(b"0F0", b"1SF0 0RB0", b"(0F0;1B0)OVERLAP_F_B", b"F64", b"BF16", b"[0,18446744073709551615]", b"PK\x05\x06"),
]


def mutated(content, seed, texts=False):
    """The content with one to five pieces of damage; `texts` leaves it text more often."""
    rng = random.Random(seed)
    data = bytearray(content)
    for _ in range(rng.choice((1, 1, 1, 2, 2, 3, 5))):
        at = rng.randrange(len(data) + 1)
        length = min(rng.choice((1, 1, 2, 4, 8, 30, 300)), len(data) - at)
        kind = rng.choice(["flip", "set", "insert", "cut", "drop", "double", "swap", "nasty", "number"])
        if kind == "flip" and length:
            data[at] ^= 1 << rng.randrange(7 if texts else 8)
        elif kind == "set" and length:
            data[at] = rng.choice((0, 1, 9, 32, 44, 48, 57, 65, 91, 123, 127, 128, 255)[: 11 if texts else 13])
        elif kind == "insert":
            data[at:at] = bytes(rng.randrange(32, 127) if texts else rng.randrange(256) for _ in range(length))
        elif kind == "cut":
            del data[at:]
        elif kind == "drop":
            del data[at : at + length]
        elif kind == "double":
            data[at:at] = data[at : at + length] * rng.choice((1, 2, 50))
        elif kind == "swap":
            other = rng.randrange(len(data) + 1)
            piece = data[at : at + length]
            del data[at : at + length]
            data[other:other] = piece
        elif kind == "number":
            digits = [place for place, byte in enumerate(data) if 48 <= byte <= 57]
            if digits:
                place = rng.choice(digits)
                data[place : place + 1] = rng.choice((b"-1", b"0", b"99999", b"9" * 20, b"1.5", b"1e9", b"0x7f"))
        else:
            data[at : at + rng.choice((0, length))] = rng.choice(NASTY)
    return bytes(data[:200_000])
