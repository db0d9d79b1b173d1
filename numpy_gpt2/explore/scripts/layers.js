// Layer by token: the lens and the residual stream

function layerName(row) {
  return row === 0 ? "embedding" : `after h.${row - 1}`;
}

/** A grid with a row for the embedding and one for each block, and a column for each token. */
function drawLayers(figure, fillCell) {
  const grid = find(`#${figure} .grid`);
  const cells = Array.from({ length: n_layer + 1 }, (_, row) => page.ids.map((_, position) => {
    const cell = make("td", { "data-position": position });
    fillCell(cell, row, position);
    onChoose(cell, () => choose({ layer: Math.max(row - 1, 0), position }));
    return cell;
  }));
  const heads = page.ids.map((_, position) => promptChip(position));
  fillGrid(grid, ["", ...heads], cells.map((row, i) => [layerName(i), ...row]));
  arrowKeys(grid, cells);
}

function markGrids() {
  for (const figure of ["stream", "lens"]) {
    const grid = find(`#${figure} .grid`);
    grid.querySelectorAll("thead th").forEach((head, column) =>
      head.classList.toggle("chosen", column === chosen.position + 1));
    grid.querySelectorAll("tbody tr").forEach((row, i) => {
      row.classList.toggle("chosen", i === chosen.layer + 1);
      row.querySelectorAll("td").forEach((cell, position) =>
        cell.classList.toggle("chosen", i === chosen.layer + 1 && position === chosen.position));
    });
  }
}

function drawStream() {
  // A few lengths can be fifty times the others: so colours go by rank, and the legend has the lengths.
  const inOrder = page.norms.flat().sort((a, b) => a - b);
  const share = (norm) => inOrder.indexOf(norm) / (inOrder.length - 1);
  const text = (norm) => norm.toPrecision(3).includes("e") ? norm.toFixed(0) : norm.toPrecision(3);
  drawLayers("stream", (cell, row, position) => {
    const norm = page.norms[row][position];
    cell.append(text(norm));
    shade(cell, share(norm));
    cell.setAttribute("aria-label", `${layerName(row)}, ${tokenWords(page.ids[position])}: ${text(norm)}`);
  });
  const marks = [0, 0.25, 0.5, 0.75, 1].map((rank) => [rank, text(inOrder[Math.round(rank * (inOrder.length - 1))])]);
  legend("stream", "length, from the shortest to the longest", marks);
  numbers("stream", () => table(["layer", ...page.ids.map((_, position) => promptChip(position))],
    page.norms.map((row, i) => [layerName(i), ...row.map((norm) => fixed(norm, 3))])));
}

function drawLens() {
  const { ids, probabilities } = page.lens;
  drawLayers("lens", (cell, row, position) => {
    const best = ids[row][position][0];
    cell.append(tokenChip(best));
    shade(cell, probabilityShare(probabilities[row][position][0]));
    cell.classList.toggle("right", best === page.ids[position + 1]);
    const words = ids[row][position].map((id, i) => `${tokenWords(id)} ${percent(probabilities[row][position][i])}`);
    cell.setAttribute("aria-label", `${layerName(row)}, at ${tokenWords(page.ids[position])}: ${words.join(", ")}`);
    setTip(cell, () => lensTip(row, position));
  });
  legend("lens", "probability of the best guess", [0, 0.05, 0.2, 0.5, 1].map((p) => [probabilityShare(p), String(p)]));
  const ranks = ids[0][0].map((_, i) => [`guess ${i + 1}`, "probability"]).flat();
  numbers("lens", () => table(["layer", "position", "token", ...ranks], ids.flatMap((row, i) =>
    row.map((guesses, position) => [layerName(i), String(position), promptChip(position),
      ...guesses.flatMap((id, rank) => [guessChip(id), fixed(probabilities[i][position][rank], 4)])]))));
}

function lensTip(row, position) {
  const rows = page.lens.ids[row][position].map((id, i) => make("tr", {}, make("td", {}, tokenChip(id)),
    make("td", { class: "number" }, percent(page.lens.probabilities[row][position][i])),
    make("td", { class: "muted" }, `id ${id}`)));
  return [make("div", { class: "muted" }, `${layerName(row)}, at `, tokenChip(page.ids[position])),
          make("table", {}, ...rows)];
}
