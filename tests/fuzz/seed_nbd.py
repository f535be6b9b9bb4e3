#!/usr/bin/env python3
"""Writes the hand-made part of the NBD corpus: one file for each thing a client can say. The fuzzer goes on from there."""

import pathlib
import struct

OUT = pathlib.Path(__file__).parent / "corpus" / "nbd"
TLS, READ_ONLY, NOT_SERVING, FAILING, LATE = 1, 2, 4, 8, 16
FLAGS = struct.pack(">I", 3)
ALLOCATION = b"base:allocation"


def option(number, data=b""):
    return b"IHAVEOPT" + struct.pack(">II", number, len(data)) + data


def text(value):
    return struct.pack(">I", len(value)) + value


def go(name=b"v", *info, number=7):
    return option(number, text(name) + struct.pack(">H", len(info)) + b"".join(struct.pack(">H", i) for i in info))


def contexts(number, *queries, name=b"v"):
    return option(number, text(name) + struct.pack(">I", len(queries)) + b"".join(map(text, queries)))


def request(command, offset=0, length=0, flags=0, cookie=7, payload=b""):
    return struct.pack(">IHHQQI", 0x25609513, flags, command, cookie, offset, length) + payload


def write(offset, payload, flags=0):
    return request(1, offset, len(payload), flags, payload=payload)


DISC = request(2)
PLAIN = FLAGS + go()
RICH = FLAGS + option(8) + contexts(10, ALLOCATION) + go(b"v", 0, 1, 3)
SIZE = (1 << 20) + 512
SEEDS = {
    "greeting": (0, 0, FLAGS),
    "old_flags": (0, 0, struct.pack(">I", 0) + option(1, b"v") + DISC),
    "unknown_flags": (0, 0, struct.pack(">I", 255)),
    "export_name": (0, 0, FLAGS + option(1, b"v") + request(0, 0, 512) + DISC),
    "export_name_unknown": (0, 0, FLAGS + option(1, b"x")),
    "list": (0, 1, FLAGS + option(3) + option(2)),
    "info": (0, 0, FLAGS + go(b"", 0, 1, 2, 3, number=6) + option(2)),
    "info_malformed": (0, 0, FLAGS + option(6, b"\0\0\0\x05v") + option(7, b"\0") + option(2)),
    "go_unknown": (0, 0, FLAGS + go(b"nope") + go()),
    "go_not_serving": (NOT_SERVING, 0, FLAGS + go() + option(2)),
    "too_big": (0, 200, FLAGS + option(7, b"x" * 17000) + go() + DISC),
    "absurd": (0, 0, FLAGS + b"IHAVEOPT" + struct.pack(">II", 7, 0xFFFFFFFF)),
    "bad_option_magic": (0, 0, FLAGS + b"IHAVEOPS" + struct.pack(">II", 7, 0)),
    "unknown_options": (0, 0, FLAGS + b"".join(option(n, b"abc") for n in (0, 4, 9, 11, 12, 99)) + option(2)),
    "many_options": (0, 0, FLAGS + option(3) * 257),
    "contexts": (0, 0, FLAGS + option(8) + contexts(9) + contexts(9, b"base:") + contexts(10, b"base:") + option(2)),
    "contexts_unstructured": (0, 0, FLAGS + contexts(10, ALLOCATION) + go() + request(7, 0, 4096) + DISC),
    "contexts_other": (0, 0, FLAGS + option(8) + contexts(10, b"qemu:dirty-bitmap:b", ALLOCATION, ALLOCATION) + go() + request(7, 0, 8192) + DISC),
    "tls_required": (TLS, 0, FLAGS + option(3) + go() + option(2)),
    "tls": (TLS, 4, FLAGS + option(5) + go() + DISC),
    "tls_injection": (TLS, 0, FLAGS + option(5) + go()),
    "tls_off": (0, 0, FLAGS + option(5) + go() + DISC),
    "read_write": (0, 0, PLAIN + write(4096, b"\xa5" * 4096) + request(0, 4096, 4096) + request(3) + DISC),
    "bytewise": (0, 1, RICH + write(512, b"ab" * 256, 1) + request(0, 0, 8192) + request(7, 0, 65536) + DISC),
    "structured": (0, 0, RICH + write(4096, b"\x11" * 8192) + request(0, 0, 32768) + request(0, 0, 32768, 4) + DISC),
    "status": (0, 0, RICH + write(8192, b"\1" * 4096) + request(7, 0, SIZE) + request(7, 512, 65536, 8) + DISC),
    "zeroes": (0, 0, RICH + write(0, b"\1" * 16384) + request(6, 4096, 4096) + request(6, 512, 512, 2) + request(4, 8192, 4096, 1) + request(0, 0, 16384) + DISC),
    "fast_zero": (0, 0, RICH + request(6, 0, 4096, 16) + DISC),
    "edges": (0, 0, RICH + b"".join(request(c, o, n) for c in (0, 4, 6, 7) for o, n in ((SIZE - 512, 512), (SIZE, 512), (1, 512), (0, 0), (0, 511), (2**64 - 512, 512), (0, 2**32 - 512))) + DISC),
    "write_past_end": (0, 100, PLAIN + write(SIZE, b"\2" * 1024) + write(SIZE - 512, b"\2" * 1024) + request(3) + DISC),
    "write_absurd": (0, 0, PLAIN + request(1, 0, 2**32 - 1)),
    "write_unfinished": (0, 0, PLAIN + request(1, 0, 32 << 20) + b"\0" * 100),
    "unknown_commands": (0, 0, RICH + b"".join(request(c, 0, 512) for c in (5, 8, 9, 65535)) + request(0, 0, 512, 65535) + DISC),
    "bad_request_magic": (0, 0, PLAIN + request(3) + b"\0" * 28),
    "read_only": (READ_ONLY, 0, RICH + write(0, b"\1" * 512) + request(4, 0, 512) + request(6, 0, 512) + request(0, 0, 512) + DISC),
    "failing": (FAILING, 0, RICH + write(0, b"\1" * 512) + request(0, 0, 512) + request(7, 0, 512) + request(3) + DISC),
    "late": (LATE, 0, RICH + b"".join(request(3, cookie=n) for n in range(300)) + DISC),
    "late_reads": (LATE, 77, PLAIN + b"".join(request(0, 0, 1 << 20, cookie=n) for n in range(40)) + DISC),
}

if __name__ == "__main__":
    OUT.mkdir(parents=True, exist_ok=True)
    for name, (conditions, piece, stream) in SEEDS.items():
        (OUT / name).write_bytes(bytes([conditions, piece]) + stream)
