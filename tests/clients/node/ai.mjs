// Tests the AI SDK with its provider for servers that are compatible with OpenAI.

import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { embed, embedMany } from "ai";

import { MODEL, TEXTS, URL, VECTORS, done, refused, same } from "./expected.mjs";

const provider = createOpenAICompatible({ name: "caxton", baseURL: `${URL}/v1` });
const model = provider.textEmbeddingModel(MODEL);
same((await embedMany({ model, values: TEXTS })).embeddings);
same([(await embed({ model, value: TEXTS[0] })).embedding], VECTORS.slice(0, 1));
const missing = provider.textEmbeddingModel("text-embedding-3-small");
await refused(embed({ model: missing, value: "a", maxRetries: 0 }), "not installed");
done("ai", `embed and embedMany, ${TEXTS.length} texts; 404`);
