// The next token's probabilities: as numpy_gpt2/sampling.py has them, in its order and rounded as there
//
// `values` are logits, each of `counts` tokens; probabilities are of one token each.

function probabilities({ temperature, top_k, top_p }, values, counts) {
  if (temperature === 0) {
    const greedy = new Float32Array(values.length);
    greedy[values.indexOf(highest(values))] = 1;
    return greedy;
  }
  let shaped = values;
  if (temperature !== 1) shaped = applyTemperature(shaped, temperature);
  if (top_k > 0) shaped = keepTopK(shaped, counts, top_k);
  if (top_p < 1) shaped = keepTopP(shaped, counts, top_p);
  return softmax(shaped, counts);
}

function highest(values) {
  return values.reduce((a, b) => Math.max(a, b));
}

function softmax(values, counts) {
  const largest = highest(values);
  const exponentials = values.map((value) => Math.exp(Math.fround(value - largest)));
  const total = exponentials.reduce((sum, value, i) => sum + value * counts[i], 0);
  return exponentials.map((value) => value / total);
}

function applyTemperature(values, temperature) {
  const largest = highest(values);
  return values.map((value) => Math.fround(value - largest) / Math.fround(temperature));
}

/** Only the k most likely tokens, and those as likely as the k-th. */
function keepTopK(values, counts, k) {
  let seen = 0;
  const kth = ascending(values).reverse().find((i) => (seen += counts[i]) >= k);
  return kth === undefined ? values : values.map((value) => value < values[kth] ? -Infinity : value);
}

/** The fewest most likely tokens whose probabilities sum to p or more; the most likely stays, however small p is. */
function keepTopP(values, counts, p) {
  const kept = Float32Array.from(values);
  const fractions = softmax(values, counts);
  let cumulative = 0;
  for (const i of ascending(values).slice(0, -1)) {
    cumulative += fractions[i] * counts[i];
    if (cumulative <= 1 - p) kept[i] = -Infinity;
  }
  return kept;
}

/** The indices of the values from the smallest up, the lower index first among equals. */
function ascending(values) {
  return Uint32Array.from(values.keys()).sort((a, b) => values[a] - values[b] || a - b);
}
