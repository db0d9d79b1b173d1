// The prompt: typing another, and the history of what was shown

/** What is shown: the prompt, as text or, where it was written by the model, as ids; and the interventions. */
let state = { prompt: firstData.server.prompt, interventions: [] };
const earlier = [];  // prompts, the newest last
let step = 0;        // of the history, and the last one
let lastStep = 0;

/** Shows the page of another state; the state becomes a step of the browser's history. */
async function go(next, { isNew = true } = {}) {
  const answer = await working((onLine) => ask("/run", next, onLine));
  if (!answer) return false;
  state = next;
  const isOther = String(answer.page.ids) !== String(page.ids);
  show(answer.page, answer.before);
  find("#code pre").textContent = answer.code;
  if (!isNew) choose(chosenInAddress());
  if (isNew) lastStep = step += 1;
  const write = isNew ? "pushState" : "replaceState";
  const interventions = state.interventions.length ? JSON.stringify(state.interventions) : null;
  history[write]({ state, step }, "",
                 addressWith({ prompt: promptText(), interventions, ...(isNew && isOther ? { token: null } : {}) }));
  tellPrompt();
  return true;
}

/** An empty prompt is <|endoftext|> to the model, but not that text. */
function promptText() {
  return state.prompt ?? page.prompt;
}

function tellPrompt() {
  const text = promptText();
  find("#ask-prompt").value = text;
  if (!earlier.includes(text)) earlier.push(text);
  find("#earlier").replaceChildren(...earlier.map((prompt) =>
    make("option", { value: prompt }, prompt.slice(0, 60) || page.prompt)));
  find("#earlier").value = text;
  find("#back").disabled = step === 0;
  find("#forth").disabled = step === lastStep;
}

/** Another prompt keeps the interventions, but for those on positions and values of this one. */
function goToPrompt(prompt) {
  const kept = state.interventions.filter(({ kind, positions }) => kind !== "from" && !positions);
  const n_lost = state.interventions.length - kept.length;
  return go({ prompt, interventions: kept }).then((isShown) => {
    if (isShown && n_lost) tellProblem(`Interventions that belong to the other prompt's tokens were removed: ${n_lost}.`);
  });
}

function listenToPrompt() {
  const field = find("#ask-prompt");
  find("#ask").addEventListener("submit", (event) => {
    event.preventDefault();
    goToPrompt(field.value);
  });
  field.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    find("#ask").requestSubmit();
  });
  countTokens(field, find("#ask .count-of-tokens"));
  find("#back").addEventListener("click", () => history.back());
  find("#forth").addEventListener("click", () => history.forward());
  find("#earlier").addEventListener("change", ({ target }) => goToPrompt(target.value));
  addEventListener("popstate", returnTo);
}

/** A step of the history; or an address that the user has changed, which is none. */
function returnTo({ state: entry }) {
  if (entry) step = entry.step;
  lastStep = Math.max(step, lastStep);
  return go(entry?.state ?? stateInAddress(), { isNew: false });
}

/** A bookmark's prompt and interventions are in its address, after the #, which browsers keep to themselves. */
function stateInAddress() {
  const parts = readAddress();
  let interventions = parts.get("interventions");
  try {
    interventions = JSON.parse(interventions);
  } catch {}  // the server refuses the text, as it refuses any other nonsense
  return { prompt: parts.get("prompt") ?? promptText(), interventions: interventions ?? [] };
}
