"""Tests huggingface_hub's InferenceClient, which posts to the URL that it gets, without a path."""

from importlib.metadata import version

from expected import TEXTS, URL, VECTORS, done, refused, same
from huggingface_hub import InferenceClient
from huggingface_hub.errors import HfHubHTTPError

for url in (URL, f"{URL}/embed"):
    client = InferenceClient(model=url)
    for text, vector in list(zip(TEXTS, VECTORS, strict=True))[:8]:
        same([client.feature_extraction(text)[0].tolist()], [vector])
based = InferenceClient(base_url=URL)
same([based.feature_extraction(TEXTS[0])[0].tolist()], VECTORS[:1])
same([based.feature_extraction(TEXTS[0], normalize=True, truncate=True)[0].tolist()], VECTORS[:1])
# The connection is kept after an error, and the next request succeeds.
missing = InferenceClient(model=f"{URL}/missing")
for _ in range(20):
    with refused(HfHubHTTPError, "404"):
        missing.feature_extraction(TEXTS[0])
    same([based.feature_extraction(TEXTS[0])[0].tolist()], VECTORS[:1])
scores = InferenceClient(model=f"{URL}/similarity").sentence_similarity("a cat", ["a cat", "a red car"])
assert scores[0] > 0.999 > scores[1], scores
package = "huggingface_hub"
done(package, version(package), "POST / = POST /embed; similarity; 20 good requests after 404s")
