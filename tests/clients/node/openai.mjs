// Tests the openai client of npm: base64, float, a cut surrogate pair, rejections.

import assert from "node:assert/strict";

import OpenAI from "openai";

import { MODEL, TEXTS, URL, VECTORS, done, refused, same } from "./expected.mjs";

const client = new OpenAI({ baseURL: `${URL}/v1`, apiKey: "unused", maxRetries: 0 });
const create = (input, options = {}) => client.embeddings.create({ model: MODEL, input, ...options });
const vectors = (answer) => answer.data.map((item) => item.embedding);
same(vectors(await create(TEXTS)));
same(vectors(await create(TEXTS, { encoding_format: "float" })));
same(vectors(await create(TEXTS[0])), VECTORS.slice(0, 1));
// A splitter that counts UTF-16 units cuts an emoji in two.
const [cut, replaced] = vectors(await create(["cut \ud83d", "cut \ufffd"], { encoding_format: "float" }));
same([cut], [replaced]);
assert.ok((await client.models.list()).data.some((model) => model.id === MODEL));
await refused(create(["a", ""]), "input 1 is empty");
await refused(client.embeddings.create({ model: "text-embedding-3-small", input: "a" }), "404", "not installed");
done("openai", `base64 = float, ${TEXTS.length} texts; a cut surrogate pair; 404 and 400`);
