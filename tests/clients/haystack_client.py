"""Tests Haystack's embedders for OpenAI, Ollama and text-embeddings-inference, and its ranker."""

from importlib.metadata import version

from expected import MODEL, TEXTS, URL, VECTORS, done, same
from haystack import Document
from haystack.components.embedders import OpenAIDocumentEmbedder, OpenAITextEmbedder
from haystack.utils import Secret
from haystack_integrations.components.embedders.huggingface_api import (
    HuggingFaceAPIDocumentEmbedder,
    HuggingFaceAPITextEmbedder,
)
from haystack_integrations.components.embedders.ollama import OllamaDocumentEmbedder, OllamaTextEmbedder
from haystack_integrations.components.rankers.huggingface_api import HuggingFaceTEIRanker

openai = {"api_base_url": f"{URL}/v1", "model": MODEL, "api_key": Secret.from_token("unused")}
ollama = {"url": URL, "model": f"{MODEL}:latest"}
# Its default asks for vectors that are not normalized.
tei = {"api_type": "text_embeddings_inference", "api_params": {"url": URL}, "normalize": True}
for embedder in (OpenAITextEmbedder(**openai), OllamaTextEmbedder(**ollama), HuggingFaceAPITextEmbedder(**tei)):
    same([embedder.run(text=TEXTS[0])["embedding"]], VECTORS[:1])
documents = [Document(content=text) for text in TEXTS]
for embedder in (
    OpenAIDocumentEmbedder(**openai, progress_bar=False),
    OllamaDocumentEmbedder(**ollama, progress_bar=False),
    HuggingFaceAPIDocumentEmbedder(**tei, progress_bar=False),
):
    same([document.embedding for document in embedder.run(documents=documents)["documents"]])
ranked = HuggingFaceTEIRanker(url=URL, top_k=2).run(
    query="a cat on a mat", documents=[Document(content="a red car"), Document(content="the cat sits on the mat")],
)["documents"]
assert ranked[0].content == "the cat sits on the mat" and ranked[0].score > ranked[1].score, ranked
package = "haystack-ai"
done(package, version(package), f"OpenAI, Ollama and TEI embedders: {len(TEXTS)} texts; TEI ranker")
