// Pointing: a token is lit wherever it appears, and a tooltip tells more

const tips = new WeakMap();

function setTip(element, content) {
  element.classList.add("has-tip");
  tips.set(element, content);
}

/** Lights the prompt's tokens at these positions, and guesses that are this token. */
function light(positions, id) {
  for (const token of document.querySelectorAll(".lit")) token.classList.remove("lit");
  const selectors = positions.map((position) => `.token[data-position="${position}"]`);
  if (id !== undefined) selectors.push(`.token[data-id="${id}"]:not([data-position])`);
  if (!selectors.length) return;
  for (const token of document.querySelectorAll(selectors.join())) token.classList.add("lit");
}

/** One cell's height away from what it is about, so that the neighbouring cells stay free. */
function showTip(content, box) {
  const tip = find("#tip");
  tip.replaceChildren(...content);
  tip.hidden = false;
  const gap = Math.min(box.height, 60) + 8;
  const left = Math.min(box.left, innerWidth - tip.offsetWidth - 8);
  const below = box.bottom + gap;
  const top = below + tip.offsetHeight < innerHeight ? below : box.top - tip.offsetHeight - gap;
  tip.style.left = `${Math.max(left, 8)}px`;
  tip.style.top = `${Math.max(top, 8)}px`;
}

function hideTip() {
  find("#tip").hidden = true;
  light([]);
}

function pointAt({ target }) {
  if (!(target instanceof Element) || target.closest(".map canvas")) return;
  const token = target.closest("[data-position]") ?? target.querySelector(":scope > [data-position]");
  const guess = target.closest("[data-id]") ?? target.querySelector(":scope > [data-id]");
  hideTip();
  light(token ? [token.dataset.position] : [], guess?.dataset.id);
  const tipped = target.closest(".has-tip") ?? target.querySelector(":scope > .has-tip");
  if (tipped) showTip(tips.get(tipped)(), tipped.getBoundingClientRect());
}

document.addEventListener("pointerover", pointAt);
document.addEventListener("focusin", pointAt);
document.addEventListener("focusout", hideTip);
document.addEventListener("keydown", (event) => event.key === "Escape" && hideTip());
document.documentElement.addEventListener("pointerleave", hideTip);
