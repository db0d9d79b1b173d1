// Generation: tokens one by one, each with its alternatives

const written = [];   // {token, probability, alternatives: [[id, probability, drawn], ...]}
let writer = null;    // what stops the writing

/** Writes n tokens after what is written. */
async function writeOn(n) {
  writer?.abort();
  const own = writer = new AbortController();
  find("#write .stop").disabled = false;
  const seed = find("#seed").value;
  const asked = { ids: page.ids, written: written.map(({ token }) => token), interventions: state.interventions, n,
                  ...settings, ...(seed === "" ? {} : { seed: Number(seed) }) };
  const answer = await working((onLine) => ask("/next", asked, (line) => {
    onLine(line);
    if (!("token" in line) || own !== writer) return;
    learnNames(line.names);
    written.push(line);
    drawWritten();
  }, own.signal));
  if (own !== writer) return;
  writer = null;
  find("#write .stop").disabled = true;
  if (answer?.finish_reason === "eos") tellWriting("The model has ended its text.");
}

function writtenIds() {
  return [...page.ids, ...written.map(({ token }) => token)];
}

function drawWritten() {
  const buttons = written.map(({ token, probability }, i) => {
    const likely = Math.max(probability, 1e-7);  // 0 is only rounded to it: the token was drawn
    const button = make("button", { type: "button", "aria-label":
      `written token ${i}: ${tokenWords(token)}, probability ${percent(likely)}` },
      guessChip(token), make("small", {}, percent(likely)));
    button.addEventListener("click", () => drawAlternatives(i));
    return button;
  });
  find("#write .strip").replaceChildren(...page.ids.map((_, position) => promptChip(position)), ...buttons);
  if (buttons.length) arrowKeys(find("#write .strip"), [buttons]);
  tellWriting();
}

function tellWriting(end = "") {
  const changed = state.interventions.length ? " The interventions apply: zeros and factors to every token, means and "
    + "values from another prompt to the prompt's tokens." : "";
  find("#write .readout").textContent = (written.length ? `${written.length} written. ${end}` : "") + changed;
}

/** What else could have come in place of a written token. */
function drawAlternatives(i) {
  const { token, alternatives } = written[i];
  const rows = alternatives.map(([id, probability, drawn]) => {
    const take = make("button", { type: "button", "aria-label": `take ${tokenWords(id)}` }, "take");
    take.addEventListener("click", () => takeInstead(i, [id, probability], alternatives));
    return make("tr", id === token ? { class: "chosen" } : {}, make("td", {}, guessChip(id)),
                make("td", { class: "number" }, percent(probability)), make("td", { class: "number" }, percent(drawn)),
                make("td", {}, id === token ? "written" : take));
  });
  const heads = ["token", "probability", "with these settings"].map((name) => make("th", { scope: "col" }, name));
  const box = find("#write .alternatives");
  box.replaceChildren(make("table", { class: "numbers" }, make("thead", {}, make("tr", {}, ...heads, make("td"))),
                           make("tbody", {}, ...rows)));
  box.hidden = false;
  [...find("#write .strip").querySelectorAll("button")].forEach((button, other) =>
    button.setAttribute("aria-pressed", other === i));
}

/** Another token in the place of a written one; the writing goes on from there. */
function takeInstead(i, [token, probability], alternatives) {
  const n_left = written.length - i - 1;
  written.splice(i, written.length, { token, probability, alternatives });
  drawWritten();
  drawAlternatives(i);
  find("#write .strip").querySelectorAll("button")[i].focus();
  writeOn(Math.max(n_left, 1));
}

function startAgain() {
  writer?.abort();
  written.length = 0;
  find("#write .alternatives").hidden = true;
  drawWritten();
}

let passOfWriting = "";

/** Another prompt, or other interventions, end what was written. */
function followPrompt() {
  const pass = JSON.stringify([page.ids, state.interventions]);
  const isSame = pass === passOfWriting;
  passOfWriting = pass;
  if (isSame) drawWritten();
  else startAgain();
}

function listenToWriting() {
  for (const button of document.querySelectorAll("#write [data-n]")) {
    button.addEventListener("click", () => writeOn(Number(button.dataset.n)));
  }
  find("#write .stop").addEventListener("click", () => writer?.abort());
  find("#write .clear").addEventListener("click", startAgain);
  find("#write .read").addEventListener("click", () => go({ ids: writtenIds(), interventions: state.interventions }));
}
