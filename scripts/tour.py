# %% [markdown]
# # A tour of one forward pass
#
# Run the cells in order: `tour.ipynb` in Jupyter, or `tour.py`, from which it is generated, in VS Code ("Run Cell"). Or
# run it as a script: `python scripts/tour.py`. It needs no network, and no cell takes longer than a few seconds. Change
# anything, and run the cell again.

# %%
import builtins
import math
from pathlib import Path

import numpy as np

import numpy_gpt2
from numpy_gpt2.model import attention, embed, mlp
from numpy_gpt2.ops import layer_norm, softmax

np.set_printoptions(precision=3, suppress=True, linewidth=110)


def section(title):
    """Print a heading, except in a notebook, which has it above the cell."""
    if not hasattr(builtins, "__IPYTHON__"):
        print(f"\n{title}\n{'-' * len(title)}")


section("A tour of one forward pass")

# %% [markdown]
# ## 1. A model is data
#
# `load` returns the weights, under their names in the checkpoint, and their tokenizer. `fairytale` is bundled; `"gpt2"`
# is OpenAI's, and everything below works with it too.

# %%
section("1. A model is data")
model, tokenizer = numpy_gpt2.load("fairytale")
config = model.config
print("layers, heads, width:", config.n_layer, config.n_head, config.n_embd)
print("the first block:", model.h[0])
print("embedding and unembedding are one array:", model.lm_head is model.wte)

# %%
model  # a notebook shows it as a tree that unfolds

# %% [markdown]
# ## 2. A text is token ids
#
# A common word is one token, with the space before it; a rare one is several.

# %%
section("2. A text is token ids")
prompt = "The old woman went into the forest. Then"
ids = tokenizer.encode(prompt)
tokens = [tokenizer.decode([token_id]) for token_id in ids]
print(list(zip(ids, tokens)))
print("a rare word:", [tokenizer.decode([token_id]) for token_id in tokenizer.encode(" hippopotamus")])

# %% [markdown]
# ## 3. Embedding: the token plus its position
#
# From here on each token is a vector of `n_embd` numbers, its row of the residual stream.

# %%
section("3. Embedding: the token plus its position")
resid_pre = model.wte[ids] + model.wpe[np.arange(len(ids))]  # [n_tokens, n_embd]
print("shape:", resid_pre.shape, "type:", resid_pre.dtype)
assert np.array_equal(resid_pre, embed(model, np.array(ids), first_position=0, tap=numpy_gpt2.no_tap))

# %% [markdown]
# ## 4. One block by hand: attention
#
# A layer norm gives every row mean 0 and variance 1, then one product gives queries, keys and values of all heads.
# Head 2's are channels `2*d_head` up to `3*d_head` of each.

# %%
section("4. One block by hand: attention")
block = model.h[0]
ln_1 = layer_norm(resid_pre, block.ln_1.weight, block.ln_1.bias, config.layer_norm_epsilon)  # [n_tokens, n_embd]
qkv = ln_1 @ block.attn.c_attn.weight + block.attn.c_attn.bias  # [n_tokens, 3*n_embd]
q, k, v = np.split(qkv, 3, axis=-1)  # three of [n_tokens, n_embd]
head = 2
channels = slice(head * config.d_head, (head + 1) * config.d_head)
q, k, v = q[:, channels], k[:, channels], v[:, channels]  # three of [n_tokens, d_head]

# %% [markdown]
# How well does each query match each key? A token must not see later ones: their scores become -inf, and softmax turns
# that to 0. Each row of the pattern has the attention weights of one token, and sums to 1.

# %%
scores = q @ k.T / math.sqrt(config.d_head)  # [n_tokens, n_tokens]
later = np.triu(np.ones_like(scores, dtype=bool), k=1)
pattern = softmax(np.where(later, np.float32(-np.inf), scores))
print("attention weights of head", head, "of block 0:")
print(pattern)

# %% [markdown]
# The head's output is the sum of the values with these weights. The heads' outputs are concatenated, and `c_proj`
# projects them back to the stream. Here the library does it for all heads, and then the MLP for each token separately.

# %%
z = pattern @ v  # [n_tokens, d_head]
cache = numpy_gpt2.KVCache(model, n_positions=len(ids))
resid_mid = resid_pre + attention(ln_1, block.attn, config.n_head, cache, 0, numpy_gpt2.no_tap)  # [n_tokens, n_embd]
ln_2 = layer_norm(resid_mid, block.ln_2.weight, block.ln_2.bias, config.layer_norm_epsilon)
resid_post = resid_mid + mlp(ln_2, block.mlp, config.activation_function, numpy_gpt2.no_tap)  # [n_tokens, n_embd]

# %% [markdown]
# ## 5. Taps: every array of the pass, by name
#
# `forward` passes each array to its `tap`, an activation hook. A `Recorder` keeps copies of all, or of those that match
# a glob. They include what we computed by hand.

# %%
section("5. Taps: every array of the pass, by name")
acts = numpy_gpt2.Recorder()
logits = numpy_gpt2.forward(model, ids, tap=acts)  # [n_tokens, vocab_size]
print(len(acts), "arrays; those of block 0:")
for name in acts:
    if name.startswith("h.0."):
        print(f"  {name:16} {acts[name].shape}")
assert np.allclose(acts["h.0.attn.pattern"][head], pattern, atol=1e-5)
assert np.allclose(acts["h.0.attn.z"][head], z, atol=1e-4)
assert np.allclose(acts["h.0.resid_post"], resid_post, atol=1e-3)

# %%
acts  # a notebook shows all shapes, with a few statistics

# %% [markdown]
# ## 6. Patterns: who looks at whom
#
# Some heads have a simple function. Which one attends most to the previous token? In one sentence a head can do so by
# chance, so we take the mean over 400 tokens of a story.

# %%
section("6. Patterns: who looks at whom")
story_file = Path(numpy_gpt2.__file__).parents[1] / "scripts" / "experiments" / "story.txt"
story = tokenizer.encode(story_file.read_text(encoding="utf-8"))
story_acts = numpy_gpt2.Recorder("h.*.attn.pattern")
numpy_gpt2.forward(model, story[:400], tap=story_acts)
patterns = np.stack([story_acts[f"h.{i}.attn.pattern"] for i in range(config.n_layer)])  # [n_layer, n_head, 400, 400]
to_previous = np.diagonal(patterns, offset=-1, axis1=-2, axis2=-1).mean(axis=-1)  # [n_layer, n_head]
print("mean attention to the token before, a row for each block:")
print(to_previous)
i, j = (int(index) for index in np.unravel_index(np.argmax(to_previous), to_previous.shape))
print(f"head {j} of block {i} gives {to_previous[i, j]:.0%} of its attention to the token before. In our sentence:")
for token, row in zip(tokens, acts[f"h.{i}.attn.pattern"][j]):
    print(f"  {token!r:10} looks most at {tokens[int(np.argmax(row))]!r}")

# %%
numpy_gpt2.show_attention(acts, i, j, tokens)  # a notebook draws it

# %% [markdown]
# ## 7. The logit lens: what would the model predict if it stopped here?
#
# The last layer norm and the unembedding, applied to the stream before a block, predict the next token. (Before block 0
# the stream has only the token itself and its position, and the prediction is bytes that hardly ever occur. So this
# begins before block 1; the last line is after all blocks, the model's own prediction.)

# %%
section("7. The logit lens: what would the model predict if it stopped here?")
for layer in range(1, config.n_layer + 1):
    best = numpy_gpt2.top_tokens(numpy_gpt2.logit_lens(model, acts, layer)[-1], tokenizer, k=4)
    print(layer, "  ".join(f"{token.text!r} {token.probability:.0%}" for token in best))

# %% [markdown]
# ## 8. Attribution: which parts caused it?
#
# The final residual stream is a sum: the embeddings, each head, each MLP, the biases. So the logit is a sum too. What
# made the model prefer " she" to " he"? We look at the logit difference, since it ignores what raises both.

# %%
section("8. Attribution: which parts caused it?")
she, he = tokenizer.encode(" she")[0], tokenizer.encode(" he")[0]
for_she = numpy_gpt2.direct_logit_attribution(model, acts, she)
for_he = numpy_gpt2.direct_logit_attribution(model, acts, he)
difference = for_she.values - for_he.values  # [n_parts]
print(f"' she' minus ' he': {logits[-1, she] - logits[-1, he]:.3f}; the sum of all parts: {difference.sum():.3f}")
by_size = np.argsort(-np.abs(difference))
for part in by_size[:8]:
    print(f"  {for_she.names[part]:20} {difference[part]:+.3f}")

# %% [markdown]
# ## 9. Ablation: what changes without it?
#
# A tap may return another array, which is used from there on. `ablate` sets a head's output to 0. Attribution has only
# a head's direct effect on the logit; ablation also has its effect through later layers. The two need not agree.


# %%
def prefers_she(ids, tap=numpy_gpt2.no_tap):
    """The logit of " she" minus that of " he", after the last token."""
    last = numpy_gpt2.forward(model, ids, tap=tap)[-1]
    return float(last[she] - last[he])


section("9. Ablation: what changes without it?")
whole = prefers_she(ids)
print(f"with all heads: {whole:+.3f}")
for layer in range(config.n_layer):
    without = [prefers_she(ids, numpy_gpt2.ablate(f"h.{layer}.attn.z", heads=head)) for head in range(config.n_head)]
    print(f"  block {layer}, without each head in turn:", np.array(without) - whole)

# %% [markdown]
# ## 10. Patching: where is the information?
#
# Copy one vector of this pass into a pass over another prompt. If the answer changes, the vector had the information.
# `scripts/experiments/patch_activations.py` does this for every layer and position.

# %%
section("10. Patching: where is the information?")
other_ids = tokenizer.encode(prompt.replace("woman", "man"))
print(f"'woman' {whole:+.3f}, 'man' {prefers_she(other_ids):+.3f}; 'man' with one vector of 'woman':")
for position in (2, len(ids) - 1):
    changed = [prefers_she(other_ids, numpy_gpt2.patch(f"h.{layer}.resid_pre", acts[f"h.{layer}.resid_pre"],
                                                       positions=position)) for layer in range(config.n_layer)]
    print(f"  at {tokens[position]!r:8} before each block:", np.array(changed))

# %% [markdown]
# Only attention moves information between tokens, so some head did. Which one? Patch each head's output at only the
# last token: 0 is 'man', unchanged; 1 is 'woman'.

# %%
there = prefers_she(other_ids)
for layer in range(config.n_layer):
    name = f"h.{layer}.attn.z"
    changed = [prefers_she(other_ids, numpy_gpt2.patch(name, acts[name], positions=-1, heads=head))
               for head in range(config.n_head)]
    print(f"  block {layer}:", (np.array(changed) - there) / (whole - there))

# %% [markdown]
# Taps combine: here a head is ablated, and the effects are recorded.

# %%
changed_acts = numpy_gpt2.Recorder("h.*.resid_post")
numpy_gpt2.forward(model, ids, tap=numpy_gpt2.chain(numpy_gpt2.ablate("h.0.attn.z", heads=3), changed_acts))
for layer in range(config.n_layer):
    name = f"h.{layer}.resid_post"
    moved = np.linalg.norm(changed_acts[name] - acts[name]) / np.linalg.norm(acts[name])
    print(f"  {name} has moved by {moved:.1%} of its length")

# %% [markdown]
# ## 11. Decode: one more token costs one token's computation
#
# The keys and values of a token never change once it is read. The cache stores them, so that the next pass reads only
# one token; `q` has one row, `k_all` has all.

# %%
section("11. Decode: one more token costs one token's computation")
cache = numpy_gpt2.KVCache(model, n_positions=len(ids) + 10)
prefill = numpy_gpt2.forward(model, ids, cache=cache)
next_id = int(np.argmax(prefill[-1]))
one = numpy_gpt2.Recorder("h.0.attn.*")
decoded = numpy_gpt2.forward(model, [next_id], cache=cache, tap=one)
for name in ("q", "k", "k_all", "pattern"):
    print(f"  {name:8} {one['h.0.attn.' + name].shape}")
again = numpy_gpt2.forward(model, [*ids, next_id])
print("the same logits without a cache:", np.allclose(decoded[-1], again[-1], atol=1e-3))

# %% [markdown]
# ## 12. Generation
#
# Repeating step 11 is how GPT-2 generates text. See `decoding.py`, and the scripts in `experiments/`.

# %%
section("12. Generation")
for piece in numpy_gpt2.stream_text(model, tokenizer, prompt, max_new_tokens=30, temperature=0.8, top_k=40, seed=1):
    print(piece, end="", flush=True)
print()

# %% [markdown]
# ## 13. All of it on one page
#
# `show` puts the page of `python -m numpy_gpt2.explore` into the notebook: all heads, the lens, the parts of a logit.

# %%
section("13. All of it on one page")
numpy_gpt2.show(model, tokenizer, prompt)  # a notebook shows it
