"use strict";
// Maps of one sweep side by side. The state is the URL's fragment, #viewer=MODEL/SWEEP/IMAGE, with
// IMAGE an id or a rank (1: the least stable); further parts: grid (order), shared (scale).
(() => {
  const root = document.getElementById("viewer");
  const data = JSON.parse(document.getElementById("viewer-data").textContent);
  const control = (name) => root.querySelector(`[name="${name}"]`);
  const [model, sweep, image, order, scale] =
    ["model", "sweep", "image", "order", "scale"].map(control);
  const grid = root.querySelector(".maps");
  const said = root.querySelector(".said");
  const bytes = Uint8Array.from(atob(data.palette), (letter) => letter.charCodeAt(0));
  const decoded = new Map();
  let drawing = 0;
  root.querySelector(".unscripted").remove();
  root.querySelector(".controls").hidden = false;

  function option(value, text) {
    const made = document.createElement("option");
    made.value = value;
    made.textContent = text;
    return made;
  }

  function element(tag, text, name) {
    const made = document.createElement(tag);
    if (text !== undefined) made.textContent = text;
    if (name) made.className = name;
    return made;
  }

  // A sprite is decoded when it is first looked at.
  function sprite(id) {
    if (!decoded.has(id)) {
      const picture = new Image();
      picture.src = document.getElementById(id).textContent.trim();
      decoded.set(id, picture.decode().then(() => picture));
    }
    return decoded.get(id);
  }

  // Adding 0 makes 0 of -0.
  const number = (value, digits) =>
    value === null || value === undefined
      ? "–"
      : (Number(value.toFixed(digits)) + 0).toFixed(digits).replace("-", "−");

  function chosen() {
    const own = data.sweeps.find((one) => one.name === sweep.value) || data.sweeps[0];
    return { own, made: own.models[model.value] };
  }

  function fillImages(wanted) {
    const { own, made } = chosen();
    image.replaceChildren();
    if (!made) return;
    made.ranking.forEach((place, rank) => {
      const about = data.images[place];
      const mean = made.means[place];
      const name = about.class ? `${about.id}, ${about.class}` : about.id;
      const told = mean === null ? "" : ` (mean SSIM ${number(mean, 2)})`;
      image.append(option(String(place), `${own.knob ? `${rank + 1}. ` : ""}${name}${told}`));
    });
    let place = data.images.findIndex((one) => one.id === wanted);
    if (place < 0 && /^[0-9]+$/.test(wanted || "")) place = made.ranking[Number(wanted) - 1] ?? -1;
    image.value = String(place < 0 ? made.ranking[0] : place);
  }

  function fillSweeps(wanted) {
    sweep.replaceChildren();
    for (const one of data.sweeps) {
      if (!one.models[model.value]) continue;
      sweep.append(option(one.name, one.knob ? `${one.name}: ${one.knob} of ${one.method}` : `${one.name}: no knob`));
    }
    sweep.value = wanted;
    if (sweep.selectedIndex < 0) sweep.selectedIndex = 0;
  }

  function fragment() {
    const parts = [model.value, sweep.value, data.images[Number(image.value)].id];
    if (order.value === "grid") parts.push("grid");
    if (scale.value === "shared") parts.push("shared");
    return `#viewer=${parts.map(encodeURIComponent).join("/")}`;
  }

  // Whether the fragment names a state; what it leaves out stays as it is.
  function read(hash) {
    if (!hash.startsWith("#viewer=")) return false;
    let parts;
    try {
      parts = hash.slice(8).split("/").map(decodeURIComponent);
    } catch {
      return false;
    }
    const [name, wanted, which, ...others] = parts;
    if (data.models.includes(name)) model.value = name;
    order.value = others.includes("grid") ? "grid" : "worst";
    scale.value = others.includes("shared") ? "shared" : "own";
    fillSweeps(wanted);
    fillImages(which);
    return true;
  }

  function photograph(place, sheet) {
    const about = data.images[place];
    const tile = element("figure", undefined, "tile");
    const canvas = document.createElement("canvas");
    const side = data.photos.side;
    canvas.width = canvas.height = side;
    const context = canvas.getContext("2d");
    context.drawImage(sheet, 0, place * side, side, side, 0, 0, side, side);
    if (about.box) {
      const [x0, y0, x1, y1] = about.box.map((end) => (end * side) / data.photos.of);
      context.strokeStyle = "#ffd60a";
      context.lineWidth = Math.max(1, side / 96);
      context.strokeRect(x0 + 0.5, y0 + 0.5, x1 - x0 - 1, y1 - y0 - 1);
    }
    tile.append(canvas);
    const words = element("figcaption");
    words.append(element("strong", about.class || "the image"), element("span", about.id));
    tile.append(words);
    return tile;
  }

  function mapTile(own, made, place, setting, sheet) {
    const side = data.side;
    const tile = element("figure", undefined, "tile");
    const isReference = setting === own.reference;
    const canvas = document.createElement("canvas");
    canvas.width = canvas.height = side;
    const context = canvas.getContext("2d", { willReadFrequently: true });
    context.drawImage(sheet, setting * side, place * side, side, side, 0, 0, side, side);
    const pixels = context.getImageData(0, 0, side, side);
    const largest = made.amplitude[setting][place];
    const common = own.reference === null ? null : made.amplitude[own.reference][place];
    const factor = scale.value === "shared" && common ? largest / common : 1;
    for (let at = 0; at < pixels.data.length; at += 4) {
      // 0 stands for a value that is not finite, else 128 is 0 and 1 to 255 the range.
      const level = pixels.data[at];
      const shown = level && Math.min(255, Math.max(1, 128 + Math.round((level - 128) * factor)));
      for (let colour = 0; colour < 3; colour++) pixels.data[at + colour] = bytes[3 * shown + colour];
    }
    context.putImageData(pixels, 0, 0);
    const value = own.values[setting];
    const name = own.knob ? `${own.knob} = ${value}` : own.method;
    canvas.setAttribute("role", "img");
    canvas.setAttribute("aria-label", `Map at ${name}`);
    tile.dataset.value = value;
    tile.classList.toggle("reference", isReference);
    const words = element("figcaption");
    words.append(element("strong", name));
    if (isReference) words.append(element("span", "reference"));
    if (made.degenerate[setting][place]) words.append(element("span", "degenerate", "bad"));
    const scores = element("dl");
    for (const metric of data.metrics) {
      const score = (made.scores[metric.name] || [])[setting]?.[place];
      if (score === null || score === undefined) continue;
      const line = element("div", undefined, metric.name === "ssim" ? "main" : "");
      line.title = metric.words;
      line.append(element("dt", metric.label), element("dd", number(score, metric.digits)));
      scores.append(line);
    }
    words.append(scores);
    tile.append(canvas, words);
    return tile;
  }

  async function draw() {
    const turn = ++drawing;
    const { own, made } = chosen();
    if (!made || image.value === "") return;
    const place = Number(image.value);
    const [sheet, photos] = await Promise.all([
      sprite(made.sheet),
      data.photos ? sprite("viewer-photos") : null,
    ]);
    if (turn !== drawing) return;
    const settings = own.values.map((_, setting) => setting);
    if (order.value === "worst") {
      const ssim = made.scores.ssim || [];
      const last = (setting) => ssim[setting]?.[place] ?? Infinity;
      settings.sort((a, b) => (b === own.reference) - (a === own.reference) || last(a) - last(b) || a - b);
    }
    const tiles = settings.map((setting) => mapTile(own, made, place, setting, sheet));
    if (photos) tiles.unshift(photograph(place, photos));
    grid.replaceChildren(...tiles);
    const rank = made.ranking.indexOf(place) + 1;
    said.replaceChildren();
    if (own.knob) {
      const link = element("a", own.name);
      link.href = `#${own.anchor}`;
      said.append(link, ` on ${model.value}: image ${rank} of ${made.ranking.length}, least stable first.`);
    } else {
      said.append(`${own.method} on ${model.value}: it has no knob in this study.`);
    }
    root.dataset.drawn = fragment();
  }

  function changed() {
    // What was chosen can be linked to, and does not fill the browser's history.
    history.replaceState(null, "", fragment());
    draw();
  }

  function step(select, by) {
    const n = select.options.length;
    select.selectedIndex = (select.selectedIndex + by + n) % n;
    select.dispatchEvent(new Event("change"));
  }

  const imageNow = () => data.images[Number(image.value)]?.id;
  model.addEventListener("change", () => {
    const before = imageNow();
    fillSweeps(sweep.value);
    fillImages(before);
    changed();
  });
  sweep.addEventListener("change", () => {
    fillImages(imageNow());
    changed();
  });
  for (const select of [image, order, scale]) select.addEventListener("change", changed);
  for (const [name, by] of [["previous", -1], ["next", 1]]) {
    control(name).addEventListener("click", () => step(image, by));
  }
  root.addEventListener("keydown", (event) => {
    // A select of its own has other uses for the arrows.
    if (event.target.tagName === "SELECT" || event.ctrlKey || event.metaKey || event.altKey) return;
    const steps = {
      ArrowLeft: event.shiftKey ? [model, -1] : [image, -1],
      ArrowRight: event.shiftKey ? [model, 1] : [image, 1],
      ArrowUp: [sweep, -1],
      ArrowDown: [sweep, 1],
      m: [model, 1],
      o: [order, 1],
      s: [scale, 1],
    };
    const found = steps[event.key];
    if (!found) return;
    event.preventDefault();
    step(...found);
  });
  const show = () => {
    if (!read(location.hash)) return;
    draw();
    root.closest("section").scrollIntoView();
    root.focus({ preventScroll: true });
  };
  window.addEventListener("hashchange", show);

  for (const name of data.models) model.append(option(name, name));
  model.value = data.first[0];
  fillSweeps(data.first[1]);
  fillImages("1");
  if (location.hash.startsWith("#viewer=")) {
    show();
  } else {
    // Nothing is decoded before the viewer comes near.
    const watch = new IntersectionObserver((entries) => {
      if (!entries.some((entry) => entry.isIntersecting)) return;
      watch.disconnect();
      if (!drawing) draw();
    }, { rootMargin: "600px" });
    watch.observe(root);
  }
})();
