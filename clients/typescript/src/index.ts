// May this API key do that? Asks Formgate by gRPC, from Node.js 20 on.
//
//   const formgate = new Formgate({ address: "http://127.0.0.1:50051", token: process.env.FORMGATE_TOKEN ?? "" });
//   const verdict = await formgate.check({ authorization, permissions: ["forms.read"], resources: ["forms/f1"] });
//   if (!verdict.allowed) return answer(verdict.denial.status, verdict.denial.headers, verdict.denial.body);
//
// A denial is a value. Whatever could not be decided is an error: nothing that is not a plain yes is ever one.

import type { SecureClientSessionOptions } from "node:http2";

import { create, type MessageInitShape } from "@bufbuild/protobuf";
import { type Client, Code, ConnectError, createClient, type Interceptor } from "@connectrpc/connect";
import { createGrpcTransport, Http2SessionManager } from "@connectrpc/connect-node";

import {
  AuthorizationService,
  type CheckedKey,
  CheckKeyRequestSchema,
  type CheckKeyResponse,
  type HttpDenial,
  Reason,
} from "./gen/formgate/v1/authorization_pb.js";
import type { LimitStatus } from "./gen/formgate/v1/resources_pb.js";

export { Reason } from "./gen/formgate/v1/authorization_pb.js";
export type { CheckedKey, HttpDenial } from "./gen/formgate/v1/authorization_pb.js";
export type { LimitStatus } from "./gen/formgate/v1/resources_pb.js";

/** Where Formgate is, and who asks. */
export interface Options {
  /** `http://HOST:PORT`, or `https://…` with TLS. */
  address: string;
  /** A service token of role checker. */
  token: string;
  /** How long a check may take, in milliseconds; 250 where it is not said. */
  timeoutMs?: number;
  /** Certificates and the like, for https. */
  tls?: SecureClientSessionOptions;
}

/** What to decide: exactly one of key and authorization, the raw header's value, which may be empty. */
export interface Question {
  key?: string;
  authorization?: string;
  permissions?: string[];
  resources?: string[];
  apiGroup?: string;
  httpMethod?: string;
  sourceIp?: string;
  cost?: bigint;
  requestId?: string;
  policy?: string;
}

interface Decided {
  limits: LimitStatus[];
  /** A store was away, and this was decided by what was known. */
  degraded: boolean;
}

export interface Allowed extends Decided {
  allowed: true;
  key: CheckedKey;
}

export interface Denied extends Decided {
  allowed: false;
  /** For this service, not for the end user. */
  reason: Reason;
  /** The policy's answer to the end user. */
  denial: HttpDenial;
  /** In how many milliseconds it is worth trying again; undefined: not known, or never. */
  retryAfterMs: number | undefined;
}

export type Verdict = Allowed | Denied;

/** It could not be decided. */
export class FormgateError extends Error {
  override name = "FormgateError";
  /** gRPC's code, such as `unavailable`; `broken_answer` where the answer was none. */
  readonly code: string;

  constructor(code: string, message: string, options?: ErrorOptions) {
    super(message, options);
    this.code = code;
  }
}

export class Formgate {
  readonly #client: Client<typeof AuthorizationService>;
  readonly #sessions: Http2SessionManager;
  readonly #timeoutMs: number;

  constructor({ address, token, timeoutMs = 250, tls = {} }: Options) {
    const authenticate: Interceptor = (next) => (request) => {
      request.header.set("authorization", `Bearer ${token}`);
      return next(request);
    };
    this.#timeoutMs = timeoutMs;
    this.#sessions = new Http2SessionManager(address, undefined, tls);
    const transport = createGrpcTransport({
      baseUrl: address,
      interceptors: [authenticate],
      sessionManager: this.#sessions,
    });
    this.#client = createClient(AuthorizationService, transport);
  }

  /** Returns the verdict. Throws FormgateError where there is none. */
  async check(question: Question, timeoutMs: number = this.#timeoutMs): Promise<Verdict> {
    const request = asked(question);
    let response: CheckKeyResponse;
    try {
      response = await this.#client.checkKey(request, { timeoutMs });
    } catch (error) {
      const known = ConnectError.from(error);
      const code = Code[known.code].replace(/(?<=[a-z])(?=[A-Z])/g, "_").toLowerCase();
      throw new FormgateError(code, known.rawMessage, { cause: error });
    }
    return read(response);
  }

  /** Closes its connection. */
  close(): void {
    this.#sessions.abort();
  }
}

function asked({ key, authorization, ...rest }: Question): MessageInitShape<typeof CheckKeyRequestSchema> {
  if ((key === undefined) === (authorization === undefined)) {
    throw new FormgateError("invalid_argument", "give one of key and authorization");
  }
  const credential =
    key !== undefined
      ? ({ case: "key", value: key } as const)
      : ({ case: "authorization", value: authorization ?? "" } as const);
  return create(CheckKeyRequestSchema, { ...rest, credential });
}

function read(response: CheckKeyResponse): Verdict {
  const { allowed, reason, key, httpDenial, limits, degraded, retryAfter } = response;
  if (allowed === true && reason === Reason.OK && key !== undefined && key.keyId !== "") {
    return { allowed: true, key, limits, degraded };
  }
  if (allowed === false && reason > Reason.OK && httpDenial !== undefined && httpDenial.status >= 400) {
    const retryAfterMs =
      retryAfter === undefined ? undefined : Number(retryAfter.seconds) * 1_000 + Math.ceil(retryAfter.nanos / 1_000_000);
    return { allowed: false, reason, denial: httpDenial, limits, degraded, retryAfterMs };
  }
  throw new FormgateError("broken_answer", "the answer is neither a yes nor a no");
}
