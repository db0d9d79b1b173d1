// Tokens

function drawTokens() {
  const strip = find("#tokens .strip");
  const buttons = page.ids.map((id, position) => {
    const button = make("button", { type: "button", "aria-label": `token ${position}: ${tokenWords(id)}, id ${id}` },
                        promptChip(position), make("small", {}, String(id)));
    button.addEventListener("click", () => choose({ position }));
    return button;
  });
  strip.append(...buttons);
  arrowKeys(strip, [buttons]);
  numbers("tokens", () => table(["position", "token", "id", "bytes"], page.ids.map((id, position) =>
    [String(position), promptChip(position), String(id), make("code", {}, hex(bytesOf(id)))])));
}

function markTokens() {
  [...find("#tokens .strip").children].forEach((button, position) =>
    button.setAttribute("aria-pressed", position === chosen.position));
}
