"""Tests curl: the request of the README, and the exit code for a rejected request."""

import json
import subprocess

from expected import MODEL, SOCKET, TEXTS, done, same


def curl(path: str, **body) -> tuple[int, dict]:
    command = ["curl", "--silent", "--fail-with-body", "--unix-socket", SOCKET, f"http://caxton{path}"]
    command += ["-H", "content-type: application/json", "-d", "@-"]
    ended = subprocess.run(command, input=json.dumps(body).encode(), stdout=subprocess.PIPE, check=False)
    return ended.returncode, json.loads(ended.stdout)


code, answer = curl("/v1/embeddings", model=MODEL, input=TEXTS)
assert code == 0, answer
same([item["embedding"] for item in answer["data"]])
code, answer = curl("/api/embed", model=MODEL, input=TEXTS)
assert code == 0, answer
same(answer["embeddings"])
# Exit code 22: the status was 400 or above.
code, answer = curl("/v1/embeddings", model="none", input="a")
assert code == 22 and answer["error"]["code"] == "model_not_found", (code, answer)
version = subprocess.run(["curl", "--version"], stdout=subprocess.PIPE, check=True, text=True).stdout.split()[1]
done("curl", version, f"/v1/embeddings = /api/embed, {len(TEXTS)} texts; exit code 22 with our JSON")
