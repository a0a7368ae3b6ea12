"use strict";
// Maps of one sweep side by side. The state is the URL's fragment, #viewer=MODEL/SWEEP/IMAGE, with
// IMAGE an id or a rank (1: the least stable); further parts: grid (order), shared (scale), overlay
// or difference (view), all (models side by side).
(() => {
  const root = document.getElementById("viewer");
  const data = JSON.parse(document.getElementById("viewer-data").textContent);
  const control = (name) => root.querySelector(`[name="${name}"]`);
  const [model, sweep, image, view, opacity, side, order, scale] =
    ["model", "sweep", "image", "view", "opacity", "side", "order", "scale"].map(control);
  // What the fragment says of a control, where it is not at its first option.
  const parted = [[order, "grid"], [scale, "shared"], [view, "overlay"], [view, "difference"], [side, "all"]];
  const grid = root.querySelector(".maps");
  const said = root.querySelector(".said");
  const bytes = Uint8Array.from(atob(data.palette), (letter) => letter.charCodeAt(0));
  const decoded = new Map();
  let drawing = 0;
  root.querySelector(".unscripted").remove();
  root.querySelector(".controls").hidden = false;
  if (!data.photos) view.querySelector('[value="overlay"]').remove();
  if (data.models.length < 2) side.closest("label").hidden = true;

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
      image.append(option(String(place), `${own.hyperparameter ? `${rank + 1}. ` : ""}${name}${told}`));
    });
    let place = data.images.findIndex((one) => one.id === wanted);
    if (place < 0 && /^[0-9]+$/.test(wanted || "")) place = made.ranking[Number(wanted) - 1] ?? -1;
    image.value = String(place < 0 ? made.ranking[0] : place);
  }

  function fillSweeps(wanted) {
    sweep.replaceChildren();
    for (const one of data.sweeps) {
      if (!one.models[model.value]) continue;
      sweep.append(option(one.name, one.hyperparameter ? `${one.name}: ${one.hyperparameter} of ${one.method}` : `${one.name}: no hyperparameter`));
    }
    sweep.value = wanted;
    if (sweep.selectedIndex < 0) sweep.selectedIndex = 0;
  }

  function fragment() {
    const parts = [model.value, sweep.value, data.images[Number(image.value)].id];
    for (const [select, value] of parted) if (select.value === value) parts.push(value);
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
    for (const select of [order, scale, view, side]) select.selectedIndex = 0;
    for (const [select, value] of parted) if (others.includes(value)) select.value = value;
    if (view.selectedIndex < 0) view.selectedIndex = 0;
    fillSweeps(wanted);
    fillImages(which);
    return true;
  }

  // Pixels of an image's square in a sheet, drawn at the side of the maps.
  function square(canvas, sheet, left, top, from) {
    canvas.width = canvas.height = data.side;
    const context = canvas.getContext("2d", { willReadFrequently: true });
    context.drawImage(sheet, left, top, from, from, 0, 0, data.side, data.side);
    return [context, context.getImageData(0, 0, data.side, data.side)];
  }

  function photograph(name, place, sheet) {
    const about = data.images[place];
    const tile = element("figure", undefined, "tile");
    const canvas = document.createElement("canvas");
    const length = data.photos.side;
    canvas.width = canvas.height = length;
    const context = canvas.getContext("2d");
    context.drawImage(sheet, 0, place * length, length, length, 0, 0, length, length);
    if (about.box) {
      const [x0, y0, x1, y1] = about.box.map((end) => (end * length) / data.photos.of);
      context.strokeStyle = "#ffd60a";
      context.lineWidth = Math.max(1, length / 96);
      context.strokeRect(x0 + 0.5, y0 + 0.5, x1 - x0 - 1, y1 - y0 - 1);
    }
    tile.append(canvas);
    const words = element("figcaption");
    words.append(element("strong", about.class || "the image"), element("span", about.id));
    const predicted = data.predicted[name]?.[place];
    if (predicted) {
      const wrong = about.class && predicted !== about.class;
      words.append(element("span", `predicted: ${predicted}`, wrong ? "bad" : ""));
    }
    tile.append(words);
    return tile;
  }

  // Colors of a map: by itself, over the gray image, or minus the reference. 0 stands for a value
  // that is not finite, else 128 is 0 and 1 to 255 the range.
  function paint(pixels, factor, reference, photo) {
    const color = (at, level, share, under) => {
      for (let i = 0; i < 3; i++) {
        pixels[at + i] = Math.round(share * bytes[3 * level + i] + (1 - share) * under);
      }
    };
    for (let at = 0; at < pixels.length; at += 4) {
      const level = pixels[at];
      let signed = (level - 128) * factor;
      if (reference) signed -= reference[at] - 128;
      const finite = level && (!reference || reference[at]);
      const shown = finite && Math.min(255, Math.max(1, 128 + Math.round(signed)));
      if (!photo) {
        color(at, shown, 1, 0);
        continue;
      }
      const gray = 0.299 * photo[at] + 0.587 * photo[at + 1] + 0.114 * photo[at + 2];
      const share = (opacity.value / 100) * Math.sqrt(Math.abs(shown - 128) / 127);
      if (shown) color(at, shown < 128 ? 40 : 216, Math.min(1, share), gray);
      else color(at, 0, 1, 0);
    }
  }

  function mapTile(own, made, place, setting, sheet, photos) {
    const length = data.side;
    const tile = element("figure", undefined, "tile");
    const isReference = setting === own.reference;
    const canvas = document.createElement("canvas");
    const [context, pixels] = square(canvas, sheet, setting * length, place * length, length);
    const largest = made.amplitude[setting][place];
    const common = own.reference === null ? null : made.amplitude[own.reference][place];
    const factor = scale.value === "shared" && common ? largest / common : 1;
    let reference = null;
    let photo = null;
    const other = () => document.createElement("canvas");
    if (view.value === "difference" && own.reference !== null && !isReference) {
      const [, found] = square(other(), sheet, own.reference * length, place * length, length);
      reference = found.data;
    } else if (view.value === "overlay") {
      const from = data.photos.side;
      photo = square(other(), photos, 0, place * from, from)[1].data;
    }
    paint(pixels.data, factor, reference, photo);
    context.putImageData(pixels, 0, 0);
    const value = own.values[setting];
    const name = own.hyperparameter ? `${own.hyperparameter} = ${value}` : own.method;
    canvas.setAttribute("role", "img");
    canvas.setAttribute("aria-label", `Map at ${name}${reference ? " minus the reference" : ""}`);
    tile.dataset.value = value;
    tile.classList.toggle("reference", isReference);
    const words = element("figcaption");
    words.append(element("strong", name));
    if (isReference) words.append(element("span", "reference"));
    for (const flag of ["degenerate", "inverted"]) {
      if (made[flag][setting][place]) words.append(element("span", flag, "bad"));
    }
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
    const names = side.value === "all" ? data.models.filter((name) => own.models[name]) : [model.value];
    const [photos, ...sheets] = await Promise.all([
      data.photos ? sprite("viewer-photos") : null,
      ...names.map((name) => sprite(own.models[name].sheet)),
    ]);
    if (turn !== drawing) return;
    opacity.closest("label").hidden = view.value !== "overlay";
    const settings = own.values.map((_, setting) => setting);
    if (order.value === "worst") {
      const ssim = made.scores.ssim || [];
      const last = (setting) => ssim[setting]?.[place] ?? Infinity;
      settings.sort((a, b) => (b === own.reference) - (a === own.reference) || last(a) - last(b) || a - b);
    }
    const blocks = names.map((name, at) => {
      const block = element("div", undefined, "model");
      if (names.length > 1) block.append(element("h4", name));
      const tiles = element("div", undefined, "tiles");
      if (photos) tiles.append(photograph(name, place, photos));
      for (const setting of settings) {
        tiles.append(mapTile(own, own.models[name], place, setting, sheets[at], photos));
      }
      block.append(tiles);
      return block;
    });
    grid.replaceChildren(...blocks);
    const rank = made.ranking.indexOf(place) + 1;
    said.replaceChildren();
    if (own.hyperparameter) {
      const link = element("a", own.name);
      link.href = `#${own.anchor}`;
      said.append(link, ` on ${model.value}: image ${rank} of ${made.ranking.length}, least stable first.`);
    } else {
      said.append(`${own.method} on ${model.value}: it has no hyperparameter in this study.`);
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
  for (const select of [image, view, side, order, scale]) select.addEventListener("change", changed);
  opacity.addEventListener("input", draw);
  for (const [name, by] of [["previous", -1], ["next", 1]]) {
    control(name).addEventListener("click", () => step(image, by));
  }
  const inMiddle = () => {
    const { top, bottom } = root.getBoundingClientRect();
    return top < window.innerHeight / 2 && bottom > window.innerHeight / 2;
  };
  document.addEventListener("keydown", (event) => {
    // What takes keys of its own has other uses for them.
    if (event.target.closest?.("select, input, textarea, [contenteditable]")) return;
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const inside = root.contains(event.target);
    if (!inside && !inMiddle()) return;
    const steps = {
      ArrowLeft: event.shiftKey ? [model, -1] : [image, -1],
      ArrowRight: event.shiftKey ? [model, 1] : [image, 1],
      // The page scrolls by these two, unless the viewer was clicked.
      ...(inside ? { ArrowUp: [sweep, -1], ArrowDown: [sweep, 1] } : {}),
      k: [sweep, -1],
      j: [sweep, 1],
      m: [model, 1],
      b: [side, 1],
      v: [view, 1],
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
