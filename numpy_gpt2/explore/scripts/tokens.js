// Tokens

const tokensStrip = find("#tokens .strip");

function drawTokens() {
  const buttons = page.ids.map((id, position) => {
    const button = make("button", { type: "button", "aria-label": `token ${position}: ${tokenWords(id)}, id ${id}` },
                        promptChip(position), make("small", {}, String(id)));
    button.addEventListener("click", () => chooseAndWrite({ position, target: "position" }));
    return button;
  });
  tokensStrip.replaceChildren(...buttons);
  arrowKeys(tokensStrip, [buttons]);
  find("#tokens .readout").textContent = n_tokens === 1 ? "" : `Loss: ${lossText(meanLoss(page), before && meanLoss(before))}`
    + " nats per token.";
  fillTokens();
}

const fillTokens = numbers("tokens", () => {
  const heads = ["position", "token", "id", "bytes", "loss", ...(before ? ["loss before"] : [])];
  const loss = (data, position) => position ? fixed(data.losses[position - 1], 4) : "";
  return table(heads, page.ids.map((id, position) => [
    String(position), promptChip(position), String(id), make("code", {}, hex(bytesOf(id))), loss(page, position),
    ...(before ? [loss(before, position)] : [])]));
});

function meanLoss({ losses }) {
  return losses.reduce((sum, loss) => sum + loss, 0) / losses.length;
}

function lossText(now, was) {
  return fixed(now, 3) + (was === null ? "" : ` (before: ${fixed(was, 3)})`);
}

function markTokens() {
  [...tokensStrip.children].forEach((button, position) =>
    button.setAttribute("aria-pressed", position === chosen.position));
}
