// Asks with node's own clients. STYLE=agent uses http.Agent with keepAlive, STYLE=fetch uses fetch. STYLE=http2 uses
// one session, which is replaced after a GOAWAY.
import { readFileSync } from "node:fs";
import http from "node:http";
import http2 from "node:http2";
import https from "node:https";
import net from "node:net";
import { randomBytes } from "node:crypto";
import { setTimeout as sleep } from "node:timers/promises";

const [url, method, size, , threads, seconds, pause, socket] = process.argv.slice(2);
const { origin, pathname, protocol } = new URL(url);
const body = method === "GET" ? undefined : randomBytes(Number(size));
const ca = readFileSync(process.env.CA_FILE);

const whole = async (stream) => Buffer.concat(await stream.toArray());

const module = protocol === "https:" ? https : http;
const agent = new module.Agent({ keepAlive: true, ca });

function byAgent() {
  return new Promise((resolve, reject) => {
    const where = socket ? { socketPath: socket, path: pathname } : { hostname: new URL(url).hostname, port: new URL(url).port, path: pathname };
    const request = module.request({ ...where, method, agent, timeout: 30_000, headers: body && { "content-length": body.length } });
    request.on("response", (answer) => whole(answer).then((said) => resolve([answer.statusCode, said]), reject));
    request.on("timeout", () => request.destroy(new Error("timeout")));
    request.on("error", reject);
    request.end(body);
  });
}

async function byFetch() {
  const answer = await fetch(url, { method, body, signal: AbortSignal.timeout(30_000) });
  return [answer.status, Buffer.from(await answer.arrayBuffer())];
}

let session;

function connected() {
  if (!session || session.closed || session.destroyed) {
    const made = http2.connect(origin, { ca, ...(socket && { createConnection: () => net.connect(socket) }) });
    made.on("goaway", () => session === made && (session = undefined));
    made.on("error", () => session === made && (session = undefined));
    session = made;
  }
  return session;
}

function byHttp2() {
  return new Promise((resolve, reject) => {
    const stream = connected().request({ ":method": method, ":path": pathname });
    let status;
    stream.setTimeout(30_000, () => stream.close());
    stream.on("response", (headers) => (status = headers[":status"]));
    stream.on("error", reject);
    stream.on("aborted", () => reject(new Error("aborted")));
    whole(stream).then((said) => resolve([status, said]), reject);
    stream.end(body);
  });
}

const ask = { agent: byAgent, fetch: byFetch, http2: byHttp2 }[process.env.STYLE];
const told = { tried: 0, lost: 0, errors: {}, longest_ms: 0 };
const end = Date.now() + seconds * 1000;

async function client() {
  await sleep(Math.random() * pause * 1000);
  while (Date.now() < end) {
    const began = performance.now();
    let error;
    try {
      const [status, said] = await ask();
      if (status !== 200) error = `status ${status}`;
      else if (body && !body.equals(said)) error = `${said.length} other bytes than were sent`;
    } catch (lost) {
      error = `${lost.cause?.code ?? lost.code ?? ""} ${lost.cause?.message ?? lost.message}`;
    }
    told.tried += 1;
    told.longest_ms = Math.max(told.longest_ms, performance.now() - began);
    if (error) {
      told.lost += 1;
      told.errors[error] = (told.errors[error] ?? 0) + 1;
    }
    await sleep(pause * 1000 || (error ? 50 : 0));
  }
}

await Promise.all(Array.from({ length: Number(threads) }, client));
console.log(JSON.stringify(told));
process.exit(0);
