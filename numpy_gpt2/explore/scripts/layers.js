// Layer by token: the logit lens and the residual stream

function layerName(row) {
  return row === 0 ? "embedding" : `after h.${row - 1}`;
}

/** A grid with a row for the embedding and one for each block, and a column for each token. */
function drawLayers(figure, fillCell) {
  const grid = find(`#${figure} .grid`);
  const cells = Array.from({ length: n_layer + 1 }, (_, row) => page.ids.map((_, position) => {
    const cell = make("td", { "data-position": position });
    fillCell(cell, row, position);
    onChoose(cell, () => chooseAndWrite({ layer: Math.max(row - 1, 0), position, target: "position" }));
    return cell;
  }));
  const heads = page.ids.map((_, position) => promptChip(position));
  fillGrid(grid, ["", ...heads], cells.map((row, i) => [layerName(i), ...row]));
  arrowKeys(grid, cells);
}

function markGrids() {
  for (const figure of ["stream", "lens"]) {
    const grid = find(`#${figure} .grid`);
    grid.querySelectorAll("thead th").forEach((head, position) =>
      head.classList.toggle("chosen", position === chosen.position));
    grid.querySelectorAll("tbody tr").forEach((row, i) => {
      row.classList.toggle("chosen", i === chosen.layer + 1);
      row.querySelectorAll("td").forEach((cell, position) =>
        cell.classList.toggle("chosen", i === chosen.layer + 1 && position === chosen.position));
    });
  }
}

// The residual stream

function drawStream() {
  // A few norms can be fifty times the others: so colours go by rank, and the legend has the norms.
  const inOrder = page.norms.flat().sort((a, b) => a - b);
  const fraction = (norm) => inOrder.indexOf(norm) / (inOrder.length - 1);
  const text = (norm) => norm.toPrecision(3).includes("e") ? norm.toFixed(0) : norm.toPrecision(3);
  drawLayers("stream", (cell, row, position) => {
    const norm = page.norms[row][position];
    const was = before ? `, before: ${text(before.norms[row][position])}` : "";
    cell.append(text(norm));
    shade(cell, fraction(norm));
    cell.setAttribute("aria-label", `${layerName(row)}, ${tokenWords(page.ids[position])}: ${text(norm)}${was}`);
    if (before) setTip(cell, () => [`${layerName(row)}: ${text(norm)}${was}`]);
  });
  const marks = [0, 0.25, 0.5, 0.75, 1].map((rank) => [rank, text(inOrder[Math.round(rank * (inOrder.length - 1))])]);
  legend("stream", "norm, coloured by rank (the ticks are not evenly spaced)", marks);
  fillStream();
}

const fillStream = numbers("stream", () =>
  table(["layer", ...page.ids.map((_, position) => promptChip(position))],
    page.norms.map((row, i) => [layerName(i), ...row.map((norm) => fixed(norm, 3))])));

// The logit lens

function drawLens() {
  const { ids, probabilities } = page.lens;
  drawLayers("lens", (cell, row, position) => {
    const top = ids[row][position][0];
    const was = before?.lens.ids[row][position][0] ?? top;
    cell.append(tokenChip(top));
    if (was !== top) cell.append(make("small", { class: "was" }, "was ", tokenChip(was)));
    shade(cell, probabilityFraction(probabilities[row][position][0]));
    cell.classList.toggle("right", top === page.ids[position + 1]);
    const words = ids[row][position].map((id, i) => `${tokenWords(id)} ${percent(probabilities[row][position][i])}`);
    cell.setAttribute("aria-label", `${layerName(row)}, at ${tokenWords(page.ids[position])}: ${words.join(", ")}`
      + (was !== top ? `; before: ${tokenWords(was)}` : ""));
    setTip(cell, () => lensTip(row, position));
  });
  legend("lens", "probability of the top token, on a square-root scale",
         [0, 0.05, 0.2, 0.5, 1].map((p) => [probabilityFraction(p), String(p)]));
  fillLens();
}

const fillLens = numbers("lens", () => {
  const { ids, probabilities } = page.lens;
  const ranks = ids[0][0].map((_, i) => [`rank ${i + 1}`, "probability"]).flat();
  return table(["layer", "position", "token", ...ranks], ids.flatMap((row, i) =>
    row.map((top, position) => [layerName(i), String(position), promptChip(position),
      ...top.flatMap((id, rank) => [guessChip(id), fixed(probabilities[i][position][rank], 4)])])));
});

function lensTip(row, position) {
  const top = (data) => data.lens.ids[row][position].map((id, i) => make("tr", {}, make("td", {}, tokenChip(id)),
    make("td", { class: "number" }, percent(data.lens.probabilities[row][position][i])),
    make("td", { class: "muted" }, `id ${id}`)));
  return [make("div", { class: "muted" }, `${layerName(row)}, at `, tokenChip(page.ids[position])),
          make("table", {}, ...top(page)),
          ...(before ? [make("div", { class: "muted" }, "before"), make("table", {}, ...top(before))] : [])];
}
