"""Tests OpenAI's client in any major version: base64, float, one text, shortened vectors, list of models, rejections.

Without a format, the client requests base64 and decodes it (`resources/embeddings.py`). Its transport is httpx2 since
version 3, and httpx in earlier versions.
"""

import base64
import struct

import openai
from expected import IDS, MODEL, SOCKET, TEXTS, VECTORS, done, refused, same

if int(openai.__version__.split(".")[0]) >= 3:
    import httpx2 as httpx
else:
    import httpx

client = openai.OpenAI(
    base_url="http://localhost/v1",
    api_key="unused",
    http_client=httpx.Client(transport=httpx.HTTPTransport(uds=SOCKET)),
    max_retries=0,
)
create = client.embeddings.create
default = create(model=MODEL, input=TEXTS)
assert [item.index for item in default.data] == list(range(len(TEXTS)))
assert default.model == MODEL and default.usage.total_tokens == sum(map(len, IDS)), default.usage
same([item.embedding for item in default.data])
same([item.embedding for item in create(model=MODEL, input=TEXTS, encoding_format="float").data])
raw = [item.embedding for item in create(model=MODEL, input=TEXTS, encoding_format="base64").data]
raw = [base64.b64decode(text) for text in raw]
same([list(struct.unpack(f"<{len(packed) // 4}f", packed)) for packed in raw])
same([item.embedding for item in create(model=MODEL, input=IDS).data])
same([create(model=MODEL, input=TEXTS[0]).data[0].embedding], VECTORS[:1])
assert create(model=f"{MODEL}:latest", input="a").data[0].embedding == create(model=MODEL, input="a").data[0].embedding
with refused(openai.BadRequestError, "dimensions"):
    create(model=MODEL, input="a", dimensions=64)
assert MODEL in [model.id for model in client.models.list()]
assert client.models.retrieve(MODEL).id == MODEL
with refused(openai.NotFoundError, "text-embedding-3-small", MODEL):
    create(model="text-embedding-3-small", input="a")
with refused(openai.BadRequestError, "input 1 is empty"):
    create(model=MODEL, input=["a", ""])
with refused(openai.BadRequestError, "check_embedding_ctx_length=False"):
    create(model=MODEL, input=[[99_999]])
done("openai", openai.__version__, f"base64 = float = token ids, {len(TEXTS)} texts; 404 and 400 as its own exceptions")
