#!/usr/bin/env python3
"""Runs in the slice of the service: holds memory, writes to all of it ten times a second, and records the longest gap.

Usage: bystander.py MEBIBYTES FILE   FILE holds the longest gap so far, in milliseconds.
"""

import mmap
import os
import sys
import time

INTERVAL = 0.1


def main():
    size, path = int(sys.argv[1]) << 20, sys.argv[2]
    memory = mmap.mmap(-1, size)
    longest, last = 0.0, None
    while True:
        for page in range(0, size, mmap.PAGESIZE):
            memory[page] = memory[page] + 1 & 0xFF
        now = time.monotonic()
        if last is not None and now - last > longest:
            longest = now - last
            with open(path + ".new", "w") as file:
                file.write(f"{longest * 1000:.0f}\n")
            os.rename(path + ".new", path)
        last = now
        time.sleep(INTERVAL)


if __name__ == "__main__":
    main()
