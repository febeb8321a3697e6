// The page: choose a picture, ask, see ranked answers and where the model looked. Talks to this origin only.

const $ = (id) => document.getElementById(id);
const stage = $("stage"), preview = $("preview"), heat = $("heat"), form = $("form"), question = $("question");

const EXAMPLES = [
  {
    title: "Three shapes",
    ground: "#ece7dd",
    shapes: [["circle", "#d8342c", 78, 88, 40], ["square", "#2b62d9", 182, 92, 36], ["triangle", "#1f9d55", 128, 190, 42]],
    questions: ["What colour is the circle?", "What shape is blue?", "How many shapes are there?"],
  },
  {
    title: "Small and large",
    ground: "#dfe8ee",
    shapes: [["square", "#e0b100", 94, 120, 66], ["circle", "#7a3fc4", 202, 178, 26]],
    questions: ["What colour is the square?", "Is there a triangle?", "What is right of the square?"],
  },
  {
    title: "Many circles",
    ground: "#e9e3ea",
    shapes: [["circle", "#1f9d55", 66, 74, 30], ["circle", "#d8342c", 182, 66, 34], ["circle", "#1f9d55", 84, 186, 36], ["circle", "#2b62d9", 192, 182, 28]],
    questions: ["How many green circles are there?", "How many circles are there?", "Is there a red circle?"],
  },
];

const state = { picture: null, model: null, heatFor: null, key: sessionStorage.getItem("api-key") ?? "" };

function element(tag, className, text) {
  const node = document.createElement(tag);
  if (className) node.className = className;
  if (text !== undefined) node.textContent = text;
  return node;
}

// --- the service -----------------------------------------------------------------------------------------------

function authorization() {
  return state.key ? { authorization: `Bearer ${state.key}` } : {};
}

async function fetchJSON(path, options = {}) {
  let response;
  try {
    response = await fetch(path, { ...options, headers: { ...authorization(), ...options.headers } });
  } catch {
    throw new Error("The service cannot be reached. Is it running?");
  }
  const body = await response.json().catch(() => null);
  if (response.ok) return body;
  if (response.status === 401) $("key-row").hidden = false;
  const error = new Error(sentence(body?.error?.message ?? `the service answered with status ${response.status}`));
  error.status = response.status;
  throw error;
}

function sentence(text) {
  return text.charAt(0).toUpperCase() + text.slice(1) + (/[.!?]$/.test(text) ? "" : ".");
}

async function describeModel() {
  try {
    state.model = await fetchJSON("v1/model");
    $("model-dot").className = "dot ready";
    $("model-chip").title = `It knows ${state.model.labels} answers.`;
    $("model-text").textContent = `${state.model.name} · version ${state.model.version}`;
  } catch (error) {
    $("model-dot").className = "dot down";
    $("model-text").textContent = error.status === 401 ? "locked" : error.status === 503 ? "loading the model" : "not reachable";
    setTimeout(describeModel, 3000);
  }
}

// --- the picture -----------------------------------------------------------------------------------------------

function setPicture(blob, example) {
  if (!blob.type.startsWith("image/")) return notify("That is not a picture. Choose a JPEG, PNG, WebP, BMP or GIF file.");
  const limit = state.model?.limits.body_bytes;
  if (limit && blob.size > limit - 4096) {
    return notify(`The picture has ${(blob.size / 2 ** 20).toFixed(1)} MB; the service takes at most ${(limit / 2 ** 20).toFixed(1)} MB.`);
  }
  notify("");
  state.picture = blob;
  clearHeat();
  $("log").replaceChildren();
  $("empty").hidden = false;
  URL.revokeObjectURL(preview.src);
  preview.src = URL.createObjectURL(blob);
  $("invite").hidden = true;
  $("frame").hidden = false;
  stage.classList.add("full");
  for (const button of $("examples").children) button.setAttribute("aria-pressed", button.title === example?.title);
  suggest(example ? example.questions : []);
  question.focus({ preventScroll: true });
}

preview.addEventListener("error", () => state.picture && notify("This browser cannot show that picture; the service may still read it."));

function drawExample(example, canvas) {
  canvas.width = canvas.height = 256;
  const pen = canvas.getContext("2d");
  pen.fillStyle = example.ground;
  pen.fillRect(0, 0, 256, 256);
  for (const [shape, colour, x, y, r] of example.shapes) {
    pen.fillStyle = colour;
    pen.beginPath();
    if (shape === "circle") pen.arc(x, y, r, 0, 2 * Math.PI);
    else if (shape === "square") pen.rect(x - r, y - r, 2 * r, 2 * r);
    else {
      pen.moveTo(x, y - r);
      pen.lineTo(x + r, y + r * 0.8);
      pen.lineTo(x - r, y + r * 0.8);
    }
    pen.fill();
  }
}

for (const example of EXAMPLES) {
  const button = element("button");
  button.type = "button";
  button.title = example.title;
  const canvas = element("canvas");
  drawExample(example, canvas);
  button.append(canvas);
  button.addEventListener("click", () => canvas.toBlob((blob) => setPicture(blob, example), "image/png"));
  $("examples").append(button);
}

stage.addEventListener("click", () => $("file").click());
stage.addEventListener("keydown", (event) => {
  if (event.key === "Enter" || event.key === " ") {
    event.preventDefault();
    $("file").click();
  }
});
$("file").addEventListener("change", () => {
  if ($("file").files[0]) setPicture($("file").files[0]);
  $("file").value = "";
});
for (const type of ["dragenter", "dragover"]) {
  stage.addEventListener(type, (event) => {
    event.preventDefault();
    stage.classList.add("over");
  });
}
for (const type of ["dragleave", "drop"]) stage.addEventListener(type, () => stage.classList.remove("over"));
for (const type of ["dragover", "drop"]) addEventListener(type, (event) => event.preventDefault());
stage.addEventListener("drop", (event) => event.dataTransfer.files[0] && setPicture(event.dataTransfer.files[0]));
addEventListener("paste", (event) => {
  const file = [...(event.clipboardData?.files ?? [])].find((item) => item.type.startsWith("image/"));
  if (file) setPicture(file);
});

// --- where the model looked --------------------------------------------------------------------------------------

const RAMP = [[36, 16, 84], [126, 30, 130], [220, 60, 90], [252, 150, 50], [252, 240, 150]];

function ramp(t) {
  const at = Math.min(0.9999, Math.max(0, t)) * (RAMP.length - 1), i = Math.floor(at), part = at - i;
  return RAMP[i].map((low, c) => Math.round(low + (RAMP[i + 1][c] - low) * part));
}

function drawHeat() {
  const map = state.heatFor?.attention;
  heat.hidden = !map;
  $("heat-tools").hidden = !map;
  if (!map || !preview.complete) return;
  const { rows, columns, weights } = map;
  const largest = Math.max(...weights.flat()), least = Math.min(...weights.flat());
  const cells = element("canvas");
  cells.width = columns;
  cells.height = rows;
  const pen = cells.getContext("2d"), pixels = pen.createImageData(columns, rows);
  weights.flat().forEach((weight, i) => {
    const t = largest > least ? (weight - least) / (largest - least) : 0.5;
    pixels.data.set([...ramp(t), Math.round(255 * (0.1 + 0.75 * t))], 4 * i);
  });
  pen.putImageData(pixels, 0, 0);

  // The model saw a square: the whole picture squashed, or its middle.
  const width = preview.clientWidth, height = preview.clientHeight;
  const shown = contained(width, height);
  const side = Math.min(shown.width, shown.height);
  const box = state.model?.resize === "crop"
    ? { x: shown.x + (shown.width - side) / 2, y: shown.y + (shown.height - side) / 2, width: side, height: side }
    : shown;
  const scale = devicePixelRatio || 1;
  heat.width = Math.round(box.width * scale);
  heat.height = Math.round(box.height * scale);
  Object.assign(heat.style, { left: `${box.x}px`, top: `${box.y}px`, width: `${box.width}px`, height: `${box.height}px` });
  heat.style.opacity = $("opacity").value / 100;
  const brush = heat.getContext("2d");
  brush.imageSmoothingEnabled = true;
  brush.imageSmoothingQuality = "high";
  brush.drawImage(cells, 0, 0, heat.width, heat.height);
}

function contained(width, height) {
  const ratio = preview.naturalWidth / preview.naturalHeight || 1;
  const shownWidth = Math.min(width, height * ratio), shownHeight = shownWidth / ratio;
  return { x: (width - shownWidth) / 2, y: (height - shownHeight) / 2, width: shownWidth, height: shownHeight };
}

function showHeat(turn) {
  state.heatFor = turn;
  for (const button of document.querySelectorAll(".look")) button.setAttribute("aria-pressed", button === turn?.button);
  drawHeat();
}

function clearHeat() {
  showHeat(null);
}

$("opacity").addEventListener("input", () => (heat.style.opacity = $("opacity").value / 100));
preview.addEventListener("load", drawHeat);
addEventListener("resize", drawHeat);

// --- questions and answers ---------------------------------------------------------------------------------------

function suggest(questions) {
  $("suggestions").replaceChildren(...questions.map((text) => {
    const button = element("button", "", text);
    button.type = "button";
    button.addEventListener("click", () => {
      question.value = text;
      form.requestSubmit();
    });
    return button;
  }));
}

function notify(text) {
  $("notice").textContent = text;
  $("notice").hidden = !text;
}

function percent(probability) {
  const value = probability * 100;
  return value >= 99.95 ? "100%" : value < 0.05 ? "<0.1%" : `${value.toFixed(1)}%`;
}

function showTurn(result, picture, roundTrip) {
  const answered = result.answers[0];
  const item = element("li", "turn"), head = element("div", "turn-head");
  head.append(element("h2", "", answered.question));
  const turn = { attention: answered.attention, button: null };
  if (answered.attention) {
    turn.button = element("button", "look", "Heat map");
    turn.button.type = "button";
    turn.button.addEventListener("click", () => (state.heatFor === turn ? clearHeat() : showHeat(turn)));
    head.append(turn.button);
  }
  const rows = element("ol", "rows");
  for (const { answer, probability } of answered.answers) {
    const row = element("li", "row"), track = element("div", "track"), fill = element("div", "fill");
    track.append(fill);
    row.append(element("span", "name", answer), track, element("span", "share", percent(probability)));
    rows.append(row);
    requestAnimationFrame(() => requestAnimationFrame(() => (fill.style.width = `${100 * probability}%`)));
  }
  const meta = `${result.model.name} version ${result.model.version} · ${result.latency_ms.toFixed(0)} ms in the service · ${roundTrip.toFixed(0)} ms in all`;
  item.append(head, rows, element("p", "meta", meta));
  $("log").prepend(item);
  $("empty").hidden = true;
  if (state.picture === picture) showHeat(answered.attention ? turn : null);
  if (state.model && state.model.version !== result.model.version) describeModel();
}

form.addEventListener("submit", async (event) => {
  event.preventDefault();
  const picture = state.picture, text = question.value.trim();
  if (!picture) return notify("Choose a picture first.");
  if (!text) return notify("Type a question about the picture.");
  notify("");
  const body = new FormData();
  body.append("image", picture, "picture");
  body.append("question", text);
  body.append("top_k", $("top-k").value);
  body.append("attention", $("attention").checked);
  $("send").disabled = true;
  $("send").classList.add("busy");
  const started = performance.now();
  try {
    const result = await fetchJSON("v1/vqa", { method: "POST", body });
    if (state.picture === picture) showTurn(result, picture, performance.now() - started);
    question.select();
  } catch (error) {
    notify(error.message);
  } finally {
    $("send").disabled = false;
    $("send").classList.remove("busy");
  }
});

$("key").value = state.key;
$("key").addEventListener("change", () => {
  state.key = $("key").value.trim();
  sessionStorage.setItem("api-key", state.key);
  describeModel();
});

describeModel();
