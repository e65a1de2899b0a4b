#!/usr/bin/env python3
"""Runs clients that request vectors of random texts and compare them with those of sentence-transformers.

Every response must be 200 with the right vectors, or 503 with Retry-After. Prints the number of each response and the
failures. Exits with 1 if there was a failure.
"""

import argparse
import collections
import http.client
import json
import pathlib
import random
import socket
import struct
import sys
import threading
import time

HERE = pathlib.Path(__file__).resolve().parent
# Timeout of a request in seconds, longer than the load of a model under emulation.
ANSWER_TIMEOUT = 120
# Number of texts in use, the shortest ones: an emulated processor computes about ten tokens per second.
TEXTS = 24


class Connection(http.client.HTTPConnection):
    """HTTP over a Unix socket."""

    def __init__(self, path):
        super().__init__("caxton", timeout=ANSWER_TIMEOUT)
        self.path = path

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self.path)


def reference(golden):
    """Returns the texts and their vectors of sentence-transformers, from the tensor `embedding` of reference.safetensors."""
    texts = [json.loads(line) for line in (golden / "texts_real.jsonl").read_text().splitlines()]
    data = (golden / "reference.safetensors").read_bytes()
    (size,) = struct.unpack("<Q", data[:8])
    tensor = json.loads(data[8:8 + size])["embedding"]
    rows, width = tensor["shape"]
    values = struct.unpack(f"<{rows * width}f", data[8 + size:][slice(*tensor["data_offsets"])])
    return texts, [values[row * width:(row + 1) * width] for row in range(rows)]


def cosine(a, b):
    def dot(a, b):
        return sum(x * y for x, y in zip(a, b))
    return dot(a, b) / (dot(a, a) * dot(b, b)) ** 0.5


class Run:
    """State that all clients share."""

    def __init__(self, arguments):
        self.socket, self.fresh, self.ready = arguments.socket, arguments.fresh, arguments.ready
        self.models = {name: float(least) for name, least in (model.split("=") for model in arguments.model)}
        self.texts, self.vectors = reference(arguments.golden)
        # The service rejects a text of only spaces.
        told = (i for i, text in enumerate(self.texts) if text.strip())
        self.picks = sorted(told, key=lambda i: len(self.texts[i]))[:TEXTS]
        self.end = time.monotonic() + arguments.seconds
        self.counts, self.slowest, self.wrong = collections.Counter(), 0.0, []
        self.lock = threading.Lock()

    def client(self, seed):
        """Sends requests until the end of the run."""
        choose = random.Random(seed)
        connection = Connection(self.socket)
        while time.monotonic() < self.end:
            model = choose.choice(list(self.models))
            picked = choose.sample(self.picks, choose.randint(1, 2))
            began = time.monotonic()
            try:
                outcome, wrong, pause = self.ask(connection, model, picked)
            except (OSError, http.client.HTTPException) as error:
                outcome, wrong, pause = "broken", f"{model}: {error!r}", 0
            if self.fresh or outcome == "broken":
                connection.close()
                connection = Connection(self.socket)
            with self.lock:
                self.counts[f"{model} {outcome}"] += 1
                self.slowest = max(self.slowest, time.monotonic() - began)
                if wrong:
                    self.wrong.append(wrong)
                if self.ready and outcome == "200":
                    self.ready.touch()
            # The clients wait less than Retry-After, because the test needs as many requests as possible.
            time.sleep(min(pause, 0.5))

    def ask(self, connection, model, picked):
        """Sends one request. Returns its outcome, its failure or None, and the seconds before the next request."""
        body = json.dumps({"model": model, "input": [self.texts[i] for i in picked]})
        connection.request("POST", "/v1/embeddings", body, {"content-type": "application/json"})
        answer = connection.getresponse()
        said = json.loads(answer.read())
        if answer.status == 200:
            least = min(cosine(row["embedding"], self.vectors[i]) for i, row in zip(picked, said["data"]))
            right = len(said["data"]) == len(picked) and least >= self.models[model]
            return "200", None if right else f"{model}: texts {picked} have a cosine of {least}", 0
        outcome, again = f"{answer.status} {said['error']['code']}", answer.getheader("retry-after")
        if answer.status != 503 or again is None:
            return outcome, f"{model}: {outcome}: {said['error']['message']} (Retry-After: {again})", 0
        return outcome, None, int(again)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--socket", default="/run/caxton/caxton.sock")
    parser.add_argument("--golden", type=pathlib.Path, default=HERE / "golden")
    parser.add_argument("--model", action="append", required=True, help="ID=LEAST: the least cosine that is right")
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--fresh", action="store_true", help="every request has a connection of its own")
    parser.add_argument("--ready", type=pathlib.Path, help="made when the first request was answered")
    arguments = parser.parse_args()
    run = Run(arguments)
    threads = [threading.Thread(target=run.client, args=(seed,)) for seed in range(arguments.clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for outcome, count in sorted(run.counts.items()):
        print(f"{count} × {outcome}")
    print(f"slowest {run.slowest:.1f} s")
    if not any(outcome.endswith(" 200") for outcome in run.counts):
        run.wrong.append("no request was answered with vectors")
    for line in run.wrong[-20:]:
        print(line)
    sys.exit(bool(run.wrong))


if __name__ == "__main__":
    main()
