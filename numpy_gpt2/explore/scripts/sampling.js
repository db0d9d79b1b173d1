// The next token's probabilities: as numpy_gpt2/sampling.py has them, in its order and rounded as there

function probabilities({ temperature, top_k, top_p }) {
  if (temperature === 0) {
    const greedy = new Float32Array(logits.length);
    greedy[logits.indexOf(logits.reduce((a, b) => Math.max(a, b)))] = 1;
    return greedy;
  }
  let shaped = logits;
  if (temperature !== 1) shaped = applyTemperature(shaped, temperature);
  if (top_k > 0) shaped = keepTopK(shaped, top_k);
  if (top_p < 1) shaped = keepTopP(shaped, top_p);
  return softmax(shaped);
}

function softmax(values) {
  const largest = values.reduce((a, b) => Math.max(a, b));
  const exponentials = values.map((value) => Math.exp(Math.fround(value - largest)));
  const total = exponentials.reduce((a, b) => a + b, 0);
  return exponentials.map((value) => value / total);
}

function applyTemperature(values, temperature) {
  const largest = values.reduce((a, b) => Math.max(a, b));
  return values.map((value) => Math.fround(value - largest) / Math.fround(temperature));
}

/** Only the k likeliest tokens, and those as likely as the k-th. */
function keepTopK(values, k) {
  const kthLargest = Float32Array.from(values).sort()[Math.max(values.length - k, 0)];
  return values.map((value) => value < kthLargest ? -Infinity : value);
}

/** The fewest likeliest tokens whose probabilities reach p together; the likeliest stays, however small p is. */
function keepTopP(values, p) {
  const kept = Float32Array.from(values);
  const shares = softmax(values);
  let cumulative = 0;
  for (const id of sorted(values).slice(0, -1)) {
    cumulative += shares[id];
    if (cumulative <= 1 - p) kept[id] = -Infinity;
  }
  return kept;
}
