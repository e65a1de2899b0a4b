#!/usr/bin/env python3
"""Measures the time from a pressure signal until the service has released memory.

Usage: release_time.py GROUP BYTES   Sets memory.high of the control group GROUP below its anonymous memory; file pages do
not count, because the kernel reclaims them first. Prints the milliseconds until the use has fallen by BYTES. Restores
memory.high at the end. Exits with 1 if the release takes too long.
"""

import pathlib
import sys
import time

# Distance of memory.high below the memory in use, in bytes.
STEP = 8 << 20
LONGEST = 30.0
LOOK_EVERY = 0.005


def used(group):
    """Returns the anonymous memory, which only the service can free. The kernel can reclaim file pages itself."""
    stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
    return int(stat["anon"])


def main():
    group, amount = pathlib.Path(sys.argv[1]), int(sys.argv[2])
    high = group / "memory.high"
    before, kept = used(group), high.read_text()
    began = time.monotonic()
    high.write_text(str(before - STEP))
    try:
        while used(group) > before - amount:
            if time.monotonic() - began > LONGEST:
                sys.exit(f"{(before - used(group)) >> 20} of {amount >> 20} MiB were released in {LONGEST} s")
            time.sleep(LOOK_EVERY)
        print(round((time.monotonic() - began) * 1000))
    finally:
        high.write_text(kept)


if __name__ == "__main__":
    main()
