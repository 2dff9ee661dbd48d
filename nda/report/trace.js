"use strict";
// The page of `nda trace`. Text from the report reaches the page as text nodes and attributes only.
const data = JSON.parse(document.getElementById("data").textContent);
const PAGE = 10; // rows of the table at a time
const state = {
  suspect: 0, map: 0, number: 1, row: 0, col: 0, pinned: false, source: null, view: "picture",
  key: "share", down: true, first: 0,
};
const $ = (id) => document.getElementById(id);
const PNG = "data:image/png;base64,";

function make(tag, properties = {}, ...children) {
  const svg = ["svg", "rect", "path", "line", "text"].includes(tag);
  const space = svg ? "http://www.w3.org/2000/svg" : "http://www.w3.org/1999/xhtml";
  const made = document.createElementNS(space, tag);
  for (const [name, value] of Object.entries(properties)) {
    if (!svg && name in made) made[name] = value;
    else made.setAttribute(name, value);
  }
  made.append(...children);
  return made;
}
// A name may break after a folder or a word of it before it breaks anywhere.
function named(text) {
  const parts = text.split(/(?<=[/_])/).flatMap((part) => [part, make("wbr")]);
  return make("bdi", { className: "name", title: text }, ...parts.slice(0, -1));
}
const percent = (share) => `${(100 * share).toFixed(1).replace(/\.0$/, "")}\u00a0%`;
const whole = (mass) => (mass > 0 && mass < 0.01 ? "<\u00a01" : Math.round(100 * mass)) + "\u00a0%";
// Hues far apart, the first that of NDA; neighbours in rank differ most.
const colour = (rank) => `oklch(${rank % 2 ? 0.74 : 0.64} 0.14 ${(224 + 137.5 * rank) % 360})`;
const between = (value, low, high) => Math.min(Math.max(value, low), high);

/* What the report says. */

// Width and height stand in the first bytes of a PNG.
function sides(png) {
  const bytes = atob(png.slice(0, 32));
  const integer = (at) => [0, 1, 2, 3].reduce((sum, i) => sum * 256 + bytes.charCodeAt(at + i), 0);
  return [integer(16), integer(20)];
}
const suspect = () => data.suspects[state.suspect];
const map = () => suspect().maps[state.map];
const sourceOf = (image) => data.sources[image];
for (const one of data.suspects) {
  one.maps.sort((a, b) => a.timestep - b.timestep);
  [one.width, one.height] = sides(one.picture);
  one.rank = new Map(one.sources.map((source, rank) => [source.image, rank]));
}

// The sources of a pixel, heaviest first. A map of an even patch has one row and column less.
function sourcesAt(row, col) {
  const m = map(), few = m.image.length / (m.rows * m.cols);
  const start = (Math.min(row, m.rows - 1) * m.cols + Math.min(col, m.cols - 1)) * few;
  return Array.from({ length: few }, (_, k) => start + k).map((i) => ({
    image: m.image[i], mass: m.mass[i], row: m.row[i], col: m.col[i], mirrored: m.mirrored[i],
  })).filter((one) => one.mass > 0);
}
const entropyAt = (row, col) => {
  const m = map();
  return m.entropy[Math.min(row, m.rows - 1) * m.cols + Math.min(col, m.cols - 1)];
};
function everyPixel(visit) {
  for (let row = 0; row < suspect().height; row++)
    for (let col = 0; col < suspect().width; col++) visit(row, col, row * suspect().width + col);
}
const corner = (centre) => centre - Math.floor((map().patch - 1) / 2);

/* Plates: a picture, a veil of one colour value per pixel, and lines. */

function plate(element, png, alt, width, height) {
  const [img, canvas, svg] = element.children;
  if (img.alt !== alt) img.alt = alt;
  if (!img.src.endsWith(png)) img.src = PNG + png;
  element.style.aspectRatio = `${width} / ${height}`;
  svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
  svg.replaceChildren();
  canvas.width = width;
  canvas.height = height;
  return { img, svg, paint: canvas.getContext("2d") };
}
function box(svg, kind, row, col, side) {
  svg.append(make("rect", { class: kind, x: col, y: row, width: side, height: side }));
}
// The picture stays clear where `light` is 1; a grey veil is seen on black and on white.
function lightUp({ svg, paint }, light, width) {
  light.forEach((value, i) => {
    paint.fillStyle = `rgb(128 124 118 / ${0.86 * (1 - value)})`;
    paint.fillRect(i % width, Math.floor(i / width), 1, 1);
  });
  const lit = (row, col) => col >= 0 && col < width && (light[row * width + col] ?? 0) >= 0.5;
  let path = "";
  light.forEach((_, i) => {
    const col = i % width, row = Math.floor(i / width);
    if (!lit(row, col)) return;
    if (!lit(row - 1, col)) path += `M${col} ${row}h1`;
    if (!lit(row + 1, col)) path += `M${col} ${row + 1}h1`;
    if (!lit(row, col - 1)) path += `M${col} ${row}v1`;
    if (!lit(row, col + 1)) path += `M${col + 1} ${row}v1`;
  });
  svg.append(make("path", { class: "edge-under", d: path }), make("path", { class: "edge", d: path }));
}

function drawSuspect() {
  const one = suspect(), element = $("suspect-plate");
  const drawn = plate(element, one.picture, `The suspect, ${one.name}`, one.width, one.height);
  element.setAttribute("aria-label", `The suspect, ${one.width} by ${one.height} pixels`);
  $("suspect-name").replaceChildren(named(one.name));
  $("suspect-size").textContent = `${one.of[0]} × ${one.of[1]} px`;
  drawn.img.classList.toggle("grey", state.source === null && state.view !== "picture");
  if (state.source !== null) {
    const light = new Float32Array(one.width * one.height);
    everyPixel((row, col, i) => {
      for (const at of sourcesAt(row, col)) if (at.image === state.source) light[i] += at.mass;
    });
    lightUp(drawn, light, one.width);
  } else if (state.view === "sources") {
    everyPixel((row, col) => {
      const at = sourcesAt(row, col).find((s) => (one.rank.get(s.image) ?? Infinity) < state.number);
      if (at) dye(drawn.paint, colour(one.rank.get(at.image)), 0.75 * at.mass, row, col);
    });
  } else if (state.view === "entropy") {
    const top = Math.max(...map().entropy, 1e-9);
    everyPixel((row, col) => dye(drawn.paint, "#e0862b", 0.9 * entropyAt(row, col) / top, row, col));
  }
  for (const kind of ["under", "patch"])
    box(drawn.svg, kind, corner(state.row), corner(state.col), map().patch);
  for (const kind of ["under", "over"]) box(drawn.svg, kind, state.row, state.col, 1);
  drawLegend();
}
function dye(paint, style, alpha, row, col) {
  paint.globalAlpha = alpha;
  paint.fillStyle = style;
  paint.fillRect(col, row, 1, 1);
}
function swatch(rank) {
  const made = make("i", { className: "swatch" });
  made.style.background = colour(rank);
  return made;
}
function drawLegend() {
  const one = suspect(), said = [];
  if (state.source !== null) said.push("Clear: owed to the chosen source. Veiled: not.");
  else if (state.view === "sources") {
    for (const [rank, source] of one.sources.slice(0, Math.min(state.number, 12)).entries())
      said.push(make("span", {}, swatch(rank), named(sourceOf(source.image).name)));
    if (state.number > 12) said.push(`and ${state.number - 12} more`);
  } else if (state.view === "entropy") {
    const most = Math.max(...map().entropy).toFixed(2);
    said.push(`Clear: one image explains the pixel. Orange: many do, up to ${most} nats.`);
  }
  $("legend").replaceChildren(...said);
}

/* What is said of the pixel under the cursor. */

const pictures = {}; // kept, so that they need not be decoded again at every move
function drawPixel() {
  const all = sourcesAt(state.row, state.col), entropy = entropyAt(state.row, state.col);
  const few = entropy < 0.05 ? "one image had it alone" : `${Math.exp(entropy).toFixed(1)} images shared it equally`;
  $("reading").textContent = `Row ${state.row + 1}, column ${state.col + 1}. `
    + `Entropy ${entropy.toFixed(2)} nats, as if ${few}.`;
  $("pin").setAttribute("aria-pressed", state.pinned);
  $("pin").textContent = state.pinned ? "Pinned" : "Pin";
  const shown = all.slice(0, state.number), rest = 1 - shown.reduce((sum, at) => sum + at.mass, 0);
  const lines = shown.map((at) => {
    const source = sourceOf(at.image), img = (pictures[at.image] ??= make("img", { alt: "" }));
    const small = make("div", { className: "plate" }, img, make("canvas"), make("svg"));
    outlined(small, at);
    const rank = suspect().rank.get(at.image);
    const dot = rank === undefined ? [] : [swatch(rank)];
    const name = make("span", { className: "clamp" }, ...dot, named(source.name));
    const words = make("span", {}, name, ...(at.mirrored ? [make("small", {}, "mirrored")] : []), bar(at.mass));
    const button = make("button", { type: "button" }, small, words, make("b", {}, whole(at.mass)));
    button.setAttribute("aria-pressed", state.source === at.image);
    button.dataset.image = at.image;
    button.addEventListener("click", () => choose(at.image));
    return make("li", {}, button);
  });
  if (rest >= 0.005) lines.push(make("li", { className: "rest" }, "other images", make("span", {}, whole(rest))));
  $("here").replaceChildren(...lines);
}
function outlined(element, at) {
  const source = sourceOf(at.image), [width, height] = sides(source.picture);
  const { svg } = plate(element, source.picture, "", width, height);
  for (const kind of ["under", "over"])
    box(svg, kind, corner(at.row), corner(at.col), map().patch);
}
function bar(share) {
  const made = make("svg", { viewBox: "0 0 1 1", preserveAspectRatio: "none" });
  made.append(make("rect", { width: share, height: 1, class: "share" }));
  return make("span", { className: "bar" }, made);
}

/* The source beside the suspect: the chosen one, or the heaviest at the pixel. */

function drawSource() {
  const here = sourcesAt(state.row, state.col);
  const image = state.source ?? here[0]?.image;
  $("source").style.visibility = image === undefined ? "hidden" : "";
  if (image === undefined) return;
  const source = sourceOf(image), [width, height] = sides(source.picture);
  const drawn = plate($("source-plate"), source.picture, `The source, ${source.name}`, width, height);
  $("source-what").textContent = state.source === null ? "Heaviest source here" : "Chosen source";
  $("source-name").replaceChildren(named(source.name));
  $("source-size").textContent = `${source.of[0]} × ${source.of[1]} px`;
  if (state.source !== null) lightUp(drawn, used(image, width, height), width);
  const at = here.find((one) => one.image === image);
  if (at) {
    for (const kind of ["under", "over"])
      box(drawn.svg, kind, corner(at.row), corner(at.col), map().patch);
  }
  const rank = suspect().rank.get(image), said = [];
  if (rank === undefined) said.push("Not among the sources of the whole picture. ");
  else {
    const entry = suspect().sources[rank];
    said.push(`No. ${rank + 1}: ${percent(entry.share)} of the pixels, p = ${+entry.p.toPrecision(2)}`
      + (entry.mirrored ? ", mirrored. " : ". "));
  }
  if (state.source === null) said.push("Outlined: the patch that the pixel is compared with.");
  else said.push(make("button", { type: "button", id: "leave", onclick: leave }, "Show all"));
  $("source-said").replaceChildren(...said);
}
// How much of each pixel of the source some pixel of the suspect uses: its patches, by their masses.
function used(image, width, height) {
  const light = new Float32Array(width * height), side = map().patch;
  everyPixel((row, col) => {
    for (const at of sourcesAt(row, col)) {
      if (at.image !== image) continue;
      const [top, left] = [corner(at.row), corner(at.col)];
      for (let r = Math.max(top, 0); r < Math.min(top + side, height); r++)
        for (let c = Math.max(left, 0); c < Math.min(left + side, width); c++)
          light[r * width + c] = Math.max(light[r * width + c], at.mass);
    }
  });
  return light;
}

/* The table. */

const value = {
  rank: (s) => suspect().rank.get(s.image), name: (s) => sourceOf(s.image).name,
  share: (s) => s.share, p: (s) => s.p, score: (s) => s.score,
};
function drawTable() {
  const of = value[state.key], sign = state.down ? -1 : 1, all = suspect().sources;
  const order = (a, b) => (state.key === "name" ? of(a).localeCompare(of(b)) : of(a) - of(b));
  const sorted = [...all].sort((a, b) => sign * order(a, b)); // stable: equals stay by share
  const rows = sorted.slice(state.first, state.first + PAGE).map((entry) => {
    const source = sourceOf(entry.image), rank = suspect().rank.get(entry.image);
    const img = make("img", { src: PNG + (source.thumbnail ?? source.picture), alt: `Source ${rank + 1}` });
    const button = make("button", { type: "button" }, named(source.name));
    button.setAttribute("aria-pressed", state.source === entry.image);
    const cells = [[swatch(rank), rank + 1], [img], [button], [percent(entry.share), bar(entry.share)],
      [`${+entry.p.toPrecision(2)}`], [`${+entry.score.toPrecision(3)}`.replace("-", "\u2212")]];
    const row = make("tr", {}, ...cells.map((cell) => make("td", {}, ...cell)));
    row.lastChild.className = "wide";
    row.classList.toggle("chosen", state.source === entry.image);
    row.dataset.image = entry.image;
    row.addEventListener("click", () => {
      choose(entry.image);
      $("suspect").scrollIntoView({ block: "nearest" });
    });
    return row;
  });
  if (!rows.length) rows.push(make("tr", {}, make("td", { colSpan: 6 }, "No image explains any pixel.")));
  $("rows").replaceChildren(...rows);
  for (const button of document.querySelectorAll("th button")) {
    const sort = button.dataset.key !== state.key ? "none" : state.down ? "descending" : "ascending";
    button.parentElement.setAttribute("aria-sort", sort);
  }
  $("pager").hidden = all.length <= PAGE;
  $("back").disabled = state.first === 0;
  $("more").disabled = state.first + PAGE >= all.length;
  $("range").textContent = `${state.first + 1} to ${Math.min(state.first + PAGE, all.length)} of ${all.length}`;
}

/* The null distribution, and the suspect's place in it. */

function drawNull() {
  const { shares, thresholds } = data.null, share = suspect().verdict.share;
  const width = Math.max($("null").clientWidth, 200), base = 132, top = 46;
  const limits = thresholds.filter((one) => one.share !== null);
  const most = 1.05 * Math.max(...shares, share, ...limits.map((one) => one.share), 0.001);
  const tick = most > 0.1 ? 0.05 : most > 0.01 ? 0.01 : 0.001;
  const end = Math.min(1, tick * Math.ceil(most / tick));
  const x = (v) => between(v / end, 0, 1) * (width - 2) + 1;
  const bins = Array(40).fill(0);
  for (const v of shares) bins[Math.min(39, Math.floor((v / end) * 40))]++;
  const tallest = Math.max(...bins, 1), step = (width - 2) / 40;
  const svg = make("svg", { viewBox: `0 0 ${width} 172`, height: 172 });
  bins.forEach((count, i) => {
    const height = (count / tallest) * (base - top), x = 1 + i * step;
    svg.append(make("rect", { class: "chance", x, width: Math.max(step - 1, 1), y: base - height, height }));
  });
  const text = (at, y, words, kind) => {
    const anchor = x(at) > 0.7 * width ? "end" : x(at) < 0.3 * width ? "start" : "middle";
    svg.append(make("text", { x: x(at), y, "text-anchor": anchor, class: kind }, words));
  };
  const line = (at, y, kind) => svg.append(make("line", { class: kind, x1: x(at), x2: x(at), y1: y, y2: base }));
  limits.forEach((one, i) => {
    line(one.share, 32 + 14 * (i % 2) - 2, "at");
    text(one.share, 28 + 14 * (i % 2), `${percent(one.level)} level`, "");
  });
  line(share, 14, "suspect");
  text(share, 11, `this suspect, ${percent(share)}`, "here");
  svg.append(make("line", { class: "axis", x1: 0, x2: width, y1: base, y2: base }));
  text(0, base + 16, "0\u00a0%", "");
  text(end, base + 16, percent(end), "");
  svg.append(make("text", { x: width / 2, y: base + 34, "text-anchor": "middle" }, "largest share of one image"));
  const middle = shares[Math.floor(shares.length / 2)] ?? 0;
  $("null").setAttribute("aria-label", `Histogram of ${shares.length} held-out images: `
    + `half of them are below ${percent(middle)}, the largest is ${percent(shares.at(-1) ?? 0)}. This suspect: ${percent(share)}.`);
  $("null").replaceChildren(svg);
}

/* What the reader does. */

function draw() {
  drawSuspect();
  drawPixel();
  drawSource();
}
function move(row, col) {
  state.row = between(row, 0, suspect().height - 1);
  state.col = between(col, 0, suspect().width - 1);
  draw();
}
function pin(pinned) {
  state.pinned = pinned;
  draw();
}
function choose(image) {
  const focused = document.activeElement?.closest("[data-image]");
  const list = focused?.closest("#here, #rows")?.id;
  state.source = state.source === image ? null : image;
  draw();
  drawTable();
  // What was clicked is drawn anew; the keyboard stays with it.
  const again = list && $(list).querySelector(`[data-image="${image}"]`)?.closest("tr, li");
  if (again) again.querySelector("button").focus({ preventScroll: true });
}
function leave() {
  choose(state.source);
  $("suspect-plate").focus({ preventScroll: true });
}
let saying;
function say() {
  clearTimeout(saying);
  saying = setTimeout(() => {
    const [first] = sourcesAt(state.row, state.col);
    const heaviest = first ? `${sourceOf(first.image).name} ${whole(first.mass)}` : "no source";
    const entropy = entropyAt(state.row, state.col).toFixed(2), pinned = state.pinned ? ", pinned" : "";
    $("status").textContent = `Row ${state.row + 1}, column ${state.col + 1}: ${heaviest}, entropy ${entropy} nats${pinned}`;
  }, 150);
}
function setNoise(index) {
  state.map = between(index, 0, suspect().maps.length - 1);
  const said = `timestep ${map().timestep} of 1000`;
  $("noise").value = state.map;
  $("noise").setAttribute("aria-valuetext", said);
  $("noise-said").textContent = said;
}
function setNumber(number) {
  const all = suspect().sources.length;
  state.number = between(number, 1, Math.max(all, 1));
  $("number").value = state.number;
  $("number-said").textContent = `${Math.min(state.number, all)} of ${all}`;
}
// Where to begin: the pixel of an image that is nearest to the middle of all that it explains.
function middle(image) {
  const mine = [];
  everyPixel((row, col) => {
    const at = sourcesAt(row, col)[0];
    if (at?.image === image) mine.push({ row, col });
  });
  if (!mine.length) return { row: suspect().height >> 1, col: suspect().width >> 1 };
  const mean = (key) => mine.reduce((sum, at) => sum + at[key], 0) / mine.length;
  const [row, col] = [mean("row"), mean("col")];
  const away = (at) => (at.row - row) ** 2 + (at.col - col) ** 2;
  return mine.reduce((best, at) => (away(at) < away(best) ? at : best));
}
function open(index) {
  Object.assign(state, { suspect: index, pinned: false, source: null, first: 0 });
  for (const tab of document.querySelectorAll("[role=tab]")) {
    const selected = tab.id === `tab-${index}`;
    tab.setAttribute("aria-selected", selected);
    tab.tabIndex = selected ? 0 : -1;
  }
  if (data.suspects.length > 1) $("panel").setAttribute("aria-labelledby", `tab-${index}`);
  data.suspects.forEach((_, i) => { $(`verdict-${i}`).hidden = i !== index; });
  $("noise").max = suspect().maps.length - 1;
  $("noise").disabled = suspect().maps.length < 2;
  $("number").max = Math.max(suspect().sources.length, 1);
  $("number").disabled = suspect().sources.length < 2;
  setNoise(0);
  setNumber(5);
  Object.assign(state, middle(suspect().sources[0]?.image));
  draw();
  drawTable();
  drawNull();
}

const suspectPlate = $("suspect-plate");
function pointed(event) {
  const frame = suspectPlate.getBoundingClientRect();
  const down = (event.clientY - frame.top) / frame.height, along = (event.clientX - frame.left) / frame.width;
  const { height, width } = suspect();
  return [between(Math.floor(down * height), 0, height - 1), between(Math.floor(along * width), 0, width - 1)];
}
suspectPlate.addEventListener("pointermove", (event) => {
  if (event.pointerType === "touch" || state.pinned) return;
  const [row, col] = pointed(event);
  if (row !== state.row || col !== state.col) move(row, col);
});
suspectPlate.addEventListener("click", (event) => {
  const [row, col] = pointed(event), again = state.pinned && row === state.row && col === state.col;
  state.pinned = !again;
  move(row, col);
  say();
});
const STEP = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };
suspectPlate.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.altKey || event.metaKey) return;
  const step = STEP[event.key], far = event.shiftKey ? map().patch : 1;
  if (step) move(state.row + far * step[0], state.col + far * step[1]);
  else if (event.key === "Home") move(state.row, 0);
  else if (event.key === "End") move(state.row, Infinity);
  else if (event.key === "Enter" || event.key === " ") pin(!state.pinned);
  else if (event.key === "Escape") {
    pin(false);
    if (state.source !== null) choose(state.source);
  } else return;
  event.preventDefault();
  say();
});
$("pin").addEventListener("click", () => pin(!state.pinned));
for (const radio of document.querySelectorAll("[name=view]")) {
  radio.addEventListener("change", () => {
    state.view = radio.value;
    if (state.source !== null) choose(state.source);
    draw();
  });
}
$("noise").addEventListener("input", (event) => { setNoise(+event.target.value); draw(); });
$("number").addEventListener("input", (event) => { setNumber(+event.target.value); draw(); });
for (const button of document.querySelectorAll("th button")) {
  button.addEventListener("click", () => {
    const key = button.dataset.key;
    state.down = key === state.key ? !state.down : key === "share" || key === "score";
    Object.assign(state, { key, first: 0 });
    drawTable();
  });
}
$("back").addEventListener("click", () => { state.first -= PAGE; drawTable(); });
$("more").addEventListener("click", () => { state.first += PAGE; drawTable(); });
for (const [index, tab] of [...document.querySelectorAll("[role=tab]")].entries()) {
  tab.addEventListener("click", () => open(index));
  tab.addEventListener("keydown", (event) => {
    const last = data.suspects.length - 1;
    const [next, previous] = [index === last ? 0 : index + 1, index === 0 ? last : index - 1];
    const to = { ArrowRight: next, ArrowLeft: previous, Home: 0, End: last }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    open(to);
    $(`tab-${to}`).focus();
  });
}
new ResizeObserver(drawNull).observe($("null"));
open(0);
