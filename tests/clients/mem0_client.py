"""Tests mem0's embedders. Its client of Ollama checks the list of models and pulls a model that is not in it."""

from importlib.metadata import version

from expected import MODEL, TEXTS, URL, VECTORS, done, refused, same
from mem0.configs.embeddings.base import BaseEmbedderConfig
from mem0.embeddings.ollama import OllamaEmbedding
from mem0.embeddings.openai import OpenAIEmbedding
from ollama import ResponseError

dimensions = len(VECTORS[0])
for name in (MODEL, f"{MODEL}:latest", f"{MODEL}:1.0.0"):
    ollama = OllamaEmbedding(BaseEmbedderConfig(model=name, ollama_base_url=URL))
    same([ollama.embed(text, "add") for text in TEXTS[:8]], VECTORS[:8])
openai = OpenAIEmbedding(
    BaseEmbedderConfig(model=MODEL, openai_base_url=f"{URL}/v1", api_key="unused", embedding_dims=dimensions),
)
same([openai.embed(text, "search") for text in TEXTS[:8]], VECTORS[:8])
with refused(ResponseError, "nomic-embed-text", "never downloads"):
    OllamaEmbedding(BaseEmbedderConfig(model="nomic-embed-text", ollama_base_url=URL))
package = "mem0ai"
done(package, version(package), "Ollama by id, id:latest and id:version; OpenAI; a model that is not installed is explained")
