// The official OpenAI client for Node, refused while it is still sending a large body: every refusal must arrive.
// Usage: early_answers.cjs KEY URL...

const assert = require("node:assert");
const OpenAI = require("openai");

const LARGE = " ".repeat(4 << 20);
const ROUNDS = 10;

async function refused(status, call) {
  const error = await call().then(
    () => assert.fail("it was drawn"),
    (error) => error,
  );
  // Anything else is the client's word for a broken connection.
  assert.ok(error instanceof OpenAI.APIError && error.status === status, `${status} became ${error.status}: ${error}`);
  assert.ok(error.requestID, "an answer of the server's own has an id");
}

async function main(key, urls) {
  for (const url of urls) {
    const client = (apiKey, path = "/v1") => new OpenAI({ baseURL: url + path, apiKey, maxRetries: 0 });
    const draw = (client, headers) => () => client.images.generate({ prompt: LARGE }, { headers });
    const [known, stranger, lost] = [client(key), client("another"), client(key, "/v2")];
    for (let round = 0; round < ROUNDS; round++) {
      await refused(401, draw(stranger));
      await refused(404, draw(lost));
      await refused(413, draw(known));
      await refused(415, draw(known, { "content-type": "text/plain" }));
      // A connection that is used again works.
      assert.strictEqual((await known.models.list()).data.length, 1);
    }
    console.log(`${url}: ${4 * ROUNDS} refusals of ${LARGE.length} bytes arrived`);
  }
}

const [key, ...urls] = process.argv.slice(2);
main(key, urls).catch((error) => {
  console.error(error);
  process.exit(1);
});
