// The engine behind a served page: requests, their progress, and what goes wrong

const tab = crypto.randomUUID();  // of this page's requests, a newer one replaces one that waits or works

class Refusal extends Error {}    // a sentence to show; empty where the request was only replaced

/** Asks the server, and returns its answer. onLine is given each line before it. Throws a Refusal. */
async function ask(path, body, onLine = () => {}, signal = undefined) {
  const request = { method: "POST", headers: { "Content-Type": "application/json" }, signal,
                    body: JSON.stringify({ page: tab, ...body }) };
  const response = await reached(fetch(path, request));
  if (!response.ok) throw refusal(await response.json());
  for await (const line of linesOf(response)) {
    if ("done" in line) return line.done;
    if ("error" in line) throw refusal(line);
    onLine(line);
  }
  throw new Refusal("The server ended before it had answered. Start it again.");
}

function refusal({ error, replaced }) {
  return new Refusal(replaced ? "" : error[0].toUpperCase() + error.slice(1));
}

async function* linesOf(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  while (true) {
    const { value, done } = await reached(reader.read());
    if (done) return;
    const lines = (rest + value).split("\n");
    rest = lines.pop();
    for (const line of lines) yield JSON.parse(line);
  }
}

/** What the network answers; a Refusal where it does not. */
function reached(answer) {
  return answer.catch((error) => {
    if (error.name === "AbortError") throw error;
    throw new Refusal("The server cannot be reached. Start it again, and load this page anew.");
  });
}

/** Does work that asks the server, and shows its progress, or tells the sentence of a refusal. Then returns undefined. */
async function working(work, tell = tellProblem) {
  const progress = find("#bar progress");
  const tellProgress = (line) => {
    if (!("progress" in line)) return;
    progress.hidden = false;
    progress.value = line.progress;
  };
  tell("");
  try {
    return await work(tellProgress);
  } catch (error) {
    if (error.name === "AbortError") return undefined;
    if (!(error instanceof Refusal)) throw error;
    tell(error.message);
    return undefined;
  } finally {
    progress.hidden = true;
  }
}

function tellProblem(sentence) {
  find("#bar .problem").textContent = sentence;
}

/** Names of tokens that are not in the data of the pass. */
function learnNames(names) {
  Object.assign(otherNames, names);
  Object.assign(page.names, names);
}

/** Tells beside a field how many tokens its text has, while it is typed. */
function countTokens(field, label) {
  let timer;
  const count = async () => {
    try {
      const { ids } = await ask("/tokens", { prompt: field.value });
      label.textContent = `${ids.length} ${ids.length === 1 ? "token" : "tokens"}`;
    } catch (error) {
      if (!(error instanceof Refusal)) throw error;
      label.textContent = error.message;
    }
  };
  field.addEventListener("input", () => {
    clearTimeout(timer);
    timer = setTimeout(count, 250);  // milliseconds
  });
}
