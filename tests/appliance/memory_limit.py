#!/usr/bin/env python3
"""The daemon in a control group of its own with too little memory for its models, under load.

Needs root, a memory controller (version 1 or 2 of control groups) and the release binaries. Each of --package
is served; --clients ask for them at random for --seconds. Fails when the kernel killed anything, when a request was
answered with anything but 200 or 503 with Retry-After, or when a vector is not the one that `caxton bench`
computes of the same text outside of the group.
"""

import argparse
import collections
import http.client
import json
import os
import pathlib
import random
import shutil
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time

ANSWER_TIMEOUT = 60
READY_TIMEOUT = 120


class Connection(http.client.HTTPConnection):
    def __init__(self, path):
        super().__init__("caxton", timeout=ANSWER_TIMEOUT)
        self.path = str(path)

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self.path)


class Group:
    """A control group with a limit."""

    def __init__(self, limit):
        unified = pathlib.Path("/sys/fs/cgroup")
        self.v2 = (unified / "cgroup.controllers").exists()
        self.path = (unified if self.v2 else unified / "memory") / f"caxton-{os.getpid()}"
        self.path.mkdir()
        self.write("memory.max" if self.v2 else "memory.limit_in_bytes", limit)

    def write(self, name, value):
        (self.path / name).write_text(str(value))

    def number(self, name, key=None):
        text = (self.path / name).read_text()
        if key is None:
            return int(text)
        return int(dict(line.split()[:2] for line in text.splitlines())[key])

    def killed(self):
        return self.number("memory.events" if self.v2 else "memory.oom_control", "oom_kill")

    def peak(self):
        return self.number("memory.peak" if self.v2 else "memory.max_usage_in_bytes")


def ask(connection, method, path, body=None):
    connection.request(method, path, body=None if body is None else json.dumps(body))
    answer = connection.getresponse()
    data = answer.read()
    return answer, data


def truth(caxton, package, texts, directory):
    """The vectors of `texts`, computed without a daemon."""
    out, corpus = directory / "truth.safetensors", directory / "texts.jsonl"
    corpus.write_text("".join(json.dumps(text) + "\n" for text in texts))
    subprocess.run([caxton, "bench", "--model", package, "--input", corpus, "--seconds", "1", "--output", out,
                    "--json"], check=True, stdout=subprocess.DEVNULL)
    data = out.read_bytes()
    size = struct.unpack("<Q", data[:8])[0]
    (tensor,) = [t for name, t in json.loads(data[8:8 + size]).items() if name != "__metadata__"]
    rows, width = tensor["shape"]
    values = struct.unpack(f"<{rows * width}f", data[8 + size:][slice(*tensor["data_offsets"])])
    return [values[row * width:(row + 1) * width] for row in range(rows)]


def cosine(a, b):
    dot = lambda a, b: sum(x * y for x, y in zip(a, b))
    return dot(a, b) / (dot(a, a) * dot(b, b)) ** 0.5


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--binaries", type=pathlib.Path, default=pathlib.Path("target/release"))
    parser.add_argument("--package", type=pathlib.Path, action="append", required=True)
    parser.add_argument("--limit-mib", type=int, default=256)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--seconds", type=int, default=300)
    arguments = parser.parse_args()
    caxton, caxtond = arguments.binaries / "caxton", arguments.binaries / "caxtond"
    texts = [f"Sensor {n} of line {n % 7} reports {'vibration above ' * (n % 9)}{n * 13 % 97} units."
             for n in range(64)]
    directory = pathlib.Path(tempfile.mkdtemp(prefix="caxton-limit-"))
    bundled, config, sock = directory / "bundled", directory / "caxton.yaml", directory / "socket"
    bundled.mkdir()
    expected = {}
    for package in arguments.package:
        name = package.name.rsplit("-", 1)[0]
        shutil.copy(package, bundled)
        expected[name] = truth(caxton, package, texts, directory)
    models = list(expected)
    config.write_text(json.dumps({
        "socket": {"path": str(sock)},
        "memory": {"embedding_model": models[0], "fallback_models": [models[0]], "preload_models": [],
                   "min_free": "16MiB", "model_cache": {"directory": str(directory / "state")}},
        "packages": {"bundled_directory": str(bundled), "drop_directory": str(directory / "drop"),
                     "keys_directory": str(directory / "keys")}}))
    group = Group(arguments.limit_mib << 20)
    log = open(directory / "log", "wb")
    daemon = subprocess.Popen([caxtond, "--config", config], stderr=log,
                              preexec_fn=lambda: group.write("cgroup.procs", os.getpid()))
    deadline = time.monotonic() + READY_TIMEOUT
    while True:
        try:
            answer, data = ask(Connection(sock), "GET", "/api/packages")
            if {p["id"] for p in json.loads(data)["packages"] if p["status"] == "available"} >= set(models):
                break
        except OSError:
            pass
        if time.monotonic() > deadline or daemon.poll() is not None:
            sys.exit(f"not ready: {directory / 'log'}")
        time.sleep(0.1)
    counts, wrong, lock = collections.Counter(), [], threading.Lock()
    end = time.monotonic() + arguments.seconds

    def client(seed):
        choose = random.Random(seed)
        connection = Connection(sock)
        while time.monotonic() < end:
            name = choose.choice(models)
            picked = choose.sample(range(len(texts)), choose.randint(1, 8))
            try:
                answer, data = ask(connection, "POST", "/v1/embeddings",
                                   {"model": name, "input": [texts[i] for i in picked]})
            except (OSError, http.client.HTTPException) as error:
                with lock:
                    wrong.append(f"{name}: {error!r}")
                connection = Connection(sock)
                continue
            outcome = str(answer.status)
            if answer.status == 200:
                for i, row in zip(picked, json.loads(data)["data"]):
                    if (least := cosine(row["embedding"], expected[name][i])) < 0.99999:
                        with lock:
                            wrong.append(f"{name}: text {i} has cosine {least}")
            else:
                outcome = json.loads(data)["error"]["code"]
                if answer.status != 503 or answer.getheader("retry-after") is None:
                    with lock:
                        wrong.append(f"{name}: {answer.status} {data[:300]!r}")
                time.sleep(0.05)
            with lock:
                counts[f"{name} {outcome}"] += 1

    threads = [threading.Thread(target=client, args=(seed,)) for seed in range(arguments.clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    stats = json.loads(ask(Connection(sock), "GET", "/api/models/stats")[1])["models"]
    daemon.terminate()
    code = daemon.wait(60)
    killed, peak = group.killed(), group.peak()
    group.path.rmdir()
    for name, count in sorted(counts.items()):
        print(f"{count:8} {name}")
    for model in stats:
        print(f"{model['loads']:8} loads of {model['id']}")
    print(f"peak of the group {peak / 2**20:.0f} of {arguments.limit_mib} MiB, killed {killed}, exit {code}, "
          f"wrong {len(wrong)}; log: {directory / 'log'}")
    for line in wrong[:10]:
        print(line, file=sys.stderr)
    sys.exit(bool(killed or code or wrong))


if __name__ == "__main__":
    main()
