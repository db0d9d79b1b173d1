// The data -----------------------------------------------------------------------------------------------------------

const page = JSON.parse(document.getElementById("data").textContent);
const { n_layer, n_head, vocab_size, tie_word_embeddings } = page.config;
const n_tokens = page.ids.length;
const attention = unpack(page.attention, Uint16Array);  // [n_layer, n_head, n_tokens * (n_tokens + 1) / 2]
const logits = unpack(page.logits, Float32Array);       // [vocab_size], of the last position

/** What the page shows at the moment. `choose` changes it. */
const chosen = { layer: 0, head: 0, position: n_tokens - 1, isOpen: !matchMedia("(max-width: 62rem)").matches };
const settings = { temperature: 1, top_k: 0, top_p: 1 };

function unpack(base64, ArrayType) {
  const bytes = Uint8Array.from(atob(base64), (character) => character.charCodeAt(0));
  return new ArrayType(bytes.buffer);  // little-endian, as every machine that runs a browser is
}

/** How much of its attention the query's token gives to the key's. Only what is not above the diagonal is stored. */
function weight(layer, head, query, key) {
  if (key > query) return 0;
  const row = (layer * n_head + head) * n_tokens * (n_tokens + 1) / 2 + query * (query + 1) / 2;
  return attention[row + key] / 65535;
}

/** The indices of the values from the smallest up, the lower index first among equals. */
function sorted(values) {
  return Uint32Array.from(values.keys()).sort((a, b) => values[a] - values[b] || a - b);
}
