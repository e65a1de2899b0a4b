"""Tests litellm: embeddings through five of its providers, and the rerank dialects of Jina, Cohere, vLLM and TEI."""

import os
from importlib.metadata import version

# Without this, the import requests a list of prices from the network.
os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"
import litellm
from expected import MODEL, TEXTS, URL, VECTORS, done, refused, same

litellm.suppress_debug_info = True
PROVIDERS = {
    "openai": f"{URL}/v1",
    "hosted_vllm": f"{URL}/v1",
    "openai_like": f"{URL}/v1",
    "lm_studio": f"{URL}/v1",
    "infinity": URL,
    "ollama": URL,
}


def vectors(provider: str, texts: list[str]) -> list[list[float]]:
    answer = litellm.embedding(
        model=f"{provider}/{MODEL}", input=texts, api_base=PROVIDERS[provider], api_key="unused",
    )
    return [item["embedding"] for item in answer.data]


for provider in PROVIDERS:
    same(vectors(provider, TEXTS))
with refused(litellm.NotFoundError, "text-embedding-3-small"):
    litellm.embedding(model="openai/text-embedding-3-small", input=["a"], api_base=f"{URL}/v1", api_key="unused")

DOCUMENTS = ["a red car", "the cat sits on the mat", "stock prices fell"]
RERANKERS = {
    "hosted_vllm": URL,
    "infinity": URL,
    "jina_ai": f"{URL}/v1/rerank",
    "cohere": f"{URL}/v2/rerank",
    "huggingface": URL,
}
for provider, base in RERANKERS.items():
    answer = litellm.rerank(
        model=f"{provider}/{MODEL}", query="a cat on a mat", documents=DOCUMENTS, top_n=2, api_base=base, api_key="unused",
    )
    best, second = answer.results[:2]
    assert best["index"] == 1 and best["relevance_score"] > second["relevance_score"], (provider, answer)
    # The dialect of text-embeddings-inference has no limit.
    assert len(answer.results) == (3 if provider == "huggingface" else 2), (provider, answer)
package = "litellm"
done(package, version(package), f"{', '.join(PROVIDERS)}: {len(TEXTS)} texts; rerank of {', '.join(RERANKERS)}")
