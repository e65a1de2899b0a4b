"""Tests langchain-ollama, which checks at its start that the model is in the list of models."""

import asyncio
from importlib.metadata import version

import httpx
from expected import MODEL, SOCKET, TEXTS, URL, VECTORS, done, refused, same
from langchain_ollama import OllamaEmbeddings

for name in (MODEL, f"{MODEL}:latest"):
    client = OllamaEmbeddings(model=name, base_url=URL, validate_model_on_init=True)
    same(client.embed_documents(TEXTS))
    same([client.embed_query(TEXTS[0])], VECTORS[:1])
    same(asyncio.run(client.aembed_documents(TEXTS[:4])), VECTORS[:4])
transport = httpx.HTTPTransport(uds=SOCKET)
same([OllamaEmbeddings(model=MODEL, base_url="http://localhost", sync_client_kwargs={"transport": transport},
                       num_ctx=256, keep_alive=300).embed_query(TEXTS[0])], VECTORS[:1])
with refused(ValueError, "not found"):
    OllamaEmbeddings(model="nomic-embed-text", base_url=URL, validate_model_on_init=True)
package = "langchain-ollama"
done(package, version(package), f"id and id:latest are in the list, {len(TEXTS)} texts")
