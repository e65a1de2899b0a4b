#!/usr/bin/env python3
"""Sends requests that the service rejects, each with a journal record.

Usage: refusals.py SECONDS LEAST   Sends requests for SECONDS, and at least LEAST of them. Prints their number and the time
of the slowest in milliseconds. Exits with 1 if a response is not 403.
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
