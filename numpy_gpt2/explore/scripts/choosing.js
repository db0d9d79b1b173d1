// Choosing: a head and a token, for every figure; and the address, which holds them

/** Changes what is chosen, and draws again what shows it. */
function choose(change) {
  Object.assign(chosen, change);
  markTokens();
  openBlock();
  markThumbnails();
  drawHead();
  markGrids();
  drawParts();
  drawNext();
  for (const follow of followers) follow();
}

const followers = [];  // what else is to be drawn again after a choice

/** What the user chooses goes into the address, as #head=3.4&token=2; what the user did not choose stays out of it. */
function chooseAndWrite(change) {
  choose(change);
  writeAddress({ ...("layer" in change ? { head: `${chosen.layer}.${chosen.head}` } : {}),
                 ...("position" in change ? { token: change.position } : {}) });
}

const isAlone = window === window.parent;  // in a frame, the address is another page's

function readAddress() {
  return new URLSearchParams(location.hash.slice(1));
}

/** Changes some of the address, in place. A value of null takes its name out. */
function writeAddress(change) {
  if (!isAlone) return;
  history.replaceState(history.state, "", addressWith(change));
}

function addressWith(change) {
  const parts = readAddress();
  for (const [name, value] of Object.entries(change)) {
    if (value === null) parts.delete(name);
    else parts.set(name, value);
  }
  return "#" + parts;
}

/** The choice that the address names, as far as the model and the prompt have it; without a token, the last one. */
function chosenInAddress() {
  const parts = readAddress();
  const [, layer, head] = (parts.get("head") ?? "").match(/^(\d+)\.(\d+)$/) ?? [];
  const position = (parts.get("token") ?? "").match(/^\d+$/)?.[0];
  return { ...(layer < n_layer && head < n_head ? { layer: Number(layer), head: Number(head) } : {}),
           position: position < n_tokens ? Number(position) : n_tokens - 1 };
}

addEventListener("hashchange", () => choose(chosenInAddress()));
