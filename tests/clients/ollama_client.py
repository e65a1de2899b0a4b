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
assert len(client.embed(model=MODEL, input="a", dimensions=64).embeddings[0]) == 64
(listed,) = client.list().models
assert listed.model.startswith(f"{MODEL}:") and listed.size > 0 and listed.details.format == "safetensors", listed
(running,) = client.ps().models
minutes = (running.expires_at - listed.modified_at).total_seconds() / 60
assert running.model == listed.model and 9 < minutes < 70, running
client.embed(model=listed.model, input="", keep_alive=-1)
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
with refused(ollama.ResponseError, "there is no POST /api/pull", "404"):
    client.pull("nomic-embed-text")
done("ollama", version("ollama"), f"embed = embeddings, {len(TEXTS)} texts; keep_alive seen in ps; 404 and 400 as its own exception")
