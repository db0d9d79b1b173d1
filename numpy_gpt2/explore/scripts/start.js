// The page

/** The head that adds most to the logit of the predicted token: a good one to look at first. */
function mostTellingHead() {
  const { parts, values } = page.attribution;
  const heads = parts.map((part, i) => [part.match(/^h\.(\d+)\.attn\.head\.(\d+)$/), values[n_tokens - 1][i]])
    .filter(([match]) => match);
  const [best] = heads.reduce((a, b) => b[1] > a[1] ? b : a);
  return { layer: Number(best[1]), head: Number(best[2]) };
}

function drawHeader() {
  document.title = `Inside ${page.model}`;
  find("#title").textContent = `Inside ${page.model}`;
  const last = nextTokens(page, n_tokens - 1);
  const guess = last.best[0];
  const probability = softmax(last.logits, last.counts)[guess];
  find("#lead").replaceChildren(`One forward pass through a GPT-2 of ${grouped(page.n_parameters)} parameters, in `
    + `${n_layer} blocks of ${n_head} heads. It reads ${n_tokens} ${n_tokens === 1 ? "token" : "tokens"} and predicts `,
    guessChip(guess), ` next, with a probability of ${percent(probability)}.`);
  find("#prompt").textContent = page.prompt;
}

/** Draws everything for the data of a pass, and, with interventions, of the same pass without them. */
function show(data, untouched = null) {
  const isOther = String(data.ids) !== String(page.ids);
  setData(data, untouched);
  drawHeader();
  drawTokens();
  drawModel();
  drawAxes();
  drawThumbnails();
  drawStream();
  drawLens();
  choose(isOther ? { position: n_tokens - 1 } : {});  // a new prompt starts at its last token
  for (const follow of onShow) follow();
}

const onShow = [];  // what else is to be drawn for other data

drawControls();
listenOnMap();
legend("attention", "attention weight, on a square-root scale",
       [0, 0.05, 0.2, 0.5, 1].map((p) => [probabilityFraction(p), String(p)]));
setData(firstData);
Object.assign(chosen, mostTellingHead(), chosenInAddress());
show(firstData);
set({});
