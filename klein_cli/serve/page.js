"use strict";
const $ = (id) => document.getElementById(id);
const SIZES = [[1, 1], [4, 3], [3, 4], [3, 2], [2, 3], [16, 9], [9, 16]];
const KEPT = "klein-history", MOST_KEPT = 50;
let model = null, running = null, references = [], painted = false, maskFile = null, stroke = null;

const say = (text) => { $("status").textContent = text; };
const number = (id) => ($(id).value === "" ? undefined : Number($(id).value));
const headers = () => {
  const key = $("key").value;
  return { "Content-Type": "application/json", ...(key && { Authorization: `Bearer ${key}` }) };
};
const element = (tag, properties, ...inside) => {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...inside);
  return made;
};
const button = (text, onclick) => element("button", { type: "button", textContent: text, onclick });

// The model, and the sizes of its pixels in several shapes.
async function meet() {
  const answer = await fetch("/klein/v1/model", { headers: headers() });
  $("asks-key").hidden = answer.status !== 401 && !$("key").value;
  if (!answer.ok) return say(answer.status === 401 ? "This server needs a key." : "No answer.");
  model = await answer.json();
  say("");
  $("model").textContent = model.name;
  $("distilled").hidden = !model.distilled;
  for (const id of ["width", "height"]) Object.assign($(id), { min: model.min_side, max: model.max_side });
  $("steps").placeholder = model.steps;
  $("guidance").placeholder = model.guidance;
  const sides = (w, h) => {
    const scale = Math.sqrt(model.width * model.height / (w * h));
    return [w, h].map((side) => Math.max(16, Math.round(side * scale / 16) * 16));
  };
  const fits = ([w, h]) => Math.min(w, h) >= model.min_side && Math.max(w, h) <= model.max_side;
  $("size").replaceChildren(element("option", { value: "", textContent: "default" }));
  for (const [w, h] of SIZES) {
    const size = sides(w, h);
    if (fits(size)) $("size").append(element("option", {
      value: size.join("x"), textContent: `${w}:${h}, ${size.join(" × ")}` }));
  }
}

function asked() {
  const [width, height] = $("size").value.split("x").map(Number);
  const body = {
    prompt: $("prompt").value, seed: number("seed"), n: number("count") ?? 1,
    width: number("width") ?? (width || undefined), height: number("height") ?? (height || undefined),
    steps: number("steps"), guidance: number("guidance"),
    negative_prompt: $("negative").value || undefined,
  };
  return body;
}

async function draw() {
  if (running || !$("form").reportValidity()) return;
  const body = { ...asked(), stream: true, progress: true, partial_images: 3 };
  let route = "/v1/images/generations";
  if (references.length) {
    route = "/v1/images/edits";
    body.images = references.map((each) => ({ image_url: each.url }));
    const mask = await maskUrl();
    if (mask) body.mask = { image_url: mask };
  }
  running = new AbortController();
  $("cancel").disabled = false;
  $("draw").disabled = true;
  $("progress").hidden = false;
  $("progress").value = 0;
  say("Asking …");
  const shown = new Map();
  try {
    const answer = await fetch(route, {
      method: "POST", headers: headers(), body: JSON.stringify(body), signal: running.signal });
    if (!answer.ok) throw new Error(await trouble(answer));
    for await (const event of events(answer.body)) hear(event, body, shown);
    if (shown.size) say("Done.");
  } catch (error) {
    say(error.name === "AbortError" ? "Cancelled." : error.message);
    for (const one of shown.values()) if (!one.done) one.item.remove();
  }
  running = null;
  $("cancel").disabled = true;
  $("draw").disabled = false;
  $("progress").hidden = true;
}

async function trouble(answer) {
  const said = await answer.json().catch(() => ({}));
  const message = said.error?.message ?? `The server answers with ${answer.status}.`;
  if (answer.status === 401) $("asks-key").hidden = false;
  const wait = answer.headers.get("retry-after");
  return wait ? `${message} Try again in about ${wait} s.` : message;
}

// Server-sent events, as objects; comments are left out.
async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const blocks = (text + value).split("\n\n");
    text = blocks.pop();
    for (const block of blocks) {
      const data = block.split("\n").filter((line) => line.startsWith("data: "));
      if (data.length) yield JSON.parse(data.map((line) => line.slice(6)).join("\n"));
    }
  }
}

function hear(event, body, shown) {
  if (event.error) throw new Error(event.error.message);
  const index = event.image_index ?? 0, of = body.n > 1 ? `Image ${index + 1} of ${body.n}: step` : "Step";
  if (event.type === "klein.queued") {
    if (event.place) say(`Number ${event.place} in the line.`);
  } else if (event.type === "klein.step") {
    $("progress").value = (index + event.step / event.steps) / body.n;
    say(`${of} ${event.step} of ${event.steps}.`);
  } else if (event.b64_json) {
    if (!shown.has(index)) shown.set(index, place(body.prompt));
    const one = shown.get(index);
    one.show(event);
    if (event.type.endsWith(".completed")) {
      one.done = true;
      one.finish(event.recipe, event.warnings ?? []);
      remember(event.recipe);
    }
  }
}

// A place among the images, which is filled as it is drawn.
function place(prompt) {
  const image = element("img", { alt: prompt });
  const facts = element("p", { className: "soft" });
  const actions = element("div", { className: "row" });
  const item = element("li", {}, image, facts, actions);
  $("results").prepend(item);
  item.scrollIntoView({ block: "nearest" });
  let url = "";
  return {
    item,
    done: false,
    show({ b64_json, output_format }) {
      URL.revokeObjectURL(url);
      const bytes = Uint8Array.from(atob(b64_json), (letter) => letter.charCodeAt(0));
      url = URL.createObjectURL(new Blob([bytes], { type: `image/${output_format}` }));
      image.src = url;
    },
    finish(recipe, warnings) {
      facts.textContent = [summary(recipe), ...warnings].join(". ");
      const name = `klein-${recipe.seed}.png`;
      const save = element("a", { href: url, download: name, textContent: "Download", className: "button" });
      const edit = button("Edit", async () => add(await (await fetch(url)).blob(), name));
      actions.append(save, button("Again", () => use(recipe)), button("Vary", () => vary(recipe)), edit);
    },
  };
}

const summary = (recipe) => `Seed ${recipe.seed}, ${recipe.width} × ${recipe.height}, ${recipe.steps} steps`;

function use(recipe) {
  $("prompt").value = recipe.prompt;
  $("seed").value = recipe.seed;
  $("count").value = 1;
  $("size").value = "";
  for (const id of ["width", "height", "steps"]) $(id).value = recipe[id];
  $("guidance").value = model?.distilled ? "" : recipe.guidance;
  $("negative").value = recipe.negative_prompt ?? "";
  $("prompt").focus();
}

function vary(recipe) {
  use(recipe);
  $("seed").value = "";
  draw();
}

function kept() {
  try {
    const found = JSON.parse(localStorage.getItem(KEPT) ?? "[]");
    return Array.isArray(found) ? found : [];
  } catch { return []; }
}

function remember(recipe) {
  try {
    localStorage.setItem(KEPT, JSON.stringify([recipe, ...kept()].slice(0, MOST_KEPT)));
  } catch { /* a browser that keeps nothing */ }
  tellHistory();
}

function tellHistory() {
  $("history").replaceChildren(...kept().map((recipe) => element("li", {},
    element("span", {}, recipe.prompt, element("span", { className: "soft", textContent: summary(recipe) })),
    button("Again", () => use(recipe)), button("Vary", () => vary(recipe)))));
}

// Images to edit.
async function add(blob, name) {
  const url = await new Promise((resolve) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.readAsDataURL(blob);
  });
  references.push({ url, name });
  tellReferences();
}

function tellReferences() {
  $("references").replaceChildren(...references.map((each, index) => element("li", {},
    element("img", { src: each.url, alt: `Image ${index + 1}: ${each.name}` }),
    button(`Remove image ${index + 1}`, () => { references.splice(index, 1); tellReferences(); }))));
  $("masking").hidden = !references.length;
  if (references.length && $("source").src !== references[0].url) $("source").src = references[0].url;
  if (!references.length) $("source").removeAttribute("src");
}

function clearMask() {
  painted = false;
  maskFile = null;
  $("mask").value = "";
  const canvas = $("brush");
  canvas.width = $("source").naturalWidth || 1;
  canvas.height = $("source").naturalHeight || 1;
}

function paint(event) {
  if (!event.buttons) { stroke = null; return; }
  const canvas = $("brush"), box = canvas.getBoundingClientRect(), scale = canvas.width / box.width;
  const to = [(event.clientX - box.left) * scale, (event.clientY - box.top) * scale];
  const context = canvas.getContext("2d");
  Object.assign(context, { strokeStyle: "#e33", lineCap: "round", lineWidth: $("width-of-brush").value * scale });
  context.beginPath();
  context.moveTo(...(event.type === "pointermove" && stroke || to));
  context.lineTo(...to);
  context.stroke();
  stroke = to;
  painted = true;
}

// The API's mask: transparent where it is to be drawn anew.
async function maskUrl() {
  if (!painted && !maskFile) return null;
  const canvas = element("canvas", { width: $("brush").width, height: $("brush").height });
  const context = canvas.getContext("2d");
  if (painted) {
    context.drawImage($("brush"), 0, 0);
  } else {
    context.drawImage(await createImageBitmap(maskFile), 0, 0, canvas.width, canvas.height);
  }
  const pixels = context.getImageData(0, 0, canvas.width, canvas.height);
  for (let at = 0; at < pixels.data.length; at += 4) {
    const white = painted ? pixels.data[at + 3] : pixels.data[at];
    pixels.data.fill(0, at, at + 3);
    pixels.data[at + 3] = white > 127 ? 0 : 255;
  }
  context.putImageData(pixels, 0, 0);
  return canvas.toDataURL("image/png");
}

// A file's recipe: klein's own text in a PNG, or note in the EXIF of a JPEG or WebP; once its comment.
async function recipeIn(file) {
  const text = new TextDecoder("latin1").decode(await file.arrayBuffer());
  for (const mark of ["klein\0", "ASCII\0\0\0"]) {
    const at = text.indexOf(mark);
    if (at < 0) continue;
    const begin = at + mark.length;
    for (let end = text.indexOf("}", begin), tries = 0; end > 0 && tries < 200;
      end = text.indexOf("}", end + 1), tries++) {
      try {
        const record = JSON.parse(text.slice(begin, end + 1));
        if (typeof record?.recipe?.prompt === "string") return record.recipe;
      } catch { /* it ends further on */ }
    }
  }
  return null;
}

async function take(files) {
  for (const file of files) {
    const recipe = await recipeIn(file);
    if (recipe) {
      use(recipe);
      say(`Read the recipe of ${file.name}. Add the file under “Images to edit” to edit it.`);
    } else if (file.type.startsWith("image/")) {
      await add(file, file.name);
      say(`${file.name} is there to be edited.`);
    }
  }
}

const quoted = (text) => `'${text.replaceAll("'", "'\\''")}'`;

function command() {
  const body = asked(), words = ["klein", references.length ? "edit" : "generate"];
  if (references.length) words.push(quoted(references[0].name));
  words.push(quoted(body.prompt), "-m", model?.name ?? "klein-4b");
  for (const each of references.slice(1)) words.push("-i", quoted(each.name));
  if (painted || maskFile) words.push("--mask", quoted(maskFile?.name ?? "mask.png"));
  const options = { "-s": body.seed, "-n": body.n > 1 ? body.n : undefined, "-W": body.width,
    "-H": body.height, "--steps": body.steps, "-g": body.guidance };
  for (const [name, value] of Object.entries(options)) if (value !== undefined) words.push(name, value);
  if (body.negative_prompt) words.push("--negative-prompt", quoted(body.negative_prompt));
  return words.join(" ");
}

async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
    say(`Copied: ${text}`);
  } catch { say(text); }
}

$("form").onsubmit = (event) => { event.preventDefault(); draw(); };
$("cancel").onclick = () => running?.abort();
$("command").onclick = () => copy(command());
$("link").onclick = () => copy(`${location.origin}/#${new URLSearchParams({ prompt: $("prompt").value })}`);
$("forget").onclick = () => { localStorage.removeItem(KEPT); tellHistory(); };
$("files").onchange = async () => {
  for (const file of $("files").files) await add(file, file.name);
  $("files").value = "";
};
$("mask").onchange = () => { const [file] = $("mask").files; painted = false; maskFile = file ?? null; };
$("unmask").onclick = clearMask;
$("source").onload = clearMask;
$("brush").onpointerdown = paint;
$("brush").onpointermove = paint;
$("key").onchange = meet;
document.onkeydown = (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) draw();
  if (event.key === "Escape") running?.abort();
};
document.onpaste = (event) => { if (event.clipboardData.files.length) take(event.clipboardData.files); };
document.ondragover = (event) => { event.preventDefault(); document.body.classList.add("dropping"); };
document.ondragleave = () => document.body.classList.remove("dropping");
document.ondrop = (event) => {
  event.preventDefault();
  document.body.classList.remove("dropping");
  take(event.dataTransfer.files);
};
const wanted = new URLSearchParams(location.hash.slice(1)).get("prompt");
if (wanted) $("prompt").value = wanted;
tellHistory();
meet();
