"""Tests Ollama's client: both routes for vectors, the listings, keep_alive, and rejected requests."""

from importlib.metadata import version

import httpx
import ollama
from expected import IDS, MODEL, SOCKET, TEXTS, VECTORS, done, refused, same

client = ollama.Client(host="http://localhost", transport=httpx.HTTPTransport(uds=SOCKET))
answer = client.embed(model=MODEL, input=TEXTS)
same(answer.embeddings)
assert answer.model == MODEL and answer.prompt_eval_count == sum(map(len, IDS)), answer.prompt_eval_count
assert answer.total_duration > 0 and answer.load_duration > 0
same(client.embed(model=f"{MODEL}:latest", input=TEXTS[0], keep_alive="10m").embeddings, VECTORS[:1])
same([client.embeddings(model=MODEL, prompt=TEXTS[0]).embedding], VECTORS[:1])
# Ollama ignores a length that is larger than the model's.
same(client.embed(model=MODEL, input=TEXTS[0], dimensions=4096).embeddings, VECTORS[:1])
with refused(ollama.ResponseError, "dimensions", "400"):
    client.embed(model=MODEL, input="a", dimensions=64)
listed = {model.model: model for model in client.list().models}
assert set(listed) == {f"{MODEL}:latest", f"{MODEL}:1.0.0"}, listed
latest = listed[f"{MODEL}:latest"]
assert latest.size > 0 and latest.details.format == "safetensors", latest
running = {model.model: model for model in client.ps().models}
minutes = (running[f"{MODEL}:latest"].expires_at - latest.modified_at).total_seconds() / 60
assert set(running) == set(listed) and 9 < minutes < 70, running
client.embed(model=f"{MODEL}:1.0.0", input="", keep_alive=-1)
assert client.ps().models[0].expires_at.year > 2300
shown = client.show(MODEL)
architecture = shown.modelinfo["general.architecture"]
assert shown.modelinfo[f"{architecture}.embedding_length"] == len(VECTORS[0]), shown
assert shown.capabilities == ["embedding"], shown
with refused(ollama.ResponseError, "\"nomic-embed-text\" is not installed", MODEL, "404"):
    client.embed(model="nomic-embed-text", input="a")
with refused(ollama.ResponseError, "input 1 is empty", "400"):
    client.embed(model=MODEL, input=["a", ""])
with refused(ollama.ResponseError, "input[0] has ", "400"):
    client.embed(model=MODEL, input=["word " * 1000], truncate=False)
assert client.pull(MODEL).status == "success"
assert [part.status for part in client.pull(f"{MODEL}:latest", stream=True)][-1] == "success"
with refused(ollama.ResponseError, "nomic-embed-text", "never downloads"):
    client.pull("nomic-embed-text")
with refused(ollama.ResponseError, "generates text", "400"):
    client.generate(model=MODEL, prompt="hello")
assert client.generate(model=MODEL).done_reason == "load"
done("ollama", version("ollama"), f"embed = embeddings, {len(TEXTS)} texts; keep_alive seen in ps; 404 and 400 as its own exception")
