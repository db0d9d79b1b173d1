// The page of `score --html`: a text whose tokens are coloured by their surprise

const page = JSON.parse(document.getElementById("data").textContent);
const DARKEST = 9;  // nats, and more
const MOST_LISTED = 200;  // of the most surprising tokens

function nameOf(id) {
  return page.names[id];
}

function shade(surprise) {
  return `s${Math.min(Math.floor(surprise), DARKEST)}`;
}

/** A token as part of a text: spaces stay spaces, and a line end is seen and ends the line. */
function textToken(position) {
  const name = nameOf(page.ids[position]);
  const surprise = page.surprise[position];
  const token = make("bdi", { class: surprise === null ? "unscored" : shade(surprise), "data-at": position });
  if (Array.isArray(name)) {
    token.classList.add("bytes");
    token.append(hex(name));
  } else {
    [...name].forEach((character, i) => {
      const isPlain = /[ \t]/.test(character) || (i > 0 && /\p{M}/u.test(character));
      const sign = isPlain ? character : visibleSign(character);
      token.append(sign === character ? character : make("span", { class: "mark" }, sign));
      if (character === "\n") token.append("\n");
    });
  }
  setTip(token, () => surpriseTip(position));
  return token;
}

function surpriseTip(position) {
  const id = page.ids[position];
  const surprise = page.surprise[position];
  const heading = make("div", {}, tokenChip(id), ` id ${id}, position ${position}`);
  if (surprise === null) return [heading, make("div", {}, "Nothing comes before it to predict it from.")];
  const found = `${percent(Math.exp(-surprise))} probable, rank ${grouped(page.ranks[position])} of ` +
    `${grouped(page.vocab_size)}; surprise ${fixed(surprise, 2)} nats, ${fixed(surprise / Math.LN2, 2)} bits`;
  const rows = page.top[position].map(([other, probability]) =>
    make("tr", other === id ? { class: "this" } : {}, make("td", {}, tokenChip(other)),
         make("td", { class: "number" }, percent(probability))));
  return [heading, make("div", {}, found), make("table", {}, make("caption", {}, "Likeliest here:"), ...rows)];
}

function mostSurprising() {
  const scored = page.ids.map((_, position) => position).filter((position) => page.surprise[position] !== null);
  scored.sort((a, b) => page.surprise[b] - page.surprise[a] || a - b);
  const likeliest = (position) => page.top[position]
    .map(([id, probability]) => `${tokenWords(id)} ${percent(probability)}`).join("  ");
  return table(["position", "token", "id", "surprise, nats", "rank", "likeliest"],
               scored.slice(0, MOST_LISTED).map((position) =>
    [String(position), tokenWords(page.ids[position]), String(page.ids[position]), fixed(page.surprise[position], 3),
     grouped(page.ranks[position]), likeliest(position)]));
}

/** One stop for the Tab key; inside, the arrow keys go from token to token. There may be very many. */
function walk(tokens) {
  let current = tokens[0];
  for (const token of tokens) token.tabIndex = token === current ? 0 : -1;
  const text = find(".text");
  text.addEventListener("focusin", ({ target }) => {
    current.tabIndex = -1;
    current = target;
    current.tabIndex = 0;
  });
  text.addEventListener("keydown", (event) => {
    const position = Number(event.target.dataset.at);
    const to = { ArrowLeft: position - 1, ArrowRight: position + 1, Home: 0, End: tokens.length - 1 }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    tokens[to]?.focus();
  });
  text.addEventListener("click", ({ target }) => target.closest("bdi")?.focus());  // for a finger
}

function start() {
  find("#lead").textContent = page.lead;
  const swatches = Array.from({ length: DARKEST + 1 }, (_, i) =>
    make("b", { class: shade(i) }, i === DARKEST ? `${i}+` : String(i)));
  find("#legend").append("surprise, nats:", ...swatches);
  const tokens = page.ids.map((_, position) => textToken(position));
  find(".text").append(...tokens);
  walk(tokens);
  numbers("text", mostSurprising);
}

start();
