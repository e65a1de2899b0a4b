"""Tests httpx without another library: every route for vectors, and the form of its errors."""

import httpx
from expected import MODEL, SOCKET, TEXTS, VECTORS, done, refused, same

client = httpx.Client(transport=httpx.HTTPTransport(uds=SOCKET), base_url="http://localhost", timeout=600)


def post(path: str, **body) -> httpx.Response:
    return client.post(path, json=body)


answer = post("/v1/embeddings", model=MODEL, input=TEXTS).raise_for_status()
assert answer.headers["x-caxton-embedding-space"]
same([item["embedding"] for item in answer.json()["data"]])
other = post("/api/embed", model=MODEL, input=TEXTS).raise_for_status()
assert other.headers["x-caxton-embedding-space"] == answer.headers["x-caxton-embedding-space"]
same(other.json()["embeddings"])
same([post("/api/embeddings", model=MODEL, prompt=TEXTS[0]).json()["embedding"]], VECTORS[:1])
with refused(httpx.HTTPStatusError, "404"):
    post("/v1/embeddings", model="none", input="a").raise_for_status()
assert post("/v1/embeddings", model="none", input="a").json()["error"]["code"] == "model_not_found"
assert "\"none\" is not installed" in post("/api/embed", model="none", input="a").json()["error"]
done("httpx", httpx.__version__, f"/v1/embeddings = /api/embed = /api/embeddings, {len(TEXTS)} texts; 404 in each shape")
