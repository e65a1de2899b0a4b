#!/usr/bin/env python3
"""How long the service takes from a signal of pressure until its memory is released.

Usage: release_time.py GROUP BYTES   Puts memory.high of the control group GROUP below what it uses beside the pages of
files, which the kernel would take first, and prints the milliseconds until BYTES less are in use. memory.high is what it was before when it ends, 1 when that took too long.
"""

import pathlib
import sys
import time

# Below which the kernel is asked to hold the group, in bytes under what it uses.
STEP = 8 << 20
LONGEST = 30.0
LOOK_EVERY = 0.005


def used(group):
    """What cannot be had back without the service: file pages can."""
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
