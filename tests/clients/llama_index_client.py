"""Tests LlamaIndex's client of text-embeddings-inference.

The client creates its own httpx.Client and does not accept a transport. It does not check the status (`base.py`,
`_call_api`): it posts `{"inputs": […], "truncate": …}` to `/embed` and treats any JSON response as vectors. So an error
response, which is an object instead of a list, makes it fail.
"""

from importlib.metadata import version

from expected import MODEL, TEXTS, URL, VECTORS, done, refused, same
from llama_index.embeddings.text_embeddings_inference import TextEmbeddingsInference

client = TextEmbeddingsInference(model_name=MODEL, base_url=URL, embed_batch_size=32, timeout=600)
same(client.get_text_embedding_batch(TEXTS))
same([client.get_text_embedding(TEXTS[0])], VECTORS[:1])
same([client.get_query_embedding(TEXTS[0])], VECTORS[:1])
whole = TextEmbeddingsInference(model_name=MODEL, base_url=URL, truncate_text=False)
with refused(KeyError, "0"):
    whole.get_text_embedding("word " * 1000)
package = "llama-index-embeddings-text-embeddings-inference"
done(package, version(package), f"{len(TEXTS)} texts; an error response raises KeyError")
