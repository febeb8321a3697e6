// The picture: chosen, dropped, pasted or an example; and over it where the model looked.

import { $, element, notify } from "./dom.js";
import { setInputs, showOverTime } from "./inputs.js";
import { ramp } from "./ramp.js";

const stage = $("stage"), preview = $("preview"), heat = $("heat");

// What is shown. `model` tells limits and how a picture gets the model's shape.
export const picture = { blob: null, example: null, model: null, onChange: () => {} };

let heatFor = null, offered = [];

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
  markExample();
  picture.onChange();
}

function clearPicture() {
  showHeat(null);
  picture.blob = null;
  URL.revokeObjectURL(preview.src);
  preview.removeAttribute("src");
  $("invite").hidden = false;
  $("frame").hidden = true;
  stage.classList.remove("full");
}

function markExample() {
  [...$("examples").children].forEach((button, i) => button.setAttribute("aria-pressed", offered[i] === picture.example));
}

preview.addEventListener("error", () => picture.blob && notify("This browser cannot show that picture; the service may still read it."));

function blobOf({ data, media_type }) {
  return new Blob([Uint8Array.from(atob(data), (letter) => letter.charCodeAt(0))], { type: media_type });
}

function setExample(example, blobs) {
  setInputs(blobs);
  if (blobs.has("image")) return setPicture(blobs.get("image"), example);
  clearPicture();
  picture.example = example;
  markExample();
  picture.onChange();
}

// Samples of the model's own data; one is shown when it is chosen, with its texts.
export function offerExamples(examples) {
  for (const shown of $("examples").querySelectorAll("img")) URL.revokeObjectURL(shown.src);
  $("try").hidden = !examples.length;
  $("examples").replaceChildren(...examples.map((example, number) => {
    const button = element("button");
    const blobs = new Map(Object.entries(example.inputs).map(([name, input]) => [name, blobOf(input)]));
    button.type = "button";
    button.title = `Example ${number + 1}`;
    if (blobs.has("image")) {
      const shown = element("img");
      shown.src = URL.createObjectURL(blobs.get("image"));
      shown.alt = "";
      button.append(shown);
    } else {
      button.append(element("span", "number", `${number + 1}`));
    }
    button.setAttribute("aria-pressed", picture.example === example);
    button.addEventListener("click", () => setExample(example, blobs));
    return button;
  }));
  offered = examples;
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

  // The model saw the whole picture squashed, its middle, or with bars beside it; each perhaps without its edge.
  const width = preview.clientWidth, height = preview.clientHeight;
  const shown = contained(width, height);
  const { resize, crop = 1, image_size: [imageRows, imageColumns] = [1, 1] } = picture.model ?? {};
  const shape = imageColumns / imageRows;
  const seenWidth = { crop: Math.min, pad: Math.max }[resize]?.(shown.width, shown.height * shape);
  const box = { width: crop * (seenWidth ?? shown.width), height: crop * (seenWidth ? seenWidth / shape : shown.height) };
  box.x = shown.x + (shown.width - box.width) / 2;
  box.y = shown.y + (shown.height - box.height) / 2;
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

// A turn has an `attention` map, weights `overTime` of further inputs, and the `button` that shows them; null shows none.
export function showHeat(turn) {
  heatFor = turn;
  showOverTime(turn?.overTime ?? null);
  for (const button of document.querySelectorAll(".look")) button.setAttribute("aria-pressed", button === turn?.button);
  drawHeat();
}

$("opacity").addEventListener("input", () => (heat.style.opacity = $("opacity").value / 100));
preview.addEventListener("load", drawHeat);
addEventListener("resize", drawHeat);

export function isShowing(turn) {
  return heatFor === turn;
}
