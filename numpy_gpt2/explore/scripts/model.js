// The model

function countOf(stage) {
  return stage.parameters.reduce((sum, [, shape]) => sum + shape.reduce((a, b) => a * b, 1), 0);
}

function isInside(stage) {
  return stage.name.startsWith("h.i.");
}

function drawModel() {
  const inside = page.stages.filter(isInside);
  const ofBlock = inside.reduce((sum, stage) => sum + countOf(stage), 0);
  const outer = (name) => page.stages.find((stage) => stage.name === name);
  const largest = Math.max(ofBlock, ...page.stages.map(countOf));
  const box = (name, count, meaning, tag = "div") => {
    const bar = make("span", { class: "count", "aria-hidden": true });
    bar.style.width = `${100 * count / largest}%`;
    const text = make("span", { class: "number muted" }, count ? grouped(count) : "no parameters");
    const body = make(tag, { class: "box" }, make("b", {}, name), text, bar);
    setTip(body, () => [make("div", {}, meaning)]);
    return body;
  };
  const item = (name, title = name) => make("li", {}, box(title, countOf(outer(name)), outer(name).sentence));
  const blocks = Array.from({ length: n_layer }, (_, layer) => {
    const button = box(`h.${layer}`, ofBlock, "Attention, then the MLP: both add to the residual stream.", "button");
    button.type = "button";
    button.addEventListener("click", () => {
      const isOpen = chosen.layer !== layer || !chosen.isOpen;  // choosing the open block once more closes it
      chooseAndWrite({ layer, isOpen, target: "attention" });
    });
    return make("li", { "data-layer": layer }, button);
  });
  const unembedding = tie_word_embeddings ? "lm_head is wte" : "lm_head";
  find("#model .column").replaceChildren(item("wte"), item("wpe"), ...blocks, item("ln_f"), item("logits", unembedding));
  const buttons = blocks.map((block) => block.firstChild);
  arrowKeys(find("#model .column"), buttons.map((button) => [button]));
  fillModel();
}

const fillModel = numbers("model", () =>
  table(["array", "shape", "parameters", "equation", "what it is"], page.stages.map((stage) =>
    [make("code", {}, stage.name), `[${stage.shape.join(", ")}]`, grouped(countOf(stage)),
     make("code", {}, stage.equation), stage.sentence])));

/** Shows what the chosen block is made of. */
function openBlock() {
  for (const item of document.querySelectorAll("#model [data-layer]")) {
    const isChosen = Number(item.dataset.layer) === chosen.layer;
    const isOpen = isChosen && chosen.isOpen;
    item.classList.toggle("chosen", isChosen);
    item.firstChild.setAttribute("aria-expanded", isOpen);
    item.querySelector(".inside")?.remove();
    if (isOpen) item.append(make("ul", { class: "inside" }, ...page.stages.filter(isInside).map(stageItem)));
  }
}

function stageItem(stage) {
  const item = make("li", {}, make("div", { class: "row" }, make("b", {}, stage.name.replace("h.i.", "")),
                                   make("span", { class: "muted small" }, `[${stage.shape.join(", ")}]`)));
  if (stage.parameters.length) {
    const shapes = stage.parameters.map(([name, shape]) => `${name.split(".").at(-1)} ${shape.join(" × ")}`);
    const part = stage.parameters[0][0].replace(/^h\.i\.(attn\.|mlp\.)?|\.weight$/g, "");
    item.append(make("div", { class: "row small" }, make("span", {}, make("code", {}, part), " ", shapes.join(", ")),
                     make("span", { class: "number" }, grouped(countOf(stage)))));
  }
  setTip(item, () => [make("div", {}, stage.sentence), make("code", {}, stage.equation)]);
  return item;
}
