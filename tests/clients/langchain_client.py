"""Tests LangChain's OpenAIEmbeddings with texts, and with token arrays, which are its default.

By default it tokenizes with tiktoken, whose vocabulary it downloads, and posts token ids (`embeddings/base.py`,
`_get_len_safe_embeddings`). Here a replacement of tiktoken returns the ids of the model, and then those of OpenAI's
vocabulary.
"""

from importlib.metadata import version
from unittest import mock

import openai
from expected import IDS, MODEL, SOCKET, TEXTS, VECTORS, done, refused, same
from langchain_openai import OpenAIEmbeddings

if int(openai.__version__.split(".")[0]) >= 3:
    import httpx2 as httpx
else:
    import httpx


def embeddings(**options) -> OpenAIEmbeddings:
    return OpenAIEmbeddings(
        model=MODEL,
        base_url="http://localhost/v1",
        api_key="unused",
        http_client=httpx.Client(transport=httpx.HTTPTransport(uds=SOCKET)),
        max_retries=0,
        **options,
    )


class Encoding:
    """Replacement for an encoding of tiktoken."""

    def __init__(self, ids_of):
        self.ids_of = ids_of

    def encode_ordinary(self, text: str) -> list[int]:
        return self.ids_of(text)

    def encode(self, text: str, **_special) -> list[int]:
        return self.ids_of(text)


def tokenizing_with(ids_of):
    return mock.patch("tiktoken.encoding_for_model", lambda _model: Encoding(ids_of))


texts = embeddings(check_embedding_ctx_length=False)
same(texts.embed_documents(TEXTS))
same(texts.embed_documents(TEXTS, chunk_size=7))
same([texts.embed_query(TEXTS[0])], VECTORS[:1])
with refused(openai.BadRequestError, "dimensions"):
    embeddings(check_embedding_ctx_length=False, dimensions=64).embed_query("a")

# The special tokens are removed, because tiktoken does not add them.
own = {text: ids[1:-1] for text, ids in zip(TEXTS, IDS, strict=True)}
with tokenizing_with(own.__getitem__):
    same(embeddings().embed_documents(TEXTS))
    same([embeddings().embed_query(TEXTS[0])], VECTORS[:1])
with tokenizing_with(lambda _text: [9906, 1917, 99_999]):
    with refused(openai.BadRequestError, "check_embedding_ctx_length=False"):
        embeddings().embed_documents(["Hello world"])
with refused(openai.BadRequestError, "input 0 is empty"):
    texts.embed_query("")
done(
    "langchain-openai",
    f"{version('langchain-openai')}, openai {openai.__version__}",
    f"texts = token arrays, {len(TEXTS)} texts; ids of another vocabulary rejected with a hint",
)
