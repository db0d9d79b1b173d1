// Direct logit attribution

/** The parts of one row: a block's heads, its bias and its MLP; or one part alone. */
function partRows() {
  const blocks = Array.from({ length: n_layer }, (_, layer) => ({
    name: `h.${layer}`,
    parts: page.attribution.parts.filter((part) => part.startsWith(`h.${layer}.`)),
  }));
  const alone = (name) => ({ name, parts: [name] });
  return [alone("wte"), alone("wpe"), ...blocks, alone("ln_f.bias")];
}

function contribution(part) {
  return page.attribution.values[chosen.position][page.attribution.parts.indexOf(part)];
}

function shortName(part) {
  if (part.endsWith("attn.c_proj.bias")) return "bias";
  if (part.endsWith("mlp.out")) return "MLP";
  return "head " + part.split(".").at(-1);
}

function drawParts() {
  const { ids, logits: predicted, parts, values } = page.attribution;
  const id = ids[chosen.position];
  const focused = document.activeElement?.dataset?.part;
  const rows = partRows();
  const sums = rows.map((row) => row.parts.reduce((sum, part) => sum + contribution(part), 0));
  const total = sums.reduce((a, b) => a + b, 0);
  const largest = Math.max(...values[chosen.position].map(Math.abs), 1e-9);
  const widest = Math.max(...sums.map(Math.abs), 1e-9);
  find("#parts figcaption").replaceChildren("After ", promptChip(chosen.position), " the model's top prediction is ",
    guessChip(id), ". Its logit is a sum: this is what every part of the model adds (blue) or subtracts (orange).");

  const columns = rows[2].parts.map(shortName);  // of any block
  const cells = rows.map((row) => row.parts.length > 1 ? row.parts.map((part) => partCell(part, largest)) : []);
  const grid = make("table", { class: "grid sums" });  // a new one: the old one's keys go with it
  fillGrid(grid, ["", "sum", "", ...columns], rows.map((row, i) => {
    const sum = make("td", { class: "number" }, fixed(sums[i], 2));
    return [row.name, sum, make("td", {}, signedBar(sums[i] / widest)), ...cells[i]];
  }));
  grid.querySelectorAll("tbody tr").forEach((row, i) =>
    row.classList.toggle("chosen", rows[i].name === `h.${chosen.layer}`));
  find("#parts .scroll").replaceChildren(grid);
  arrowKeys(grid, cells.filter((row) => row.length));
  if (focused) grid.querySelector(`[data-part="${focused}"]`)?.focus();
  const logit = predicted[chosen.position];
  find("#parts .readout").replaceChildren(`The ${parts.length} parts sum to `, make("b", {}, fixed(total, 2)),
    `. The logit of `, guessChip(id), ` is `, make("b", {}, fixed(logit, 2)), ".",
    Math.abs(logit - total) > 0.005 ? ` The rest, ${fixed(logit - total, 2)}, comes from the interventions.` : "");
  legend("parts", "added to the logit",
         [-1, -0.5, 0, 0.5, 1].map((fraction) => [fraction, fixed(fraction * largest, 2)]), -1);
  fillParts();
}

function partCell(part, largest) {
  const value = contribution(part);
  const cell = make("td", { "data-part": part, "aria-label": `${part}: ${fixed(value, 3)}` }, fixed(value, 2));
  shade(cell, value / largest);
  cell.classList.toggle("chosen", part === `h.${chosen.layer}.attn.head.${chosen.head}`);
  setTip(cell, () => [make("code", {}, part), make("div", {}, `adds ${fixed(value, 4)}`)]);
  const [, layer, head] = part.match(/^h\.(\d+)\.(?:attn\.head\.(\d+))?/);
  const target = head !== undefined ? "head" : part.includes("mlp") ? "mlp" : "attention";
  onChoose(cell, () => chooseAndWrite({ layer: Number(layer), head: Number(head ?? chosen.head), target }));
  return cell;
}

function signedBar(fraction) {
  const bar = make("i", { class: fraction < 0 ? "less" : "more" });
  bar.style.left = `${50 + Math.min(fraction, 0) * 50}%`;
  bar.style.width = `${Math.abs(fraction) * 50}%`;
  return make("div", { class: "bar", "aria-hidden": true }, bar);
}

const fillParts = numbers("parts", () =>
  table(["part", ...page.ids.map((_, position) => promptChip(position))], [
    ["predicts", ...page.attribution.ids.map(guessChip)],
    ...page.attribution.parts.map((part, i) => [part, ...page.attribution.values.map((values) => fixed(values[i], 4))]),
    ["logit", ...page.attribution.logits.map((logit) => fixed(logit, 4))]]));
