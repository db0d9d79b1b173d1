// The page

/** The head that adds most to what the model says next: a good one to look at first. */
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
  const guess = page.likeliest[0];
  find("#lead").append(`One pass through a GPT-2 of ${grouped(page.n_parameters)} parameters, in ${n_layer} blocks of `,
    `${n_head} heads. It reads ${n_tokens} ${n_tokens === 1 ? "token" : "tokens"} and finds that `, guessChip(guess),
    ` comes next, with a probability of ${percent(trained[guess])}.`);
  find("#prompt").textContent = page.prompt;
}

drawHeader();
drawTokens();
drawModel();
drawThumbnails();
drawAxes();
legend("attention", "share of attention", [0, 0.05, 0.2, 0.5, 1].map((p) => [probabilityShare(p), String(p)]));
drawStream();
drawLens();
drawControls();
choose(mostTellingHead());
set({});
