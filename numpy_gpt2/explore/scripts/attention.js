// Attention

function drawThumbnails() {
  const grid = find(".thumbnails");
  sizeThumbnails();
  const heads = Array.from({ length: n_head }, (_, head) => head);
  const buttons = Array.from({ length: n_layer }, (_, layer) => heads.map((head) => thumbnail(layer, head)));
  fillGrid(grid, ["head", ...heads.map(String)], buttons.map((row, layer) =>
    [`h.${layer}`, ...row.map((button) => make("td", {}, button))]));
  arrowKeys(grid, buttons);
  drawNamedHeads();
}

function sizeThumbnails() {
  const large = find(".large").offsetWidth + 32;  // pixels; beside all heads, where there is room
  const width = find("#attention").clientWidth - (matchMedia("(max-width: 44rem)").matches ? 0 : large);
  const room = Math.min(width, 520) - 46;
  find(".thumbnails").style.setProperty("--side", `${Math.min(Math.max(Math.floor(room / n_head) - 5, 14), 46)}px`);
}

/** The heads that bear a name: each a way to choose it. */
function drawNamedHeads() {
  const items = page.heads.map(({ layer, head, kind, score, n_rows }) => {
    const button = make("button", { type: "button" }, make("b", {}, `${layer}.${head}`), ` ${kind} ${fixed(score, 2)}`);
    button.addEventListener("click", () => chooseAndWrite({ layer, head, target: "head" }));
    setTip(button, () => [`On average over ${n_rows} tokens, an attention weight of ${fixed(score, 3)} on ${KINDS[kind]}.`]);
    return make("li", {}, button);
  });
  const none = n_tokens < 14 ? "None: the prompt is too short to tell. It takes 14 tokens."
    : "None: no head has a mean attention weight of 0.4 or more on one kind of token.";
  find(".named").replaceChildren(...(items.length ? items : [make("li", { class: "muted" }, none)]));
}

const KINDS = {
  "previous token": "the token before", "first token": "the first token",
  "duplicate token": "earlier copies of the same token", "induction": "what came after earlier copies of the same token",
};

function headName(layer, head) {
  const named = page.heads.find((each) => each.layer === layer && each.head === head);
  return named ? ` · ${named.kind}, ${fixed(named.score, 2)}` : "";
}

function thumbnail(layer, head) {
  const canvas = make("canvas", { width: n_tokens, height: n_tokens });
  const button = make("button", { type: "button", "aria-label": `h.${layer}, head ${head}` }, canvas);
  button.addEventListener("click", () => {
    chooseAndWrite({ layer, head, target: "head" });
    find(".large").scrollIntoView({ block: "nearest" });  // on a small screen it may be out of view
  });
  const draw = () => {
    const image = new ImageData(n_tokens, n_tokens);  // a pixel for each pair; above the diagonal all stay transparent
    for (let query = 0; query < n_tokens; query++) {
      for (let key = 0; key <= query; key++) {
        const rgb = palette[Math.round(255 * probabilityFraction(weight(layer, head, query, key)))];
        image.data.set(rgb, 4 * (query * n_tokens + key));
      }
    }
    canvas.getContext("2d").putImageData(image, 0, 0);
  };
  repaints.set(`h.${layer} ${head}`, draw);
  draw();
  return button;
}

function markThumbnails() {
  document.querySelectorAll(".thumbnails tbody tr").forEach((row, layer) => {
    row.classList.toggle("chosen", layer === chosen.layer);
    row.querySelectorAll("button").forEach((button, head) =>
      button.setAttribute("aria-pressed", layer === chosen.layer && head === chosen.head));
  });
}

const place = { query: 0, key: 0 };  // where the keyboard is in the large map
let CELL;                            // the side of a cell of the large map, in pixels

function sizeMap() {
  const map = find(".map");
  const height = innerHeight - 190 - (find("#bar")?.offsetHeight ?? 0);
  CELL = Math.min(Math.max(Math.floor(Math.min(368, innerWidth - 130, height) / n_tokens), 12), 46);
  map.style.setProperty("--cell", `${CELL}px`);
  map.style.setProperty("--label", `${Math.min(CELL - 2, 13)}px`);
}

addEventListener("resize", () => { sizeMap(); sizeThumbnails(); drawMap(); });

function drawAxes() {
  const map = find(".map");
  sizeMap();
  const label = (_, position) => make("span", {}, promptChip(position));
  map.querySelector(".keys").replaceChildren(...page.ids.map(label));
  map.querySelector(".queries").replaceChildren(...page.ids.map(label));
  Object.assign(place, { query: n_tokens - 1, key: 0 });
}

function listenOnMap() {
  const map = find(".map");
  const canvas = map.querySelector("canvas");
  canvas.addEventListener("pointermove", ({ offsetX, offsetY }) =>
    visit(Math.floor(offsetY / CELL), Math.floor(offsetX / CELL)));
  canvas.addEventListener("pointerleave", () => { hideTip(); drawMap(); });
  canvas.addEventListener("click", () => chooseAndWrite({ position: place.query, target: "position" }));
  canvas.addEventListener("focus", () => visit(place.query, Math.min(place.key, place.query)));
  canvas.addEventListener("blur", () => drawMap());
  canvas.addEventListener("keydown", (event) => {
    const { query, key } = place;
    const to = { ArrowLeft: [query, key - 1], ArrowRight: [query, key + 1], ArrowUp: [query - 1, key],
                 ArrowDown: [query + 1, key], Home: [query, 0], End: [query, query] }[event.key];
    if (event.key === "Enter" || event.key === " ") chooseAndWrite({ position: query, target: "position" });
    if (to && visit(...to)) keepInView(map.parentElement, canvas);
    if (to || event.key === " ") event.preventDefault();
  });
  repaints.set("map", drawMap);
}

/** Points at one cell of the large map: its two tokens are lit, and its number is shown. */
function visit(query, key) {
  if (query < 0 || query >= n_tokens || key < 0 || key > query) return false;
  Object.assign(place, { query, key });
  light([query, key]);
  drawMap(place);
  tellWeight(query, key);
  return true;
}

/** A long prompt's map is larger than its frame. */
function keepInView(frame, canvas) {
  frame.scrollLeft = canvas.offsetLeft + place.key * CELL - frame.clientWidth / 2;
  frame.scrollTop = canvas.offsetTop + place.query * CELL - frame.clientHeight / 2;
}

function drawHead() {
  const { layer, head, position } = chosen;
  const canvas = find(".map canvas");
  const name = `h.${layer}, head ${head}`;
  find(".large h3").replaceChildren(name, headName(layer, head));
  canvas.setAttribute("aria-label", `Attention weights of ${name}, ${n_tokens} by ${n_tokens} tokens. Arrow keys move.`);
  drawMap();
  const row = page.ids.map((_, key) => weight(layer, head, position, key));
  tellWeight(position, row.indexOf(Math.max(...row)));
  fillAttention();
}

function tellWeight(query, key) {
  const { layer, head } = chosen;
  find("#attention .readout").replaceChildren(
    promptChip(query), ` (${query}) attends to `, promptChip(key), ` (${key}): `,
    make("b", {}, fixed(weight(layer, head, query, key), 3)),
    before ? ` (before: ${fixed(weight(layer, head, query, key, attentionBefore), 3)})` : "");
}

function drawMap(pointed) {
  const canvas = find(".map canvas");
  const ratio = devicePixelRatio || 1;
  canvas.width = canvas.height = n_tokens * CELL * ratio;
  canvas.style.width = canvas.style.height = `${n_tokens * CELL}px`;
  const context = canvas.getContext("2d");
  context.scale(ratio, ratio);
  context.font = `${Math.min(CELL / 3.2, 14)}px ${getComputedStyle(document.body).fontFamily}`;
  context.textAlign = "center";
  context.textBaseline = "middle";
  const gap = CELL > 16 ? 1.5 : 0.5;
  for (let query = 0; query < n_tokens; query++) {
    for (let key = 0; key <= query; key++) {
      const value = weight(chosen.layer, chosen.head, query, key);
      const fill = colour(probabilityFraction(value));
      context.fillStyle = css(fill);
      context.fillRect(key * CELL, query * CELL, CELL - gap, CELL - gap);
      if (CELL < 34) continue;
      context.fillStyle = textColour(fill);
      context.fillText(fixed(value, 2), (key + 0.5) * CELL, (query + 0.5) * CELL);
    }
  }
  context.strokeStyle = css(cssColour("--accent"));
  context.lineWidth = 2;
  context.strokeRect(1, chosen.position * CELL, (chosen.position + 1) * CELL - 2, CELL - 1);
  if (pointed) context.strokeRect(pointed.key * CELL + 1, pointed.query * CELL + 1, CELL - 3, CELL - 3);
}

const fillAttention = numbers("attention", () =>
  table(["token", ...page.ids.map((id, key) => promptChip(key))], page.ids.map((id, query) =>
    [promptChip(query), ...page.ids.map((_, key) =>
      key > query ? "" : fixed(weight(chosen.layer, chosen.head, query, key), 3))])));
