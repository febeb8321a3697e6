// A conversation about the picture: what was said so far, and the model's replies as they are written.

import { usedFacts } from "./answers.js";
import { $, element } from "./dom.js";
import { picture } from "./picture.js";
import { fetchChat } from "./service.js";

const said = $("said");

let messages = [];

// Another picture, or a new beginning: nothing has been said.
export function beginConversation() {
  messages = [];
  said.replaceChildren();
  $("begin").hidden = true;
}

export const hasConversation = () => said.children.length > 0;

function bubble(role, text) {
  const item = element("li", `said ${role}`), words = element("p", "words", text);
  item.append(words);
  said.append(item);
  item.scrollIntoView({ block: "nearest" });
  return { item, words };
}

function asDataURL(blob) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.addEventListener("load", () => resolve(reader.result));
    reader.addEventListener("error", () => reject(new Error("The picture cannot be read.")));
    reader.readAsDataURL(blob);
  });
}

async function messageOf(text) {
  const parts = [{ type: "text", text }];
  // The picture is sent where the conversation begins.
  if (!messages.length && picture.blob) parts.unshift({ type: "image_url", image_url: { url: await asDataURL(picture.blob) } });
  return { role: "user", content: parts };
}

// Say something, and show the reply while it is written. What is refused was not said.
export async function say(text, clock) {
  const conversation = messages, asked = await messageOf(text);
  const own = bubble("user", text), reply = bubble("assistant", "");
  reply.words.classList.add("writing");
  let written = "", first = null, last = {}, usage = null;
  try {
    const body = { model: picture.model.name, messages: [...conversation, asked], stream: true, stream_options: { include_usage: true } };
    await fetchChat("v1/chat/completions", body, (chunk) => {
      const piece = chunk.choices[0]?.delta.content;
      if (piece) {
        first ??= clock();
        reply.words.textContent = written += piece;
      }
      if (chunk.choices[0]?.finish_reason) last = chunk;
      usage = chunk.usage ?? usage;
    });
  } catch (error) {
    own.item.remove();
    reply.item.remove();
    throw error;
  }
  const version = (last.system_fingerprint ?? "").replace("version ", "");
  // Another picture was chosen meanwhile: a new conversation has begun.
  if (messages !== conversation) return { model: { version } };
  written = written.trim();
  reply.words.classList.remove("writing");
  reply.words.textContent = written || "(nothing)";
  // A turn that says nothing cannot be sent again.
  if (written) messages = [...conversation, asked, { role: "assistant", content: written }];
  if (last.facts?.length) reply.item.append(usedFacts(last.facts));
  const notes = [`${last.model} version ${version}`];
  if (last.knowledge_version) notes.push(`facts of version ${last.knowledge_version}`);
  if (usage) notes.push(`${usage.prompt_tokens} tokens read, ${usage.completion_tokens} written`);
  const end = clock();
  if (first !== null) notes.push(`${first.toFixed(0)} ms to the first word`);
  if (first !== null && usage?.completion_tokens > 1) notes.push(`${((1000 * (usage.completion_tokens - 1)) / (end - first)).toFixed(0)} tokens/s`);
  notes.push(`${end.toFixed(0)} ms in all`);
  if (last.choices[0].finish_reason === "length") notes.push("ended by the greatest length");
  reply.item.append(element("p", "meta", notes.join(" · ")));
  $("begin").hidden = false;
  return { model: { version } };
}
