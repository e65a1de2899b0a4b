"""Tests LlamaIndex's clients of OpenAI and Ollama."""

from importlib.metadata import version

from expected import MODEL, TEXTS, URL, VECTORS, done, same
from llama_index.embeddings.ollama import OllamaEmbedding
from llama_index.embeddings.openai import OpenAIEmbedding

clients = [
    # `model` is an enumeration of OpenAI's names; `model_name` takes any.
    OpenAIEmbedding(model_name=MODEL, api_base=f"{URL}/v1", api_key="unused"),
    OllamaEmbedding(model_name=f"{MODEL}:latest", base_url=URL),
    OllamaEmbedding(model_name=MODEL, base_url=URL, keep_alive="5m"),
]
for client in clients:
    same(client.get_text_embedding_batch(TEXTS))
    same([client.get_text_embedding(TEXTS[0])], VECTORS[:1])
    same([client.get_query_embedding(TEXTS[0])], VECTORS[:1])
for package in ("llama-index-embeddings-openai", "llama-index-embeddings-ollama"):
    done(package, version(package), f"{len(TEXTS)} texts")
