"""Expected results of every client, read from CAXTON_EXPECTED, which `run` wrote."""

import contextlib
import json
import os
import struct
import sys

SOCKET = os.environ["CAXTON_SOCKET"]
# A proxy on the loopback to SOCKET, for clients that cannot connect to a Unix socket.
URL = os.environ["CAXTON_URL"]
with open(os.environ["CAXTON_EXPECTED"], encoding="utf-8") as file:
    _EXPECTED = json.load(file)
MODEL = _EXPECTED["model"]
TEXTS = _EXPECTED["texts"]
# Token ids of each text, including special tokens.
IDS = _EXPECTED["ids"]
VECTORS = _EXPECTED["vectors"]

# Bound of tests/it/embeddings.rs between a text alone and in a batch.
_TOLERANCE = 1e-6


def as_f32(numbers: list[float]) -> list[float]:
    return list(struct.unpack(f"<{len(numbers)}f", struct.pack(f"<{len(numbers)}f", *numbers)))


def same(found: list[list[float]], wanted: list[list[float]] | None = None) -> None:
    """Checks that `found` are the vectors `wanted`, or those of all texts, after rounding to f32."""
    wanted = VECTORS if wanted is None else wanted
    assert len(found) == len(wanted), f"{len(found)} vectors for {len(wanted)} texts"
    pairs = [(as_f32(list(a)), b) for a, b in zip(found, wanted, strict=True)]
    worst = max(abs(x - y) for a, b in pairs for x, y in zip(a, b, strict=True))
    assert worst <= _TOLERANCE, f"vectors differ by {worst:e}"


@contextlib.contextmanager
def refused(exception: type[BaseException], *parts: str):
    """Checks that the block raises `exception` with all `parts` in its text."""
    try:
        yield
    except exception as error:
        missing = [part for part in parts if part not in str(error)]
        assert not missing, f"{missing} missing in {type(error).__name__}: {error}"
    else:
        raise AssertionError(f"no {exception.__name__}")


def done(client: str, version: str, what: str) -> None:
    print(f"{client} {version} (Python {sys.version.split()[0]}): {what}", flush=True)
