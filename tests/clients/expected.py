"""What every client must get: read from CAXTON_EXPECTED, which `run` wrote."""

import contextlib
import json
import os
import struct
import sys

SOCKET = os.environ["CAXTON_SOCKET"]
with open(os.environ["CAXTON_EXPECTED"], encoding="utf-8") as file:
    _EXPECTED = json.load(file)
MODEL = _EXPECTED["model"]
TEXTS = _EXPECTED["texts"]
# Of each text, special tokens included.
IDS = _EXPECTED["ids"]
VECTORS = _EXPECTED["vectors"]

# As tests/it/embeddings.rs has it for a text alone and in a batch.
_TOLERANCE = 1e-6


def as_f32(numbers: list[float]) -> list[float]:
    return list(struct.unpack(f"<{len(numbers)}f", struct.pack(f"<{len(numbers)}f", *numbers)))


def same(found: list[list[float]], wanted: list[list[float]] | None = None) -> None:
    """`found` are the vectors of `wanted`, or of all texts: as f32, whatever the client made of them."""
    wanted = VECTORS if wanted is None else wanted
    assert len(found) == len(wanted), f"{len(found)} vectors for {len(wanted)} texts"
    pairs = [(as_f32(list(a)), b) for a, b in zip(found, wanted, strict=True)]
    worst = max(abs(x - y) for a, b in pairs for x, y in zip(a, b, strict=True))
    assert worst <= _TOLERANCE, f"vectors differ by {worst:e}"


@contextlib.contextmanager
def refused(exception: type[BaseException], *parts: str):
    """The block ends with `exception`, whose text has all `parts`."""
    try:
        yield
    except exception as error:
        missing = [part for part in parts if part not in str(error)]
        assert not missing, f"{missing} missing in {type(error).__name__}: {error}"
    else:
        raise AssertionError(f"no {exception.__name__}")


def done(client: str, version: str, what: str) -> None:
    print(f"{client} {version} (Python {sys.version.split()[0]}): {what}", flush=True)
