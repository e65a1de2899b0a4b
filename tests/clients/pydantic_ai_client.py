"""Tests the embeddings of pydantic-ai with the providers for OpenAI and Ollama."""

from importlib.metadata import version

from expected import MODEL, TEXTS, URL, VECTORS, done, refused, same
from pydantic_ai import Embedder
from pydantic_ai.embeddings.openai import OpenAIEmbeddingModel
from pydantic_ai.exceptions import ModelHTTPError
from pydantic_ai.providers.ollama import OllamaProvider
from pydantic_ai.providers.openai import OpenAIProvider

providers = [
    (MODEL, OpenAIProvider(base_url=f"{URL}/v1", api_key="unused")),
    (f"{MODEL}:latest", OllamaProvider(base_url=f"{URL}/v1")),
]
for name, provider in providers:
    embedder = Embedder(OpenAIEmbeddingModel(name, provider=provider))
    same(embedder.embed_documents_sync(TEXTS).embeddings)
    same(embedder.embed_query_sync(TEXTS[0]).embeddings, VECTORS[:1])
with refused(ModelHTTPError, "not installed", "404"):
    provider = OpenAIProvider(base_url=f"{URL}/v1", api_key="unused")
    Embedder(OpenAIEmbeddingModel("text-embedding-3-small", provider=provider)).embed_query_sync("a")
package = "pydantic-ai-slim"
done(package, version(package), f"OpenAI and Ollama providers, {len(TEXTS)} texts; 404 as its own exception")
