// The page: choose a picture or other inputs and a task, send, see the answer and where the model looked.

import { beginTurn, showAnswers, showCaptions, showClasses, showHits, showMatches } from "./answers.js";
import { beginConversation, hasConversation, say } from "./chat.js";
import { $, element, notify } from "./dom.js";
import { further, offerInputs } from "./inputs.js";
import { offerExamples, picture } from "./picture.js";
import { apiKey, fetchJSON, fetchStream } from "./service.js";

const form = $("form"), question = $("question"), texts = $("texts"), sought = $("sought"), saying = $("saying");

// On a phone the focus would open the keyboard over the picture and the answers.
const hasKeyboard = matchMedia("(hover: hover)").matches;

const linesOf = (field) => field.value.split("\n").map((text) => text.trim()).filter(Boolean);
const given = () => linesOf(texts);

// What the page can ask of a model that can do it; `missing` says what must be typed first.
const TASKS = {
  vqa: {
    title: "Ask",
    empty: "Ask something, and the ranked answers appear here.",
    missing: () => (question.value.trim() ? "" : "Type a question about the picture."),
    async ask(body, turn, clock) {
      body.append("question", question.value.trim());
      body.append("top_k", $("top-k").value);
      body.append("attention", $("attention").checked);
      const result = await fetchJSON("v1/vqa", { method: "POST", body });
      showAnswers(turn, result, clock());
      const asked = { image: body.get("image"), question: question.value.trim() };
      offerCorrection(turn, "The right answer", result, (answer) => ({ ...asked, answer }));
      if (hasKeyboard) question.select();
      return result;
    },
    heading: () => question.value.trim(),
  },
  chat: {
    title: "Chat",
    empty: "Say something about the picture; the reply appears here, one word after the other.",
    // A conversation needs no picture.
    alone: () => true,
    missing: () => (saying.value.trim() ? "" : "Type something to say."),
    ownLog: true,
    async ask(_body, _turn, clock) {
      const text = saying.value.trim();
      saying.value = "";
      try {
        return await say(text, clock);
      } catch (error) {
        saying.value ||= text;
        throw error;
      } finally {
        $("empty").hidden = hasConversation();
        if (hasKeyboard) saying.focus();
      }
    },
  },
  caption: {
    title: "Describe",
    empty: "The captions appear here, one word after the other.",
    missing: () => "",
    async ask(body, turn, clock) {
      const count = $("captions").value;
      body.append("top_k", count);
      body.append("attention", $("attention").checked);
      // One is written before one's eyes; of several, none is final until all are.
      body.append("stream", count === "1");
      let written = "";
      const options = { method: "POST", body };
      const result = count === "1"
        ? await fetchStream("v1/caption", options, (piece) => turn.write((written += piece)))
        : await fetchJSON("v1/caption", options);
      showCaptions(turn, result, clock());
      offerCorrection(turn, "A right caption", result, (caption) => ({ image: body.get("image"), caption }));
      return result;
    },
    heading: () => "…",
  },
  classify: {
    title: "Classify",
    empty: "The classes appear here, the most probable first.",
    missing: () => (picture.model?.needs_classes && !linesOf($("classes")).length ? "Type the classes to choose among." : ""),
    async ask(body, turn, clock) {
      if (picture.model?.needs_classes) {
        for (const name of new Set(linesOf($("classes")))) body.append("classes", name);
        if ($("template").value.trim()) body.append("templates", $("template").value);
      }
      body.append("top_k", $("top-k").value);
      body.append("attention", $("attention").checked);
      const result = await fetchJSON("v1/classify", { method: "POST", body });
      showClasses(turn, result, clock());
      return result;
    },
    heading: () => "…",
  },
  match: {
    title: "Match",
    empty: "Write some texts, and see which of them belongs to the picture.",
    missing: () => {
      const most = picture.model?.limits.texts, count = given().length;
      if (!count) return "Type at least one text, each on a line of its own.";
      return count > most ? `Those are ${count} texts; the service takes at most ${most} at once.` : "";
    },
    async ask(body, turn, clock) {
      for (const text of given()) body.append("text", text);
      const result = await fetchJSON("v1/match", { method: "POST", body });
      showMatches(turn, result, clock());
      return result;
    },
    heading: () => "…",
  },
  search: {
    title: "Search",
    empty: "What is nearest to your words, or to the picture, appears here.",
    // Words take the place of a picture.
    alone: () => Boolean(sought.value.trim()),
    missing: () => "",
    async ask(body, turn, clock) {
      const words = sought.value.trim();
      const asked = words ? new FormData() : body;
      if (words) asked.append("text", words);
      asked.append("among", $("among").value);
      asked.append("top_k", $("results").value);
      const result = await fetchJSON("v1/search", { method: "POST", body: asked });
      showHits(turn, words, result, clock());
      return result;
    },
    heading: () => sought.value.trim() || "…",
  },
};

// What a model must be able to do for a task of the page, where it is not called the same.
const canDo = (model, task) => (task === "search" ? model.search.length > 0 : model.tasks.includes(task));

let current = null, examples = [];

function offerCorrection(turn, placeholder, { model }, fields) {
  if (!picture.model?.feedback || !picture.blob) return; // corrections are of pictures
  turn.invite(placeholder, (text) => {
    const body = new FormData();
    for (const [name, value] of Object.entries({ ...fields(text), version: model.version })) body.append(name, value);
    return fetchJSON("v1/feedback", { method: "POST", body });
  });
}

async function describeModel() {
  try {
    const model = (picture.model = await fetchJSON("v1/model"));
    $("model-dot").className = "dot ready";
    $("model-chip").title = `It can do: ${model.tasks.join(", ")}.`;
    $("model-text").textContent = `${model.name} · version ${model.version}`;
    offerInputs(model.media, model.limits.body_bytes);
    $("stage").hidden = !("image" in model.media);
    ({ examples } = await fetchJSON("v1/examples"));
    $("given-classes").hidden = !model.needs_classes;
    offerSearches(model.search);
    offer(Object.keys(TASKS).filter((task) => canDo(model, task)));
  } catch (error) {
    $("model-dot").className = "dot down";
    $("model-text").textContent = error.status === 401 ? "locked" : error.status === 503 ? "loading the model" : "not reachable";
    setTimeout(describeModel, 3000);
  }
}

function offerSearches(names) {
  const chosen = $("among").value;
  $("among").replaceChildren(...names.map((name) => element("option", "", name)));
  if (names.includes(chosen)) $("among").value = chosen;
}

function offer(tasks) {
  $("tasks").hidden = tasks.length < 2;
  $("tasks").replaceChildren(...tasks.map((task) => {
    const button = element("button", "", TASKS[task].title);
    button.type = "button";
    button.dataset.task = task;
    button.addEventListener("click", () => choose(task));
    return button;
  }));
  form.hidden = false;
  choose(tasks.includes(current) ? current : tasks[0]);
}

function choose(task) {
  current = task;
  for (const button of $("tasks").children) button.setAttribute("aria-pressed", button.dataset.task === task);
  for (const part of form.querySelectorAll("[data-for]")) part.hidden = !part.dataset.for.split(" ").includes(task);
  $("empty").textContent = TASKS[task].empty;
  // A conversation is read from top to bottom, and has a place of its own.
  $("log").hidden = Boolean(TASKS[task].ownLog);
  showEmpty();
  notify("");
  const own = examples.filter((example) => example.task === task);
  offerExamples(own);
  const words = own[0]?.texts ?? [];
  if (task === "vqa") question.placeholder = words[0] ?? "What would you like to know?";
  if (task === "match") texts.placeholder = words.join("\n");
  if (task === "chat") saying.placeholder = words[0] ?? "What would you like to talk about?";
  suggest();
}

function showEmpty() {
  $("empty").hidden = TASKS[current]?.ownLog ? hasConversation() : $("log").children.length > 0;
}

function forget() {
  $("log").replaceChildren();
  beginConversation();
  showEmpty();
}

function wanted() {
  const names = Object.keys(picture.model?.media ?? {}).map((name) => (name === "image" ? "a picture" : name));
  const last = names.pop() ?? "a picture";
  return names.length ? `${names.join(", ")} or ${last}` : last;
}

const exampleTexts = (task) => (picture.example?.task === task ? picture.example.texts : []);

function suggest() {
  for (const [task, place, field] of [["vqa", "suggestions", question], ["chat", "openings", saying]]) {
    $(place).replaceChildren(...(current === task ? exampleTexts(task) : []).map((text) => {
      const button = element("button", "", text);
      button.type = "button";
      button.addEventListener("click", () => {
        field.value = text;
        form.requestSubmit();
      });
      return button;
    }));
  }
}

further.onChange = forget;

$("begin").addEventListener("click", () => {
  beginConversation();
  showEmpty();
});

picture.onChange = () => {
  forget();
  // What was typed stays, unless it belongs to another example.
  const typed = given().join("\n");
  if (!typed || typed === texts.dataset.example) {
    texts.dataset.example = exampleTexts("match").join("\n");
    texts.value = texts.dataset.example;
  }
  suggest();
  const field = { vqa: question, chat: saying }[current];
  if (field && hasKeyboard) field.focus({ preventScroll: true });
};

form.addEventListener("submit", async (event) => {
  event.preventDefault();
  const task = TASKS[current], blob = picture.blob, inputs = further.given();
  const missing = blob || inputs.size || task.alone?.() ? task.missing() : `Choose ${wanted()} first.`;
  notify(missing);
  if (missing) return;
  const body = new FormData(), buttons = form.querySelectorAll(".send"), started = performance.now();
  if (blob) body.append("image", blob, "picture");
  for (const [name, input] of inputs) body.append(name, input, name);
  for (const button of buttons) Object.assign(button, { disabled: true }).classList.add("busy");
  if (task.ownLog) $("empty").hidden = true;
  const turn = task.ownLog ? null : beginTurn(task.heading());
  try {
    const { model } = await task.ask(body, turn, () => performance.now() - started);
    if (model.version !== picture.model?.version) describeModel();
  } catch (error) {
    turn?.drop();
    notify(error.message);
    // A model that was swapped in may do other tasks.
    if (error.code === "no_such_task" || error.code === "vectors_of_another_model") describeModel();
  } finally {
    for (const button of buttons) Object.assign(button, { disabled: false }).classList.remove("busy");
  }
});

$("key").value = apiKey();
$("key").addEventListener("change", () => {
  apiKey($("key").value);
  describeModel();
});

describeModel();
