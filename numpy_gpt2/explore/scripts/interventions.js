// Interventions: what is chosen can be changed in the pass, and what follows is shown beside what was

/** What can be changed at the choice: each part as a request names it. */
function targets() {
  const { layer, head, position } = chosen;
  return {
    head: { stage: "attn.z", layer, heads: [head] },
    attention: { stage: "attn.out", layer },
    mlp: { stage: "mlp.out", layer },
    position: { stage: "resid_pre", layer, positions: [position] },
  };
}

function partName({ stage, layer, heads, positions }) {
  if (stage === "attn.z" && heads?.length === 1 && !positions) return `head ${layer}.${heads}`;
  if (stage === "attn.out" && !positions) return `attention of h.${layer}`;
  if (stage === "mlp.out" && !positions) return `MLP of h.${layer}`;
  if (stage === "resid_pre" && positions?.length === 1) {
    return `position ${positions}, ${tokenWords(page.ids[positions[0]])}, before h.${layer}`;
  }
  // From a link: any other part that the server can change.
  const block = layer == null ? "" : ` of h.${layer}`;
  const only = (name, indices) => indices ? `, ${name} ${indices.join(", ")}` : "";
  return stage + block + only("heads", heads) + only("positions", positions);
}

function interventionName(intervention) {
  const { kind, factor, prompt, ids } = intervention;
  const how = { zero: "= 0", mean: "= mean", scale: `× ${factor}`, from: `from ${JSON.stringify(prompt ?? ids)}` }[kind];
  return `${partName(intervention)} ${how}`;
}

function drawTargets() {
  const options = Object.entries(targets()).map(([name, part]) => make("option", { value: name }, partName(part)));
  find("#target").replaceChildren(...options);
  find("#target").value = chosen.target ?? "head";
}

function drawFields() {
  for (const field of document.querySelectorAll("#bar .field")) {
    field.hidden = field.dataset.kind !== find("#kind").value;
    for (const input of field.querySelectorAll("input")) input.disabled = field.hidden;
  }
}

function asked() {
  const kind = find("#kind").value;
  const part = { kind, ...targets()[find("#target").value] };
  if (kind === "scale") return { ...part, factor: Number(find("#factor").value) };
  return kind === "from" ? { ...part, prompt: find("#source").value } : part;
}

function withInterventions(interventions) {
  return go({ ...state, interventions });
}

/** The button that was pressed goes with its chip: the keyboard goes on from the next chip, or from the form. */
async function remove(left, i) {
  if (!await withInterventions(left)) return;
  const buttons = find("#bar .chips").querySelectorAll("button");
  (buttons[Math.min(i, left.length - 1)] ?? find("#target")).focus();
}

function drawChips() {
  const { interventions } = state;
  const chips = interventions.map((intervention, i) => {
    const name = interventionName(intervention);
    const button = make("button", { type: "button", "aria-label": `remove ${name}` }, "×");
    button.addEventListener("click", () => remove(interventions.filter((_, other) => other !== i), i));
    return make("li", {}, name, button);
  });
  if (interventions.length > 1) {
    const button = make("button", { type: "button" }, "remove all");
    button.addEventListener("click", () => remove([], 0));
    chips.push(make("li", { class: "all" }, button));
  }
  find("#bar .chips").replaceChildren(...chips);
}

// What changed

function topToken(data) {
  const { ids, probabilities } = data.lens;
  return [guessChip(ids[n_layer][chosen.position][0]), ` ${percent(probabilities[n_layer][chosen.position][0])}`];
}

function drawChanges() {
  find("#changed-section").hidden = !before;
  find("#bar .summary").replaceChildren();
  if (!before) return;
  const { position } = chosen;
  const next = page.ids[position + 1];
  const losses = (data) => fixed(data.losses[position], 4);
  const rows = [["top token after ", promptChip(position), topToken(before), topToken(page)]];
  if (next !== undefined) rows.push(["loss of the next token, ", promptChip(position + 1), losses(before), losses(page)]);
  if (n_tokens > 1) rows.push(["mean loss, nats per token", "", fixed(meanLoss(before), 4), fixed(meanLoss(page), 4)]);
  const others = page.lens.ids.map((row, layer) => row.map((top, i) => top[0] !== before.lens.ids[layer][i][0]));
  const n_others = others.flat().filter((isOther) => isOther).length;
  rows.push(["cells of the logit lens with another top token", "", "", `${n_others} of ${others.flat().length}`]);
  const cells = rows.map(([name, chip, was, now]) => make("tr", {}, make("th", { scope: "row" }, name, chip),
    make("td", { class: "number" }, ...[was].flat()), make("td", { class: "number" }, ...[now].flat())));
  const head = make("tr", {}, make("td"), ...["before", "now"].map((name) => make("th", { scope: "col" }, name)));
  find("#changed table").replaceChildren(make("thead", {}, head), make("tbody", {}, ...cells));
  find("#changed .at-work").textContent = `Interventions: ${state.interventions.map(interventionName).join("; ")}.`;
  find("#bar .summary").append("After ", promptChip(position), ": ", ...topToken(before), " → ", ...topToken(page),
    ...(n_tokens > 1 ? [`. Loss ${fixed(meanLoss(before), 3)} → ${fixed(meanLoss(page), 3)}.`] : []));
}

function listenToInterventions() {
  find("#bar form").addEventListener("submit", (event) => {
    event.preventDefault();
    const added = asked();
    const isThere = state.interventions.some((each) => JSON.stringify(each) === JSON.stringify(added));
    if (isThere) tellProblem(`${interventionName(added)} is at work already.`);
    else withInterventions([...state.interventions, added]);
  });
  find("#target").addEventListener("change", ({ target }) => { chosen.target = target.value; });
  find("#kind").addEventListener("change", drawFields);
  countTokens(find("#source"), find("#bar .count-of-tokens"));
  find("#code button").addEventListener("click", async ({ target }) => {
    await navigator.clipboard.writeText(find("#code pre").textContent);
    target.textContent = "Copied";
    setTimeout(() => { target.textContent = "Copy"; }, 2000);  // milliseconds
  });
}
