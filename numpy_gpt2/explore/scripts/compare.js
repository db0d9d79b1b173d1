// Comparing two prompts: what each restored residual stream brings back of the difference

async function compare(method) {
  const optional = (name, key) => find(name).value === "" ? {} : { [key]: find(name).value };
  const asked = { prompt: find("#clean").value, other: find("#corrupted").value, method,
                  ...optional("#answer", "target"), ...optional("#foil", "foil") };
  const answer = await working((onLine) => ask("/compare", asked, onLine), tellFailure);
  if (!answer) return;
  learnNames(answer.names);
  drawComparison(answer);
}

/** What stood there answered other questions. */
function tellFailure(sentence) {
  find("#compare .problem").textContent = sentence;
  if (!sentence) return;
  for (const part of ["readout", "results", "legend"]) find(`#compare .${part}`).replaceChildren();
}

function drawComparison(answer) {
  const { method, target, foil, clean, corrupted } = answer;
  const metric = ["logit of ", guessChip(target), ...(foil === null ? [] : [" minus logit of ", guessChip(foil)])];
  find("#compare .readout").replaceChildren(...metric, `: clean `, make("b", {}, fixed(clean, 3)), ", corrupted ",
    make("b", {}, fixed(corrupted, 3)), answer.fractions ? "." : ". They are equal: there is nothing to bring back.");
  const question = JSON.stringify([answer.ids, answer.other_ids, target, foil]);
  const results = find("#compare .results");
  for (const box of [...results.children]) {
    if (box.dataset.question !== question || box.dataset.method === method) box.remove();
  }
  results.append(comparison(answer, question));
  legend("compare", "fraction of the difference that is brought back",
         [-1, -0.5, 0, 0.5, 1].map((fraction) => [fraction, String(fraction)]), -1);
}

function comparison({ method, ids, other_ids, values, fractions, code }, question) {
  const title = method === "patching" ? "Patched, one by one" : "Estimated by attribution";
  const grid = make("table", { class: "grid", "aria-label": title });
  const cells = values.map((row, layer) => row.map((value, position) => {
    const fraction = fractions ? fractions[layer][position] : 0;
    const name = layer < n_layer ? `before h.${layer}` : `after h.${n_layer - 1}`;
    const cell = make("td", { "aria-label": `${name}, position ${position}: ${fixed(fraction, 3)}` }, fixed(fraction, 2));
    shade(cell, fraction);
    setTip(cell, () => [`${name}, position ${position}: ${fixed(fraction, 3)} of the difference, `
                        + `${fixed(value, 4)} in logits`]);
    return cell;
  }));
  const heads = ids.map((id, i) => make("span", {}, guessChip(id),
    ...(id === other_ids[i] ? [] : [make("small", { class: "was" }, "corrupted ", guessChip(other_ids[i]))])));
  fillGrid(grid, ["", ...heads], cells.map((row, layer) =>
    [layer < n_layer ? `before h.${layer}` : `after h.${n_layer - 1}`, ...row]));
  arrowKeys(grid, cells);
  const asCode = make("details", {}, make("summary", {}, "As code"),
                      make("pre", { tabindex: 0, "aria-label": `Python: ${title}` }, code));
  return make("div", { "data-method": method, "data-question": question }, make("h3", {}, title),
              make("div", { class: "scroll" }, grid), asCode);
}

let promptOfComparison = "";

/** The clean prompt is the page's, unless another was typed. */
function followWithComparison() {
  const field = find("#clean");
  if (field.value === promptOfComparison) field.value = promptText();
  promptOfComparison = promptText();
}

function listenToComparison() {
  find("#compare form").addEventListener("submit", (event) => {
    event.preventDefault();
    compare(event.submitter?.value ?? "patching");
  });
  for (const name of ["#clean", "#corrupted"]) countTokens(find(name), find(`${name} + .count-of-tokens`));
}
