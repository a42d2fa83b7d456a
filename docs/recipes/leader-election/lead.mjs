#!/usr/bin/env node
// Does one step of work after the other while this replica leads. Needs Node 18, and no package.
import { randomUUID } from "node:crypto";
import http from "node:http";
import { hostname } from "node:os";
import { json } from "node:stream/consumers";
import { setTimeout as sleep } from "node:timers/promises";

const address = new URL(process.env.RETINUE_ELECTOR_ADDR), election = process.env.ELECTION ?? "leader";
const elector = address.protocol === "unix:" ? { socketPath: address.pathname } : { host: address.hostname, port: address.port };
const candidate = `${hostname()}-${randomUUID().slice(0, 6)}`; // no other candidate may have it
let leading = false, stopping = false;
process.on("SIGTERM", () => leading ? (stopping = true) : process.exit(0));

const ask = (method, verb, body, timeout = 0) => new Promise((resolve, reject) => {
  const request = http.request({ ...elector, method, path: `/v1/elections/${election}/${verb}`, timeout, agent: false }, resolve);
  request.on("error", reject).on("timeout", () => request.destroy(new Error("no answer"))).end(body && JSON.stringify(body));
});

async function step(token, left) { // it must be over when `left` milliseconds are; send the token along with every write
  console.log(`working token=${token}`);
  await sleep(Math.min(left, 200));
}

async function lead(token) {
  const tether = await ask("GET", `hold?token=${token}`); // while it is open the elector knows that this process lives
  tether.on("error", () => {}).resume(); // an unread tether is cut off
  for (let asked; !stopping;) {
    asked = performance.now();
    const answer = await ask("POST", "renew", { token }, 1000), grant = await json(answer);
    const left = asked + grant.remaining_ms - performance.now();
    if (answer.statusCode !== 200 || grant.stepdown || !(left > 0)) return;
    await step(token, left);
  }
}

for (; !stopping; await sleep(200)) try {
  const answer = await ask("POST", "become", { id: candidate, lease_ms: 5000 }), { token } = await json(answer);
  if ((leading = answer.statusCode === 200)) await lead(token).finally(() => ask("POST", "resign", { token }, 2000));
} catch (problem) { console.error("the elector does not answer:", problem.message); } finally { leading = false; }
