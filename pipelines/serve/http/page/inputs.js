// Further inputs, such as a sound, a clip or a series: chosen, dropped, recorded or of an example; under each where in
// its time the model looked.

import { $, element, notify } from "./dom.js";
import { ramp } from "./ramp.js";

const FILES = {
  audio: { accept: ".wav,.flac,.mp3,.ogg", invite: "WAV, FLAC, MP3 or Ogg" },
  video: { accept: ".mp4,.mkv,.webm,.mov,.m4v", invite: "MP4, MKV, WebM or MOV" },
  series: { accept: ".csv,.npy", invite: "CSV or NPY: a line for each time step" },
  row: { accept: ".json", invite: "JSON: one object of columns and values" },
};
const LONGEST_S = 30;
const WIDTH = 1200, HEIGHT = 180;

const slots = new Map();

// What was chosen, by the inputs' names. `onChange` is called when that changes.
export const further = {
  onChange: () => {},
  given: () => new Map([...slots].filter(([, slot]) => slot.blob).map(([name, slot]) => [name, slot.blob])),
};

// A place for each further input of the model; what was chosen stays where the model still takes it.
export function offerInputs(media, mostBytes) {
  const wanted = Object.entries(media).filter(([, medium]) => medium !== "image");
  const same = wanted.length === slots.size && wanted.every(([name, medium]) => slots.get(name)?.medium === medium);
  if (!same) {
    slots.clear();
    for (const [name, medium] of wanted) slots.set(name, makeSlot(name, medium));
    $("further").replaceChildren(...[...slots.values()].map((slot) => slot.node));
  }
  for (const slot of slots.values()) slot.mostBytes = mostBytes;
}

// An example's inputs, as blobs by their names; those that it lacks are emptied.
export function setInputs(blobs) {
  for (const [name, slot] of slots) show(slot, blobs.get(name) ?? null);
}

// A turn's weights by the inputs' names; null shows none.
export function showOverTime(weights) {
  for (const [name, slot] of slots) {
    slot.weights = weights?.[name] ?? null;
    draw(slot);
  }
}

function makeSlot(name, medium) {
  const files = FILES[medium] ?? { accept: "", invite: medium };
  const node = element("div", "slot"), file = element("input"), choose = element("button", "choose");
  const head = element("div", "slot-head"), view = element("div", "view"), canvas = element("canvas", "over-time");
  const slot = { name, medium, node, view, canvas, blob: null, weights: null, samples: null, mostBytes: 0, url: "" };
  choose.type = "button";
  choose.append(element("strong", "", name), element("span", "faint", files.invite));
  Object.assign(file, { type: "file", accept: files.accept, hidden: true });
  Object.assign(canvas, { width: WIDTH, height: HEIGHT, hidden: true });
  canvas.setAttribute("aria-label", `${name}, and where in it the model looked`);
  choose.addEventListener("click", () => file.click());
  file.addEventListener("change", () => {
    if (file.files[0]) chosen(slot, file.files[0]);
    file.value = "";
  });
  head.append(choose);
  if (medium === "audio" && navigator.mediaDevices && window.AudioContext) head.append(recorder(slot));
  node.append(head, file, canvas, view);
  node.dataset.input = name;
  for (const type of ["dragenter", "dragover"]) node.addEventListener(type, () => node.classList.add("over"));
  for (const type of ["dragleave", "drop"]) node.addEventListener(type, () => node.classList.remove("over"));
  node.addEventListener("drop", (event) => {
    event.preventDefault();
    if (event.dataTransfer.files[0]) chosen(slot, event.dataTransfer.files[0]);
  });
  return slot;
}

function chosen(slot, blob) {
  if (slot.mostBytes && blob.size > slot.mostBytes - 4096) {
    const megabytes = (bytes) => (bytes / 2 ** 20).toFixed(1);
    return notify(`That file has ${megabytes(blob.size)} MB; the service takes at most ${megabytes(slot.mostBytes)} MB.`);
  }
  notify("");
  show(slot, blob);
  further.onChange();
}

async function show(slot, blob) {
  URL.revokeObjectURL(slot.url);
  Object.assign(slot, { blob, weights: null, samples: null, url: blob ? URL.createObjectURL(blob) : "" });
  slot.node.classList.toggle("full", Boolean(blob));
  slot.view.replaceChildren(...(blob ? viewOf(slot) : []));
  draw(slot);
  if (!blob) return;
  const samples = await samplesOf(slot, blob).catch(() => null);
  if (slot.blob !== blob) return; // another one was chosen meanwhile
  slot.samples = samples;
  draw(slot);
}

function viewOf(slot) {
  if (slot.medium === "audio" || slot.medium === "video") {
    const player = element(slot.medium);
    Object.assign(player, { controls: true, src: slot.url, preload: "auto" });
    return [player];
  }
  if (slot.medium !== "row") return [];
  const text = element("pre");
  slot.blob.text().then((json) => (text.textContent = json.slice(0, 2000)));
  return [text];
}

// What is drawn: lists of numbers over time, one for each channel; none of a video.
async function samplesOf(slot, blob) {
  if (slot.medium === "audio") {
    const context = new AudioContext();
    try {
      const sound = await context.decodeAudioData(await blob.arrayBuffer());
      return [sound.getChannelData(0)];
    } finally {
      context.close();
    }
  }
  if (slot.medium !== "series") return null;
  const lines = (await blob.text()).split("\n").filter((line) => line.trim());
  const mark = [";", "\t"].find((candidate) => lines[0]?.includes(candidate)) ?? ",";
  const rows = lines.map((line) => line.split(mark).map((cell) => Number(mark === "," ? cell : cell.replace(",", "."))));
  if (rows.length && rows[0].some(Number.isNaN)) rows.shift(); // the names of the columns
  const channels = rows[0]?.map((_, channel) => rows.map((row) => row[channel])) ?? [];
  const drawn = channels.filter((values) => !values.some(Number.isNaN));
  return drawn.length ? drawn : null;
}

const COLOURS = ["#5b4df0", "#0fa3b8", "#d9480f", "#2b8a3e", "#c2255c", "#868e96", "#a87900", "#364fc7"];

function draw(slot) {
  const { canvas, samples, weights } = slot, pen = canvas.getContext("2d");
  canvas.hidden = !slot.blob || !(samples || weights);
  pen.clearRect(0, 0, WIDTH, HEIGHT);
  if (canvas.hidden) return;
  if (weights) drawWeights(pen, weights);
  (samples ?? []).forEach((values, channel) => drawLine(pen, values, weights ? "#ffffff" : COLOURS[channel % COLOURS.length]));
}

function drawWeights(pen, weights) {
  const least = Math.min(...weights), largest = Math.max(...weights), width = WIDTH / weights.length;
  weights.forEach((weight, part) => {
    const t = largest > least ? (weight - least) / (largest - least) : 0.5;
    pen.fillStyle = `rgb(${ramp(t).join(" ")})`;
    pen.fillRect(part * width, 0, Math.ceil(width), HEIGHT);
  });
}

// The range of each pixel's values, so that no peak is lost.
function drawLine(pen, values, colour) {
  const bound = values.reduce((most, value) => Math.max(most, Math.abs(value)), 1e-9);
  const y = (value) => HEIGHT / 2 - (value / bound) * (HEIGHT / 2 - 6);
  pen.strokeStyle = colour;
  pen.lineWidth = 2;
  pen.beginPath();
  for (let x = 0; x < WIDTH; x += 1) {
    const first = Math.floor((x * values.length) / WIDTH), last = Math.max(first + 1, Math.floor(((x + 1) * values.length) / WIDTH));
    let low = Infinity, high = -Infinity;
    for (let i = first; i < last && i < values.length; i += 1) {
      low = Math.min(low, values[i]);
      high = Math.max(high, values[i]);
    }
    if (low > high) continue;
    pen.lineTo(x, y(low));
    pen.lineTo(x, y(high));
  }
  pen.stroke();
}

// --- recording ---------------------------------------------------------------------------------------------------

function recorder(slot) {
  const button = element("button", "record", "Record");
  button.type = "button";
  let stop = null;
  button.addEventListener("click", async () => {
    if (stop) return stop();
    try {
      const stream = await navigator.mediaDevices.getUserMedia({ audio: true });
      const media = new MediaRecorder(stream), pieces = [];
      const limit = setTimeout(() => stop?.(), LONGEST_S * 1000);
      stop = () => {
        clearTimeout(limit);
        stop = null;
        media.stop();
      };
      media.addEventListener("dataavailable", (event) => pieces.push(event.data));
      media.addEventListener("stop", async () => {
        for (const track of stream.getTracks()) track.stop();
        button.textContent = "Record";
        button.classList.remove("busy-record");
        chosen(slot, await asWav(new Blob(pieces)).catch(() => new Blob(pieces)));
      });
      media.start();
      button.textContent = "Stop";
      button.classList.add("busy-record");
    } catch (error) {
      stop = null;
      notify(`No sound can be recorded here: ${error.message}`);
    }
  });
  return button;
}

// What a browser records is in a format of its own; the service reads WAV.
async function asWav(blob) {
  const context = new AudioContext();
  try {
    const sound = await context.decodeAudioData(await blob.arrayBuffer());
    const samples = sound.getChannelData(0), bytes = new DataView(new ArrayBuffer(44 + 2 * samples.length));
    const word = (at, letters) => [...letters].forEach((letter, i) => bytes.setUint8(at + i, letter.charCodeAt(0)));
    word(0, "RIFF");
    bytes.setUint32(4, 36 + 2 * samples.length, true);
    word(8, "WAVEfmt ");
    bytes.setUint32(16, 16, true);
    bytes.setUint16(20, 1, true);
    bytes.setUint16(22, 1, true);
    bytes.setUint32(24, sound.sampleRate, true);
    bytes.setUint32(28, 2 * sound.sampleRate, true);
    bytes.setUint16(32, 2, true);
    bytes.setUint16(34, 16, true);
    word(36, "data");
    bytes.setUint32(40, 2 * samples.length, true);
    samples.forEach((value, i) => bytes.setInt16(44 + 2 * i, Math.max(-1, Math.min(1, value)) * 32767, true));
    return new Blob([bytes], { type: "audio/wav" });
  } finally {
    context.close();
  }
}
