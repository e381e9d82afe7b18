// Against a real server, which tests/client/test_typescript.py starts, and against one that answers nonsense.

import assert from "node:assert/strict";
import { createServer } from "node:http2";
import { after, describe, it } from "node:test";

import { connectNodeAdapter } from "@connectrpc/connect-node";

import { Formgate, FormgateError, Reason } from "../dist/index.js";
import { AuthorizationService } from "../dist/gen/formgate/v1/authorization_pb.js";

const { FORMGATE_ADDRESS, FORMGATE_TOKEN, FORMGATE_KEY, FORMGATE_KEY_ID } = process.env;
const slow = 10_000; // a server that is just starting is no failure

describe("a real server", () => {
  const formgate = new Formgate({ address: `http://${FORMGATE_ADDRESS}`, token: FORMGATE_TOKEN, timeoutMs: slow });
  after(() => formgate.close());

  it("allows what the key may, and says whose it is", async () => {
    const verdict = await formgate.check({
      authorization: `Bearer ${FORMGATE_KEY}`,
      permissions: ["forms.read"],
      resources: ["forms/f1"],
    });
    assert.equal(verdict.allowed, true);
    assert.equal(verdict.key.keyId, FORMGATE_KEY_ID);
    assert.equal(verdict.limits[0].name, "rate");
  });

  it("denies what it may not, in the policy's words", async () => {
    const verdict = await formgate.check({ key: FORMGATE_KEY, permissions: ["forms.read"], resources: ["forms/f2"] });
    assert.equal(verdict.allowed, false);
    assert.equal(verdict.reason, Reason.RESOURCE_NOT_ALLOWED);
    assert.equal(verdict.denial.status, 403);
    assert.match(new TextDecoder().decode(verdict.denial.body), /RESOURCE_NOT_ALLOWED/);
  });

  it("denies who shows no key", async () => {
    const verdict = await formgate.check({ authorization: "" });
    assert.deepEqual([verdict.allowed, verdict.reason], [false, Reason.MISSING_AUTHORIZATION]);
  });

  it("says when it is worth trying again", async () => {
    const verdict = await formgate.check({ key: FORMGATE_KEY, cost: 1_000n });
    assert.deepEqual([verdict.allowed, verdict.reason], [false, Reason.RATE_LIMITED]);
    assert.equal(verdict.denial.status, 429);
  });

  it("throws where the service's token is none, and where the question is", async () => {
    const stranger = new Formgate({ address: `http://${FORMGATE_ADDRESS}`, token: "fgt_none", timeoutMs: slow });
    await assert.rejects(stranger.check({ key: FORMGATE_KEY }), { name: "FormgateError", code: "unauthenticated" });
    stranger.close();
    await assert.rejects(formgate.check({}), { code: "invalid_argument" });
    await assert.rejects(formgate.check({ key: FORMGATE_KEY, sourceIp: "nowhere" }), { code: "invalid_argument" });
  });
});

describe("a server that is none", () => {
  const answers = {
    empty: {},
    "allowed, and no more": { allowed: true },
    "allowed for no reason": { allowed: true, key: { keyId: "key_1" } },
    "allowed, with a denial's reason": { allowed: true, reason: Reason.KEY_REVOKED, key: { keyId: "key_1" } },
    "allowed, for nobody": { allowed: true, reason: Reason.OK },
    "denied for no reason": { allowed: false, httpDenial: { status: 403 } },
    "denied, and all is well": { allowed: false, reason: Reason.OK, httpDenial: { status: 403 } },
    "denied without words": { allowed: false, reason: Reason.KEY_REVOKED },
  };

  async function serving(checkKey, use, timeoutMs = slow) {
    const routes = (router) => router.service(AuthorizationService, { checkKey });
    const server = createServer(connectNodeAdapter({ routes }));
    await new Promise((resolve) => server.listen(0, "127.0.0.1", resolve));
    const formgate = new Formgate({ address: `http://127.0.0.1:${server.address().port}`, token: "t", timeoutMs });
    try {
      await use(formgate);
    } finally {
      formgate.close();
      server.close();
    }
  }

  for (const [name, answer] of Object.entries(answers)) {
    it(`is not believed: ${name}`, () =>
      serving(
        () => answer,
        (formgate) => assert.rejects(formgate.check({ key: "k" }), { name: "FormgateError", code: "broken_answer" }),
      ));
  }

  it("is not waited for", () =>
    serving(
      () => new Promise(() => {}),
      async (formgate) => {
        const began = performance.now();
        await assert.rejects(formgate.check({ key: "k" }), { name: "FormgateError", code: "deadline_exceeded" });
        assert.ok(performance.now() - began < 5_000);
      },
      200,
    ));

  it("is not there", async () => {
    const formgate = new Formgate({ address: "http://127.0.0.1:1", token: "t", timeoutMs: slow });
    await assert.rejects(formgate.check({ key: "k" }), (error) => error instanceof FormgateError);
    formgate.close();
  });
});
