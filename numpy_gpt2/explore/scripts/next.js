// The next token

const N_SHOWN = 12;
const STEPS = {
  temperature: [0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1, 1.1, 1.2, 1.3, 1.5, 1.75, 2, 2.5, 3, 4, 5, 7, 10],
  top_k: [1, 2, 3, 4, 5, 7, 10, 15, 20, 30, 40, 50, 70, 100, 200, 500, 1000, 0].filter((k) => k < logits.length),
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

const trained = softmax(logits);
let shaped = trained;

function drawNext() {
  shaped = probabilities(settings);
  const best = page.likeliest.slice(0, N_SHOWN);
  const others = 1 - best.reduce((sum, id) => sum + shaped[id], 0);
  const othersTrained = 1 - best.reduce((sum, id) => sum + trained[id], 0);
  const widest = Math.max(others, othersTrained, ...best.map((id) => Math.max(shaped[id], trained[id])));
  const row = (name, probability, before) => {
    const bar = make("i"), line = make("u");
    bar.style.left = 0;
    bar.style.width = `${100 * probability / widest}%`;
    line.style.left = `${100 * before / widest}%`;
    return make("tr", probability > 0 ? {} : { class: "out" }, make("td", {}, name),
                make("td", {}, make("div", { class: "bar", "aria-hidden": true }, bar, line)),
                make("td", { class: "number" }, percent(probability)));
  };
  const rest = logits.length - best.length;
  find("#next .likely").replaceChildren(...best.map((id) => row(guessChip(id), shaped[id], trained[id])),
    ...(rest ? [row(`${grouped(rest)} others`, Math.max(others, 0), othersTrained)] : []));
  const left = shaped.reduce((count, probability) => count + (probability > 0), 0);
  find("#next .readout").textContent = left === 1 ? "One token is left: no draw can give another."
    : `${grouped(left)} of ${grouped(logits.length)} tokens can be drawn.`;
  fillNext();
}

const fillNext = numbers("next", () => {
  const named = page.likeliest;
  const rest = logits.length - named.length;
  const share = (of) => fixed(Math.max(1 - named.reduce((sum, id) => sum + of[id], 0), 0), 6);
  const rows = named.map((id, i) =>
    [String(i + 1), guessChip(id), String(id), fixed(logits[id], 4), fixed(trained[id], 6), fixed(shaped[id], 6)]);
  if (rest) rows.push([`${grouped(rest)} others`, "", "", "", share(trained), share(shaped)]);
  return table(["rank", "token", "id", "logit", "as trained", "with these settings"], rows);
});
