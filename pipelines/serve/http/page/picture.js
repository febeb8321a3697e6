// The picture: chosen, dropped, pasted or an example; and over it where the model looked.

import { $, element, notify } from "./dom.js";

const stage = $("stage"), preview = $("preview"), heat = $("heat");

// What is shown. `model` tells limits and how a picture becomes square.
export const picture = { blob: null, example: null, model: null, onChange: () => {} };

let heatFor = null;

const EXAMPLES = [
  {
    title: "Three shapes",
    ground: "#ece7dd",
    shapes: [["circle", "#d8342c", 78, 88, 40], ["square", "#2b62d9", 182, 92, 36], ["triangle", "#1f9d55", 128, 190, 42]],
    questions: ["What colour is the circle?", "What shape is blue?", "How many shapes are there?"],
    texts: ["a red circle and a blue square", "two yellow circles", "a green triangle on its own"],
  },
  {
    title: "Small and large",
    ground: "#dfe8ee",
    shapes: [["square", "#e0b100", 94, 120, 66], ["circle", "#7a3fc4", 202, 178, 26]],
    questions: ["What colour is the square?", "Is there a triangle?", "What is right of the square?"],
    texts: ["a large yellow square", "a large purple circle", "a red triangle"],
  },
  {
    title: "Many circles",
    ground: "#e9e3ea",
    shapes: [["circle", "#1f9d55", 66, 74, 30], ["circle", "#d8342c", 182, 66, 34], ["circle", "#1f9d55", 84, 186, 36], ["circle", "#2b62d9", 192, 182, 28]],
    questions: ["How many green circles are there?", "How many circles are there?", "Is there a red circle?"],
    texts: ["four circles", "four squares", "one blue triangle"],
  },
];

function setPicture(blob, example = null) {
  if (!blob.type.startsWith("image/")) return notify("That is not a picture. Choose a JPEG, PNG, WebP, BMP or GIF file.");
  const limit = picture.model?.limits.body_bytes;
  if (limit && blob.size > limit - 4096) {
    return notify(`The picture has ${(blob.size / 2 ** 20).toFixed(1)} MB; the service takes at most ${(limit / 2 ** 20).toFixed(1)} MB.`);
  }
  notify("");
  Object.assign(picture, { blob, example });
  showHeat(null);
  URL.revokeObjectURL(preview.src);
  preview.src = URL.createObjectURL(blob);
  $("invite").hidden = true;
  $("frame").hidden = false;
  stage.classList.add("full");
  for (const button of $("examples").children) button.setAttribute("aria-pressed", button.title === example?.title);
  picture.onChange();
}

preview.addEventListener("error", () => picture.blob && notify("This browser cannot show that picture; the service may still read it."));

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
  const map = heatFor?.attention;
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
  const box = picture.model?.resize === "crop"
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

// A turn has an `attention` map and the `button` that shows it; null shows none.
export function showHeat(turn) {
  heatFor = turn;
  for (const button of document.querySelectorAll(".look")) button.setAttribute("aria-pressed", button === turn?.button);
  drawHeat();
}

$("opacity").addEventListener("input", () => (heat.style.opacity = $("opacity").value / 100));
preview.addEventListener("load", drawHeat);
addEventListener("resize", drawHeat);

export function isShowing(turn) {
  return heatFor === turn;
}
