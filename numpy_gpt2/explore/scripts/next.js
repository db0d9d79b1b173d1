// The next token

const N_SHOWN = 12;
const STEPS = {
  temperature: [0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1, 1.1, 1.2, 1.3, 1.5, 1.75, 2, 2.5, 3, 4, 5, 7, 10],
  top_k: [1, 2, 3, 4, 5, 7, 10, 15, 20, 30, 40, 50, 70, 100, 200, 500, 1000, 0].filter((k) => k < n_known),
  top_p: [0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95, 0.99, 1],
};
const PRESETS = {
  "as it was trained": { temperature: 1, top_k: 0, top_p: 1 },
  "generate's default": { temperature: 0.8, top_k: 40, top_p: 1 },
  "greedy": { temperature: 0, top_k: 0, top_p: 1 },
  "cautious": { temperature: 0.3, top_k: 0, top_p: 1 },
  "noise": { temperature: 10, top_k: 0, top_p: 1 },
};

function settingText(name, value) {
  if (name === "temperature") return value === 0 ? "0, greedy" : String(value);
  return value === (name === "top_k" ? 0 : 1) ? "off" : String(value);
}

function drawControls() {
  for (const [name, steps] of Object.entries(STEPS)) {
    const slider = make("input", { type: "range", id: name, min: 0, max: steps.length - 1, step: 1 });
    slider.addEventListener("input", () => set({ [name]: steps[slider.value] }));
    const label = make("label", { for: name }, name.replace("_", "-"));
    find(".controls").append(label, slider, make("output", { for: name }));
  }
  for (const [name, values] of Object.entries(PRESETS)) {
    const button = make("button", { type: "button" }, name);
    button.addEventListener("click", () => set({ top_k: 0, ...values }));
    find(".presets").append(button);
  }
}

function set(change) {
  Object.assign(settings, change);
  for (const [name, steps] of Object.entries(STEPS)) {
    const slider = document.getElementById(name);
    const text = settingText(name, settings[name]);
    slider.value = steps.indexOf(settings[name]);
    slider.setAttribute("aria-valuetext", text);
    find(`output[for=${name}]`).textContent = text;
  }
  drawNext();
}

let known;    // what is known of the next token after the chosen position; with interventions also what was before
let shaped;   // its probabilities with the settings, in the order of known.logits
let trained;  // ... and as trained

function drawNext() {
  known = nextTokens(page, chosen.position);
  shaped = probabilities(settings, known.logits, known.counts);
  trained = softmax(known.logits, known.counts);
  const was = before && nextBefore();
  const marked = was ?? Object.fromEntries(known.best.map((id) => [id, trained[known.ids.indexOf(id)]]));
  const shown = known.best.slice(0, N_SHOWN);
  const now = shown.map((id) => shaped[known.ids.indexOf(id)]);
  const others = Math.max(1 - now.reduce((a, b) => a + b, 0), 0);
  const othersMarked = Math.max(1 - shown.reduce((sum, id) => sum + marked[id], 0), 0);
  const widest = Math.max(others, othersMarked, ...now, ...shown.map((id) => marked[id]));
  const row = (name, probability, mark) => {
    const bar = make("i"), line = make("u");
    bar.style.left = 0;
    bar.style.width = `${100 * probability / widest}%`;
    line.style.left = `${100 * mark / widest}%`;
    return make("tr", probability > 0 ? {} : { class: "out" }, make("td", {}, name),
                make("td", {}, make("div", { class: "bar", "aria-hidden": true }, bar, line)),
                make("td", { class: "number" }, percent(probability)),
                ...(before ? [make("td", { class: "number muted" }, percent(mark))] : []));
  };
  const heads = before ? [make("tr", {}, make("td"), make("td"), make("th", { class: "number", scope: "col" }, "now"),
                               make("th", { class: "number", scope: "col" }, "before"))] : [];
  const n_others = n_known - shown.length;
  find("#next .likely").replaceChildren(...heads, ...shown.map((id, i) => row(nextChip(id), now[i], marked[id])),
    ...(n_others ? [row(`${grouped(n_others)} others`, others, othersMarked)] : []));
  find("#next figcaption").replaceChildren("After ", promptChip(chosen.position), ", the logits at this position become "
    + "probabilities, from which one token is drawn. Move the sliders to see how the settings change them. The upright "
    + (before ? "line shows the same without the interventions." : "line is the model as it was trained."),
    ...(chosen.position < n_tokens - 1 ? [" Underlined: the token that does come next."] : []));
  const left = shaped.reduce((count, probability, i) => count + (probability > 0 ? known.counts[i] : 0), 0);
  find("#next .readout").textContent = left === 1 ? "One token is left: no draw can give another."
    : `${grouped(left)} of ${grouped(n_known)} tokens can be drawn.`;
  fillNext();
}

/** Of each of the most likely tokens, its probability without the interventions, with the same settings. */
function nextBefore() {
  const was = nextTokens(before, chosen.position);
  const wasShaped = probabilities(settings, was.logits, was.counts);
  const lowest = wasShaped[was.logits.length - 1];  // of a token that is too unlikely to be known by its id
  return Object.fromEntries(known.best.map((id) => [id, wasShaped[was.ids.indexOf(id)] ?? lowest]));
}

function nextChip(id) {
  const chip = guessChip(id);
  chip.classList.toggle("right", id === page.ids[chosen.position + 1]);
  return chip;
}

const fillNext = numbers("next", () => {
  const rest = n_known - known.best.length;
  const at = (id) => known.ids.indexOf(id);
  const remainder = (of) => fixed(Math.max(1 - known.best.reduce((sum, id) => sum + of[at(id)], 0), 0), 6);
  const rows = known.best.map((id, i) => [String(i + 1), nextChip(id), String(id), fixed(known.logits[at(id)], 4),
                                          fixed(trained[at(id)], 6), fixed(shaped[at(id)], 6)]);
  if (rest) rows.push([`${grouped(rest)} others`, "", "", "", remainder(trained), remainder(shaped)]);
  return table(["rank", "token", "id", "logit", "as trained", "with these settings"], rows);
});
