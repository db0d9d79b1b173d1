// The data, and what the page shows of them

const firstData = JSON.parse(document.getElementById("data").textContent);
const { n_layer, n_head, vocab_size, tie_word_embeddings } = firstData.config;
const n_known = unpack(firstData.logits, Float32Array).length;  // tokens that can be drawn

let page;       // the data of the pass that is shown
let before;     // with interventions: the data of the same pass without them; else null
let n_tokens;
let attention;  // [n_layer, n_head, n_tokens * (n_tokens + 1) / 2]
let attentionBefore;

/** What the page shows at the moment. `choose` changes it. `target` is what kind of part was clicked last. */
const chosen = { target: "head", layer: 0, head: 0, position: 0, isOpen: !matchMedia("(max-width: 76rem)").matches };
const otherNames = {};  // of tokens that are not in the data of a pass: those that were written, or compared
const settings = { temperature: 1, top_k: 0, top_p: 1 };

function setData(data, untouched = null) {
  page = data;
  before = untouched;
  Object.assign(page.names, before?.names, otherNames);
  n_tokens = page.ids.length;
  attention = unpack(page.attention, Uint16Array);
  attentionBefore = before && unpack(before.attention, Uint16Array);
}

function unpack(base64, ArrayType) {
  const bytes = Uint8Array.from(atob(base64), (character) => character.charCodeAt(0));
  return new ArrayType(bytes.buffer);  // little-endian, as every machine that runs a browser is
}

/** The attention weight of one token (the query) on another (the key). Only the lower triangle is stored. */
function weight(layer, head, query, key, of = attention) {
  if (key > query) return 0;
  const row = (layer * n_head + head) * n_tokens * (n_tokens + 1) / 2 + query * (query + 1) / 2;
  return of[row + key] / 65535;
}

/**
 * What is known of the next token after a position: logits, each of `counts` tokens; the first ones are those of `ids`.
 * After the last position every logit is known, in the order of the ids. After the others the highest are, in descending
 * order, and the rest as groups: see next_data in page.py.
 */
function nextTokens(data, position) {
  if (position === data.ids.length - 1) {
    const all = unpack(data.logits, Float32Array);
    return { ids: Uint32Array.from(all.keys()), logits: all, counts: all.map(() => 1), best: data.likeliest };
  }
  const { ids, logits: exact, groups, counts } = data.next;
  const row = (text, ArrayType) => {
    const all = unpack(text, ArrayType);
    const width = all.length / (data.ids.length - 1);
    return all.slice(position * width, (position + 1) * width);
  };
  const best = row(ids, Uint32Array), highest = row(exact, Float32Array);
  return { ids: best, logits: Float32Array.of(...highest, ...row(groups, Float32Array)),
           counts: Float32Array.of(...highest.map(() => 1), ...counts), best: [...best.slice(0, data.likeliest.length)] };
}
