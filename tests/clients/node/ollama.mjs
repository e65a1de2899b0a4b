// Tests the ollama client of npm: both routes for vectors, the listings, pull.

import assert from "node:assert/strict";

import { Ollama } from "ollama";

import { MODEL, TEXTS, URL, VECTORS, done, refused, same } from "./expected.mjs";

const client = new Ollama({ host: URL });
same((await client.embed({ model: MODEL, input: TEXTS })).embeddings);
same((await client.embed({ model: `${MODEL}:latest`, input: TEXTS[0] })).embeddings, VECTORS.slice(0, 1));
same([(await client.embeddings({ model: MODEL, prompt: TEXTS[0] })).embedding], VECTORS.slice(0, 1));
const names = (await client.list()).models.map((model) => model.name);
assert.ok(names.includes(`${MODEL}:latest`), names.join());
assert.ok((await client.ps()).models.length > 0);
assert.equal((await client.show({ model: MODEL })).capabilities[0], "embedding");
assert.equal((await client.pull({ model: MODEL })).status, "success");
let last;
for await (const part of await client.pull({ model: `${MODEL}:latest`, stream: true })) last = part;
assert.equal(last.status, "success");
await refused(client.pull({ model: "nomic-embed-text" }), "nomic-embed-text", "never downloads");
await refused(client.generate({ model: MODEL, prompt: "hello" }), "generates text");
done("ollama", `embed = embeddings, ${TEXTS.length} texts; pull of an installed model; generate is explained`);
