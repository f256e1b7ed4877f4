/** How requests fail, and whether another try may help. */

import type { IncomingHttpHeaders } from "node:http";
import { type ErrorParts, NetworkError, PonderaError } from "../../base/errors.ts";

/** A request that came to nothing. */
export class HttpError extends NetworkError {
  /** Where the server answered at all. */
  readonly status: number | undefined;
  readonly headers: IncomingHttpHeaders;
  /** Whether the same request may succeed later. */
  readonly transient: boolean;
  /** How long the server asks to wait before. */
  readonly retryAfterMs: number | undefined;

  constructor(
    parts: ErrorParts,
    facts: {
      readonly status?: number;
      readonly headers?: IncomingHttpHeaders;
      readonly transient: boolean;
      readonly retryAfterMs?: number | undefined;
    },
  ) {
    super(parts);
    this.status = facts.status;
    this.headers = facts.headers ?? {};
    this.transient = facts.transient;
    this.retryAfterMs = facts.retryAfterMs;
  }
}

const TRANSIENT_STATUS = new Set([408, 425, 429, 500, 502, 503, 504, 520, 521, 522, 523, 524, 529]);

/** Whether the same request may succeed after an answer with this status. */
export const isTransient = (status: number): boolean => TRANSIENT_STATUS.has(status);

/** What went wrong below HTTP and may go right next time. */
const TRANSIENT_CODES = new Set([
  ...["ECONNRESET", "ECONNREFUSED", "ECONNABORTED", "EPIPE", "ETIMEDOUT", "EHOSTUNREACH", "ENETUNREACH"],
  ...[
    "ENETDOWN",
    "EAI_AGAIN",
    "ERR_STREAM_PREMATURE_CLOSE",
    "HPE_INVALID_EOF_STATE",
    "ERR_SSL_BAD_RECORD_MAC",
  ],
]);

const REMEDIES: Readonly<Record<string, string>> = {
  ENOTFOUND: "Check the name and the connection to the internet; behind a proxy set HTTPS_PROXY",
  EAI_AGAIN: "Check the connection to the internet; behind a proxy set HTTPS_PROXY",
  ECONNREFUSED: "Check the address, and HTTPS_PROXY if there is a proxy",
};

const CERTIFICATE_REMEDIES: Readonly<Record<string, string>> = {
  SELF_SIGNED_CERT_IN_CHAIN:
    "If your network has a certificate of its own, name its file in NODE_EXTRA_CA_CERTS",
  DEPTH_ZERO_SELF_SIGNED_CERT:
    "If the server has a certificate of its own, name its file in NODE_EXTRA_CA_CERTS",
  UNABLE_TO_GET_ISSUER_CERT_LOCALLY:
    "If your network has a certificate of its own, name its file in NODE_EXTRA_CA_CERTS",
  UNABLE_TO_VERIFY_LEAF_SIGNATURE:
    "If the server has a certificate of its own, name its file in NODE_EXTRA_CA_CERTS",
};

/**
 * The typed form of what the network threw; what is typed already, or no fault of the network, stays as it is.
 * @param parts.remedy  where the fault itself suggests none
 */
export function networkError(parts: Pick<ErrorParts, "where" | "rule" | "remedy">, error: unknown): unknown {
  if (error instanceof PonderaError) return error;
  const code = (error as NodeJS.ErrnoException | undefined)?.code;
  if (typeof code !== "string" || code === "ABORT_ERR") return error;
  const remedy = CERTIFICATE_REMEDIES[code] ?? parts.remedy ?? REMEDIES[code];
  return new HttpError(
    {
      ...parts,
      got: `${(error as Error).message || code}`,
      ...(remedy === undefined ? {} : { remedy }),
      cause: error,
    },
    { transient: TRANSIENT_CODES.has(code) },
  );
}
