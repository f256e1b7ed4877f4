/** An HTTP proxy on this machine, which takes every name for this machine: that only it knows them shows who went through it. */

import {
  createServer,
  type IncomingMessage,
  type OutgoingHttpHeaders,
  request,
  type ServerResponse,
} from "node:http";
import { createServer as createTlsServer } from "node:https";
import { type AddressInfo, connect, type Server, type Socket } from "node:net";
import type { Duplex } from "node:stream";
import { onTestFinished } from "vitest";

export interface Passed {
  readonly method: string;
  /** A whole URL, or `host:port` of a tunnel. */
  readonly target: string;
  readonly headers: IncomingMessage["headers"];
}

export class FakeProxy {
  readonly passed: Passed[] = [];
  /** The status of the refusal to a request that is not to pass; null for no answer at all. */
  refuse: (passed: Passed) => number | null | undefined = () => undefined;
  /** Success of a tunnel is any 2xx. */
  tunnelStatus = 200;
  readonly sockets = new Set<Socket>();
  #server!: Server;

  /** @param tls  key and certificate, where it is to be spoken to by https */
  static async start(tls?: { readonly key: Buffer; readonly cert: Buffer }): Promise<FakeProxy> {
    const fake = new FakeProxy();
    const answer = (asked: IncomingMessage, response: ServerResponse) => fake.#forward(asked, response);
    const server = tls === undefined ? createServer(answer) : createTlsServer(tls, answer);
    server.on("connect", (asked: IncomingMessage, socket: Duplex) => fake.#tunnel(asked, socket));
    server.on("connection", (socket: Socket) => {
      fake.sockets.add(socket);
      socket.on("error", () => socket.destroy()).on("close", () => fake.sockets.delete(socket));
    });
    fake.#server = server;
    await new Promise<void>((resolve) => server.listen(0, resolve));
    onTestFinished(async () => {
      for (const socket of fake.sockets) socket.destroy();
      await new Promise((resolve) => server.close(resolve));
    });
    return fake;
  }

  get port(): number {
    return (this.#server.address() as AddressInfo).port;
  }

  #note({ method = "", url = "", headers }: IncomingMessage): Passed {
    const passed = { method, target: url, headers };
    this.passed.push(passed);
    return passed;
  }

  #forward(asked: IncomingMessage, response: ServerResponse): void {
    const refused = this.refuse(this.#note(asked));
    if (refused === null) return;
    if (refused !== undefined) {
      response.writeHead(refused).end("<p>A page of the proxy.");
      return;
    }
    const { port, pathname, search } = new URL(asked.url!);
    const { "proxy-authorization": _, ...headers } = asked.headers;
    const target = { host: "127.0.0.1", port, path: pathname + search };
    const onward = request({ ...target, headers: headers as OutgoingHttpHeaders }, (answer) => {
      response.writeHead(answer.statusCode!, answer.headers);
      answer.pipe(response);
    });
    onward.on("error", () => response.destroy());
    asked.pipe(onward);
  }

  #tunnel(asked: IncomingMessage, socket: Duplex): void {
    const refused = this.refuse(this.#note(asked));
    if (refused === null) return void socket.resume().on("end", () => socket.destroy());
    if (refused !== undefined) {
      socket.end(`HTTP/1.1 ${refused} No\r\ncontent-length: 0\r\n\r\n`);
      return;
    }
    const onward = connect(Number(asked.url!.split(":").at(-1)), "127.0.0.1", () => {
      socket.write(`HTTP/1.1 ${this.tunnelStatus} Established\r\n\r\n`);
      socket.pipe(onward).pipe(socket);
    });
    onward.on("error", () => socket.destroy());
    socket.on("error", () => onward.destroy()).on("close", () => onward.destroy());
  }
}
