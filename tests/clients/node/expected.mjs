// Expected results of every client, read from CAXTON_EXPECTED, which `run` wrote.

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";

export const URL = process.env.CAXTON_URL;
const expected = JSON.parse(readFileSync(process.env.CAXTON_EXPECTED, "utf8"));
export const MODEL = expected.model;
export const TEXTS = expected.texts;
export const VECTORS = expected.vectors;

// Bound of tests/it/embeddings.rs between a text alone and in a batch.
const TOLERANCE = 1e-6;

/** Checks that `found` are the vectors `wanted`, or those of all texts. */
export function same(found, wanted = VECTORS) {
  assert.equal(found.length, wanted.length);
  found.forEach((vector, row) => {
    assert.equal(vector.length, wanted[row].length);
    const worst = Math.max(...Array.from(vector, (value, at) => Math.abs(value - wanted[row][at])));
    assert.ok(worst <= TOLERANCE, `text ${row}: vectors differ by ${worst}`);
  });
}

/** Checks that `promise` is rejected with all `parts` in the message. */
export async function refused(promise, ...parts) {
  const error = await promise.then(
    () => assert.fail("the request was not refused"),
    (error) => error,
  );
  for (const part of parts) assert.ok(String(error.message).includes(part), `${part} missing in ${error.message}`);
}

export function done(client, what) {
  console.log(`${client} (node ${process.version}): ${what}`);
}
