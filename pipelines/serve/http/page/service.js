// Requests to the service, on this origin only.

import { $ } from "./dom.js";

let key = sessionStorage.getItem("api-key") ?? "";

export function apiKey(value) {
  if (value !== undefined) {
    key = value.trim();
    sessionStorage.setItem("api-key", key);
  }
  return key;
}

async function send(path, options) {
  const headers = { ...options?.headers, ...(key ? { authorization: `Bearer ${key}` } : {}) };
  let response;
  try {
    response = await fetch(path, { ...options, headers });
  } catch {
    throw new Error("The service cannot be reached. Is it running?");
  }
  if (response.ok) return response;
  if (response.status === 401) $("key-row").hidden = false;
  const body = await response.json().catch(() => null);
  throw refusal(body?.error, response.status);
}

function refusal(detail, status) {
  const text = detail?.message ?? `the service answered with status ${status}`;
  const error = new Error(text.charAt(0).toUpperCase() + text.slice(1) + (/[.!?]$/.test(text) ? "" : "."));
  error.status = status;
  error.code = detail?.code;
  return error;
}

export async function fetchJSON(path, options) {
  return (await send(path, options)).json();
}

// The server-sent events of an answer, each by the names of its lines.
async function* events(path, options) {
  const reader = (await send(path, options)).body.pipeThrough(new TextDecoderStream()).getReader();
  let waiting = "";
  for (;;) {
    const { value, done } = await reader.read().catch(() => ({ done: true }));
    if (done) throw new Error("The answer was cut off. Try again.");
    const frames = (waiting + value).split("\n\n");
    waiting = frames.pop();
    for (const frame of frames) {
      yield Object.fromEntries(frame.split("\n").map((line) => [line.slice(0, line.indexOf(":")), line.slice(line.indexOf(":") + 2)]));
    }
  }
}

// The answer at the end of a stream; each piece before it goes to `onPiece`.
export async function fetchStream(path, options, onPiece) {
  for await (const { event, data } of events(path, options)) {
    const body = JSON.parse(data);
    if (event === "done") return body;
    if (event === "error") throw refusal(body.error, 200);
    onPiece(body.text);
  }
}

// A stream in OpenAI's form; each chunk goes to `onChunk`.
export async function fetchChat(path, body, onChunk) {
  const headers = { "content-type": "application/json" };
  for await (const { data } of events(path, { method: "POST", headers, body: JSON.stringify(body) })) {
    if (data === "[DONE]") return;
    const chunk = JSON.parse(data);
    if (chunk.error) throw refusal(chunk.error, 200);
    onChunk(chunk);
  }
}
