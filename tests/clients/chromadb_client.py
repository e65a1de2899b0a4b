"""Tests the embedding functions of chromadb for OpenAI, Ollama and a Hugging Face server."""

from importlib.metadata import version

from chromadb.utils.embedding_functions import (
    HuggingFaceEmbeddingServer,
    OllamaEmbeddingFunction,
    OpenAIEmbeddingFunction,
)
from expected import MODEL, TEXTS, URL, VECTORS, done, same

functions = [
    OpenAIEmbeddingFunction(api_key="unused", api_base=f"{URL}/v1", model_name=MODEL),
    OllamaEmbeddingFunction(url=URL, model_name=MODEL),
    HuggingFaceEmbeddingServer(url=URL),
    HuggingFaceEmbeddingServer(url=f"{URL}/embed"),
]
for function in functions:
    # Its client waits 5 s for an answer.
    for at in range(0, len(TEXTS), 16):
        found = function(TEXTS[at:at + 16])
        same([list(map(float, vector)) for vector in found], VECTORS[at:at + 16])
package = "chromadb"
done(package, version(package), f"OpenAI, Ollama and Hugging Face server functions: {len(TEXTS)} texts")
