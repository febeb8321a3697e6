// Answers of each task as entries of the log.

import { $, element } from "./dom.js";
import { isShowing, showHeat } from "./picture.js";

function percent(probability) {
  const value = probability * 100;
  return value >= 99.95 ? "100%" : value < 0.05 ? "<0.1%" : `${value.toFixed(1)}%`;
}

function ranked(entries, long) {
  const rows = element("ol", long ? "rows long" : "rows");
  for (const { text, share, label } of entries) {
    const row = element("li", "row"), track = element("div", "track"), fill = element("div", "fill");
    track.append(fill);
    row.append(element("span", "name", text), track, element("span", "share", label ?? percent(share)));
    rows.append(row);
    requestAnimationFrame(() => requestAnimationFrame(() => (fill.style.width = `${100 * share}%`)));
  }
  return rows;
}

function meta({ model, latency_ms }, roundTrip) {
  return `${model.name} version ${model.version} · ${latency_ms.toFixed(0)} ms in the service · ${roundTrip.toFixed(0)} ms in all`;
}

function unknown(words) {
  const listed = words.map((word) => `“${word}”`).join(", ");
  return `Seldom or never in what the model has learned from: ${listed}. It may not have understood.`;
}

// A new entry on top of the log, which is written and ended later, or dropped.
export function beginTurn(title) {
  const item = element("li", "turn"), head = element("div", "turn-head"), heading = element("h2", "", title);
  head.append(heading);
  item.append(head);
  $("log").prepend(item);
  $("empty").hidden = true;
  return {
    write: (text) => {
      heading.classList.add("writing");
      heading.textContent = text;
    },
    drop: () => {
      item.remove();
      $("empty").hidden = $("log").children.length > 0;
    },
    end: (title, content, { attention = null, attention_over_time: overTime = {} }, result, roundTrip, note = "") => {
      // Another sample was chosen meanwhile, and the log emptied.
      if (!item.isConnected) return;
      heading.classList.remove("writing");
      heading.textContent = title;
      item.append(...content);
      if (result.unknown_words.length) item.append(element("p", "problem", unknown(result.unknown_words)));
      item.append(element("p", "meta", (note ? `${note} · ` : "") + meta(result, roundTrip)));
      const turn = { attention, overTime, button: null };
      const isSeen = attention || Object.keys(overTime).length > 0;
      if (isSeen) {
        turn.button = element("button", "look", "Heat map");
        turn.button.type = "button";
        turn.button.addEventListener("click", () => showHeat(isShowing(turn) ? null : turn));
        head.append(turn.button);
      }
      showHeat(isSeen ? turn : null);
    },
    // A way to say what would have been right; `send` gets it, and throws where it is not taken.
    invite: (placeholder, send) => {
      if (!item.isConnected) return;
      const ask = element("button", "look", "Not right?");
      ask.type = "button";
      item.append(ask);
      ask.addEventListener("click", () => ask.replaceWith(correction(placeholder, send)));
    },
  };
}

function correction(placeholder, send) {
  const form = element("form", "correction"), input = element("input"), button = element("button", "", "Send");
  Object.assign(input, { placeholder, maxLength: 1000, required: true });
  input.setAttribute("aria-label", placeholder);
  const problem = element("p", "problem");
  form.append(input, button, problem);
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    button.disabled = true;
    try {
      await send(input.value.trim());
      form.replaceWith(element("p", "meta", `Thank you: “${input.value.trim()}” is kept for the next training.`));
    } catch (error) {
      problem.textContent = error.message;
      button.disabled = false;
    }
  });
  requestAnimationFrame(() => input.focus());
  return form;
}

// The facts that the model got with a question; what they say is text, and never markup.
export function usedFacts(facts) {
  const list = element("ul", "facts");
  for (const { head, relation, tail, source, weight } of facts) {
    const entry = element("li", "meta", `${head} · ${relation} · ${tail} (${percent(weight)})`);
    entry.title = source;
    list.append(entry);
  }
  return list;
}

export function showAnswers(turn, result, roundTrip) {
  const [first] = result.answers, { question, answers, facts = [] } = first;
  const content = [ranked(answers.map(({ answer, probability }) => ({ text: answer, share: probability })))];
  if (facts.length) content.push(usedFacts(facts));
  const note = result.knowledge_version ? `facts of version ${result.knowledge_version}` : "";
  turn.end(question, content, first, result, roundTrip, note);
}

export function showCaptions(turn, result, roundTrip) {
  const [first] = result.captions;
  const several = result.captions.length > 1;
  // A whole sentence has a small probability; what tells is how the captions compare.
  const entries = result.captions.map(({ caption, probability }) => ({
    text: caption || "(nothing)",
    share: probability / (first.probability || 1),
    label: percent(probability),
  }));
  turn.end(several ? "Captions" : first.caption || "(nothing)", several ? [ranked(entries, true)] : [], result, result, roundTrip,
    several ? "" : `probability ${percent(first.probability)}`);
}

export function showClasses(turn, result, roundTrip) {
  const entries = result.classes.map(({ label, probability }) => ({ text: label, share: probability }));
  turn.end(result.classes[0].label, [ranked(entries)], result, result, roundTrip);
}

export function showMatches(turn, result, roundTrip) {
  const by = (match) => match.probability ?? match.similarity;
  const entries = [...result.matches].sort((a, b) => by(b) - by(a)).map(({ text, probability, similarity }) => ({
    text,
    share: probability ?? Math.max(0, similarity),
    label: result.method === "similarity" ? (probability === null ? "" : `${percent(probability)} · `) + `cos ${similarity.toFixed(2)}` : undefined,
  }));
  const note = result.method === "matching" ? "each text by itself" : "compared with each other";
  turn.end(entries.length > 1 ? "Which text belongs to it?" : "Does the text belong to it?", [ranked(entries, true)], {}, result, roundTrip, note);
}

export function showHits(turn, words, result, roundTrip) {
  const grid = element("ol", "hits");
  for (const { key, split, text, similarity, thumbnail } of result.hits) {
    const hit = element("li", "hit");
    if (thumbnail) {
      const image = element("img");
      Object.assign(image, { src: `data:${thumbnail.media_type};base64,${thumbnail.data}`, alt: text ?? key });
      hit.append(image);
    }
    hit.append(element("span", "name", text ?? key), element("span", "share", `cos ${similarity.toFixed(2)}`));
    hit.title = `${key} (${split})`;
    grid.append(hit);
  }
  const note = `among ${result.vectors.toLocaleString("en")} of ${result.among}`;
  turn.end(words || "Nearest to the input", [grid], {}, result, roundTrip, note);
}
