// Building blocks

/** An element. Text goes in as text nodes only, so that nothing in a prompt is ever taken for markup. */
function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

function find(selector) {
  return document.querySelector(selector);
}

function fixed(value, digits) {
  const text = value.toFixed(digits);
  return Number(text) === 0 ? text.replace("-", "") : text;
}

function percent(probability) {
  const percents = 100 * probability;
  return percents === 0 ? "0" : percents < 0.01 ? "< 0.01%" : fixed(percents, percents < 1 ? 2 : 1) + "%";
}

function grouped(count) {
  return count.toLocaleString("en");
}

/**
 * A token as people can see it: signs for spaces, code points for what has no shape, bytes for parts of characters.
 * In a <bdi>, so that text from right to left turns nothing round outside it.
 */
function tokenChip(id, position) {
  const chip = make("bdi", { class: "token", "data-id": id });
  if (position !== undefined) chip.dataset.position = position;
  const name = page.names[id];
  if (Array.isArray(name)) {
    chip.classList.add("bytes");
    chip.append(hex(name));
    return chip;
  }
  for (const character of name) {
    const sign = visibleSign(character);
    chip.append(sign === character ? character : make("span", { class: "mark" }, sign));
  }
  return chip;
}

function visibleSign(character) {
  const signs = { " ": "·", "\n": "↵", "\t": "⇥" };
  if (character in signs) return signs[character];
  if (/\p{M}/u.test(character)) return "◌" + character;
  if (!/[\p{C}\p{Z}]/u.test(character)) return character;
  return "U+" + character.codePointAt(0).toString(16).toUpperCase().padStart(4, "0");
}

function hex(bytes) {
  return Array.from(bytes, (byte) => byte.toString(16).toUpperCase().padStart(2, "0")).join(" ");
}

function bytesOf(id) {
  const name = page.names[id];
  return Array.isArray(name) ? name : [...new TextEncoder().encode(name)];
}

/** The same as `tokenChip`, in words: for names that are read aloud. */
function tokenWords(id) {
  const name = page.names[id];
  return Array.isArray(name) ? "bytes " + hex(name) : JSON.stringify(name);
}

function promptChip(position) {
  const chip = tokenChip(page.ids[position], position);
  setTip(chip, () => tokenTip(page.ids[position], position));
  return chip;
}

function guessChip(id) {
  const chip = tokenChip(id);
  setTip(chip, () => tokenTip(id));
  return chip;
}

function tokenTip(id, position) {
  const where = position === undefined ? "" : `position ${position}, `;
  return [tokenChip(id), make("div", {}, `${where}id ${id}`), make("div", {}, `bytes ${hex(bytesOf(id))}`)];
}

/** A real table. Cells are texts, numbers (which are set to the right) or elements; the first column heads the rows. */
function table(headers, rows) {
  const number = (content) => /^-?[\d,.]+$/.test(content);
  const cell = (tag, content, attributes = {}) =>
    make(tag, number(content) ? { ...attributes, class: "number" } : attributes, content);
  const head = make("tr", {}, ...headers.map((header, i) =>
    make("th", number(rows[0][i]) ? { scope: "col", class: "number" } : { scope: "col" }, header)));
  const body = rows.map(([first, ...rest]) =>
    make("tr", {}, cell("th", first, { scope: "row" }), ...rest.map((content) => cell("td", content))));
  return make("table", { class: "numbers" }, make("thead", {}, head), make("tbody", {}, ...body));
}

/** The head and the rows of a figure made of cells: each row is its name, then its cells. */
function fillGrid(grid, heads, rows) {
  const head = make("tr", {}, ...heads.map((name) => name === "" ? make("td") : make("th", { scope: "col" }, name)));
  const body = rows.map(([name, ...cells]) => make("tr", {}, make("th", { scope: "row" }, name), ...cells));
  grid.replaceChildren(make("thead", {}, head), make("tbody", {}, ...body));
}

/** Fills a figure's table of numbers when it is opened, and again when they have changed and it is open. */
function numbers(figure, makeTable) {
  const details = find(`#${figure} details`);
  const label = find(`#${figure}-title`).textContent;
  const fill = () => {
    if (!details.open) return;
    details.querySelector(".scroll")?.remove();
    const box = make("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": `Numbers: ${label}` },
                     makeTable());
    details.append(box);
  };
  details.addEventListener("toggle", fill);
  return fill;
}

const arrowRows = new WeakMap();  // the cells of a container, row by row

/** One stop for the Tab key; inside, the arrow keys go from cell to cell. Rows may differ in length. */
function arrowKeys(container, rows) {
  for (const cell of rows.flat()) cell.tabIndex = cell === rows[0][0] ? 0 : -1;
  const isNew = !arrowRows.has(container);
  arrowRows.set(container, rows);
  if (!isNew) return;
  container.addEventListener("focusin", ({ target }) => {
    const cells = arrowRows.get(container).flat();
    if (cells.includes(target)) for (const cell of cells) cell.tabIndex = cell === target ? 0 : -1;
  });
  container.addEventListener("keydown", (event) => {
    const rows = arrowRows.get(container);
    const row = rows.findIndex((cells) => cells.includes(event.target));
    if (row < 0) return;
    const column = rows[row].indexOf(event.target);
    const to = { ArrowLeft: [row, column - 1], ArrowRight: [row, column + 1], ArrowUp: [row - 1, column],
                 ArrowDown: [row + 1, column], Home: [row, 0], End: [row, rows[row].length - 1] }[event.key];
    if (!to) return;
    event.preventDefault();
    rows[to[0]]?.[to[1]]?.focus();
  });
}

/** Enter and Space do what a click does, on cells that are no buttons. */
function onChoose(cell, action) {
  cell.addEventListener("click", action);
  cell.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" && event.key !== " ") return;
    event.preventDefault();
    action();
  });
}
