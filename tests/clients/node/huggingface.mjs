// Tests @huggingface/inference, which posts to the URL of an endpoint, without a path.

import { InferenceClient } from "@huggingface/inference";

import { TEXTS, URL, VECTORS, done, same } from "./expected.mjs";

for (const endpoint of [URL, `${URL}/embed`]) {
  const client = new InferenceClient("unused").endpoint(endpoint);
  same(await client.featureExtraction({ inputs: TEXTS.slice(0, 8) }), VECTORS.slice(0, 8));
}
done("@huggingface/inference", "POST / = POST /embed");
