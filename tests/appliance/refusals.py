#!/usr/bin/env python3
"""Requests that are refused, each of which the service writes a record about.

Usage: refusals.py SECONDS LEAST   Asks for that long, and at least so often; prints how often, and how many milliseconds
the slowest took. Ends with 1 when one is answered with anything but 403.
"""

import sys
import time

from clients import Connection

SOCKET = "/run/caxton/caxton.sock"


def main():
    seconds, least = float(sys.argv[1]), int(sys.argv[2])
    connection, count, slowest = Connection(SOCKET), 0, 0.0
    end = time.monotonic() + seconds
    while count < least or time.monotonic() < end:
        began = time.monotonic()
        connection.request("POST", "/api/memory/flush")
        answer = connection.getresponse()
        answer.read()
        if answer.status != 403:
            sys.exit(f"request {count}: {answer.status}")
        count, slowest = count + 1, max(slowest, time.monotonic() - began)
    print(count, round(slowest * 1000))


if __name__ == "__main__":
    main()
