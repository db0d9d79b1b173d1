"""The forms in which people publish a GPT-2, as small as they come: a few lines each, and what is refused of them.

A form is the contents of a folder: configs and tokenizer files as transformers of one age or another wrote them, and
the arrays of a model of two layers. The vocabulary is learnt below from some lines in several languages.
"""

import hashlib
import json
import tempfile
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import regex
from safetensors.numpy import save_file

from numpy_gpt2 import GPT2Config, forward, generate_tokens, load, named_parameters, random_model
from numpy_gpt2.bpe import SPLIT_PATTERN
from numpy_gpt2.checkpoint.vocabulary import byte_alphabet

LETTERS = {byte: letter for letter, byte in byte_alphabet().items()}
LINES = """the cat sat on the mat, and the others' mats aren't there: in 2001, über 1999 cafés
tiếng Việt có dấu, tiếng Việt không dấu; Việt Nam, người Việt, những người khác
ภาษาไทย ภาษาไทยเป็นภาษา ไทย ไทย 12345 ١٢٣ العربية اللغة العربية في العالم العربي
日本語 日本 日 😀😀 👩‍👩‍👧 ok?! ... --- <s> </s> <pad>   \t\t\n\n  the end""".split("\n")


def in_letters(text: str) -> str:
    return "".join(LETTERS[byte] for byte in text.encode())


def joined(tokens: list[str], pair: tuple[str, str]) -> list[str]:
    result, i = [], 0
    while i < len(tokens):
        width = 2 if tuple(tokens[i:i + 2]) == pair else 1
        result.append("".join(tokens[i:i + width]))
        i += width
    return result


def learn_merges(n_merges: int) -> list[tuple[str, str]]:
    """Byte pair encoding's training: join the most frequent pair of neighbours, again and again."""
    pieces = [list(in_letters(piece)) for line in LINES for piece in regex.findall(SPLIT_PATTERN, line)]
    merges: list[tuple[str, str]] = []
    for _ in range(n_merges):
        counts = Counter(pair for piece in pieces for pair in zip(piece, piece[1:]))
        merges.append(max(sorted(counts), key=counts.__getitem__))
        pieces = [joined(piece, merges[-1]) for piece in pieces]
    return merges


END = "<|endoftext|>"
FIVE = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
MARKERS = ["<|BOS|>", "<|EOS|>", "<|PAD|>", "<|SEP|>"]
MERGES = learn_merges(60)
MADE = [left + right for left, right in MERGES]
PLAIN = {token: i for i, token in enumerate([*byte_alphabet(), *MADE, END])}
WITHOUT_END = {token: i for i, token in enumerate([*byte_alphabet(), *MADE])}
MARKERS_FIRST = {token: i for i, token in enumerate([*FIVE, *byte_alphabet(), *MADE])}
N = len(PLAIN)


@dataclass
class Form:
    """What is in the folder: JSON by file name, merges, what config.json has besides, and the model's vocabulary."""

    files: dict[str, Any]
    config: dict[str, Any] = field(default_factory=dict)
    vocab_size: int = N
    merges: list[tuple[str, str]] | None = field(default_factory=lambda: MERGES)  # None: no merges.txt
    tied: bool = True
    bos: int | None = N - 1
    ends: tuple[int, ...] = (N - 1,)


def added(token_id: int, content: str, **flags: bool) -> dict[str, Any]:
    """An entry of added_tokens in a tokenizer.json."""
    return {"id": token_id, "content": content, "single_word": False, "lstrip": False, "rstrip": False,
            "normalized": False, "special": True, **flags}


def flags_of(entry: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in entry.items() if key != "id"}


def tokenizer_json(vocab: dict[str, int] = PLAIN, merges: Any = MERGES, added_tokens: Any = None,
                   **sections: Any) -> dict[str, Any]:
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    model = {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": "",
             "end_of_word_suffix": "", "fuse_unk": False, "byte_fallback": False, "ignore_merges": False,
             "vocab": vocab, "merges": merges}
    end = [added(vocab[END], END)] if END in vocab else []
    return {"version": "1.0", "truncation": None, "padding": None, "normalizer": None, "post_processor": None,
            "added_tokens": end if added_tokens is None else end + added_tokens,
            "pre_tokenizer": byte_level, "decoder": byte_level, "model": model, **sections}


def byte_level(**changes: Any) -> dict[str, Any]:
    return {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True, **changes}


AS_WRITTEN = {"tokenizer_class": "PreTrainedTokenizerFast"}
MARKER_MAP = {"bos_token": "<|BOS|>", "eos_token": "<|EOS|>", "pad_token": "<|PAD|>", "sep_token": "<|SEP|>",
              "unk_token": END}
FIVE_MAP = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>",
            "mask_token": {"content": "<mask>", "lstrip": True, "rstrip": False, "single_word": False,
                           "normalized": True}}
ADDED = {marker: N + i for i, marker in enumerate(MARKERS)}
FLAGS = [added(N, "<l>", lstrip=True), added(N + 1, "<r>", rstrip=True), added(N + 2, "<w>", single_word=True),
         added(N + 3, "<all>", lstrip=True, rstrip=True, special=False, normalized=True), added(N + 4, "<l><r>")]
BACKWARDS = {token: i for i, token in enumerate([*reversed(MADE), *byte_alphabet(), END])}

FORMS = {
    "vocab and merges": Form({"vocab.json": PLAIN}),
    "tokenizer.json": Form({"tokenizer.json": tokenizer_json()}, merges=None),
    "tokenizer.json of old, merges as texts": Form(
        {"tokenizer.json": tokenizer_json(merges=[" ".join(pair) for pair in MERGES])}, merges=None),
    "tokenizer.json wins over vocab.json": Form({"vocab.json": BACKWARDS, "tokenizer.json": tokenizer_json()}),
    "ids that do not rise with the merges": Form({"vocab.json": BACKWARDS}),
    "added tokens and a map": Form(
        {"vocab.json": PLAIN, "added_tokens.json": ADDED, "special_tokens_map.json": MARKER_MAP},
        {"eos_token_id": N + 1, "bos_token_id": N}, N + 4, bos=N, ends=(N + 1,)),
    "added tokens, all ordinary": Form({"vocab.json": PLAIN, "added_tokens.json": ADDED}, {"eos_token_id": N + 1},
                                       N + 4, ends=(N + 1,)),
    "added tokens beside tokenizer.json": Form(
        {"tokenizer.json": tokenizer_json(), "added_tokens.json": ADDED,
         "tokenizer_config.json": {"additional_special_tokens": MARKERS[2:], "eos_token": "<|EOS|>"}},
        {"eos_token_id": N + 1}, N + 4, merges=None, ends=(N + 1,)),
    "added_tokens_decoder replaces added_tokens.json": Form(
        {"vocab.json": PLAIN, "added_tokens.json": {"<never>": N}, "special_tokens_map.json": {"pad_token": "<no>"},
         "tokenizer_config.json": {"added_tokens_decoder": {
             str(N - 1): flags_of(added(0, END)), str(N): flags_of(added(0, "<u>", special=False)),
             str(N + 1): flags_of(added(0, "<v>", rstrip=True))}, "bos_token": END, "eos_token": "<v>"}},
        {"eos_token_id": N + 1}, N + 2, ends=(N + 1,)),
    "markers first, a map": Form({"vocab.json": MARKERS_FIRST, "special_tokens_map.json": FIVE_MAP},
                                 {"bos_token_id": 0, "eos_token_id": 2}, N + 4, bos=0, ends=(2,)),
    "markers first, GPT-2's ids left in the config": Form(
        {"vocab.json": MARKERS_FIRST, "special_tokens_map.json": FIVE_MAP}, {"bos_token_id": 50256,
                                                                             "eos_token_id": 50256}, N + 4, bos=0,
        ends=()),
    "markers first, in a config": Form(
        {"vocab.json": MARKERS_FIRST, "tokenizer_config.json": {**FIVE_MAP, "mask_token": {
            **FIVE_MAP["mask_token"], "__type": "AddedToken"}}},
        {"bos_token_id": 0, "eos_token_id": 2}, N + 4, bos=0, ends=(2,)),
    "markers first in tokenizer.json": Form(
        {"tokenizer.json": tokenizer_json(MARKERS_FIRST, added_tokens=[added(i, name) for i, name in enumerate(FIVE)]),
         "special_tokens_map.json": FIVE_MAP}, {"bos_token_id": 0, "eos_token_id": 2}, N + 4, merges=None, bos=0,
        ends=(2,)),
    "one marker of another name": Form(
        {"vocab.json": {**WITHOUT_END, "</text>": N - 1}, "tokenizer_config.json": dict.fromkeys(
            ("bos_token", "eos_token", "unk_token"), "</text>")}, {"eos_token_id": N - 1}),
    "flags of every kind": Form({"tokenizer.json": tokenizer_json(added_tokens=FLAGS)}, {}, N + 5, merges=None),
    "flags of every kind, as written": Form(
        {"tokenizer.json": tokenizer_json(added_tokens=FLAGS), "tokenizer_config.json": AS_WRITTEN}, {}, N + 5,
        merges=None),
    "ordinary words added": Form(
        {"tokenizer.json": tokenizer_json(added_tokens=[
            added(PLAIN["a"], "a", special=False), added(N, "\n\n", special=False),
            added(N + 1, "người", special=False),
            added(N + 2, "ไทย", special=False, normalized=True), added(N + 3, "café", special=False)])},
        {}, N + 4, merges=None),
    "add_prefix_space": Form({"vocab.json": PLAIN, "added_tokens.json": ADDED,
                              "tokenizer_config.json": {"add_prefix_space": True}}, {}, N + 4),
    "add_prefix_space, use_regex and normalizer that do not count": Form(
        {"tokenizer.json": tokenizer_json(pre_tokenizer=byte_level(add_prefix_space=True, use_regex=False),
                                          normalizer={"type": "NFD"}),
         "tokenizer_config.json": {"tokenizer_class": "GPT2TokenizerFast", "add_bos_token": False}}, merges=None),
    "add_prefix_space that counts": Form(
        {"tokenizer.json": tokenizer_json(pre_tokenizer=byte_level(add_prefix_space=True), added_tokens=FLAGS),
         "tokenizer_config.json": {**AS_WRITTEN, "add_prefix_space": False}}, {}, N + 5, merges=None),
    "use_regex that counts": Form(
        {"tokenizer.json": tokenizer_json(pre_tokenizer=byte_level(use_regex=False)),
         "tokenizer_config.json": AS_WRITTEN}, merges=None),
    "normalizers that count": Form(
        {"tokenizer.json": tokenizer_json(
            normalizer={"type": "Sequence", "normalizers": [{"type": "NFC"}, {"type": "Lowercase"}]},
            added_tokens=[added(N, "<A>"), added(N + 1, "Tiếng", normalized=True, special=False)]),
         "tokenizer_config.json": {"tokenizer_class": "TokenizersBackend"}}, {}, N + 2, merges=None),
    "the class in config.json": Form(
        {"tokenizer.json": tokenizer_json(normalizer={"type": "NFKD"}, added_tokens=[added(N, "<p>")])},
        {"tokenizer_class": "PreTrainedTokenizerFast"}, N + 1, merges=None),
    "a pad token without an id": Form({"vocab.json": PLAIN, "special_tokens_map.json": {"pad_token": "[PAD]"}}),
    "generation_config wins": Form(
        {"vocab.json": PLAIN, "generation_config.json": {"eos_token_id": [5, 300], "bos_token_id": N - 1,
                                                         "do_sample": True, "temperature": 0.1}}, ends=(5, 300)),
    "aliases in config.json": Form(
        {"vocab.json": PLAIN}, {"num_attention_heads": 4, "n_head": 1, "hidden_size": 16, "num_hidden_layers": 2,
                                "max_position_embeddings": 64, "n_embd": 12, "n_layer": 7, "n_positions": 3}),
    "erf GELU, as Cerebras-GPT": Form({"vocab.json": PLAIN}, {"activation_function": "gelu"}),
    "ReLU, untied": Form({"vocab.json": PLAIN}, {"activation_function": "relu", "tie_word_embeddings": False},
                         tied=False),
    "gelu_fast": Form({"vocab.json": PLAIN}, {"activation_function": "gelu_fast", "layer_norm_epsilon": 1e-3}),
    "scores scaled by layers, as stanford-crfm": Form(
        {"vocab.json": PLAIN}, {"scale_attn_by_inverse_layer_idx": True, "reorder_and_upcast_attn": True}),
    "scores not scaled": Form({"vocab.json": PLAIN}, {"scale_attn_weights": False,
                                                      "scale_attn_by_inverse_layer_idx": True}),
    "a model with more ids than tokens": Form({"vocab.json": PLAIN}, {}, N + 40),
}

# {name: (a form, the line that refuses it)}
REFUSED = {
    "a gap": (Form({"vocab.json": PLAIN, "added_tokens.json": {"<x>": N + 3}}),
              f"added_tokens.json: added token '<x>': its id must be {N}, the next, without a gap. Got {N + 3}"),
    "an id that is taken": (Form({"vocab.json": PLAIN, "added_tokens.json": {END: 3}}),
                            f"added_tokens.json: added token '{END}': its id must be {N - 1}, as in the vocabulary. G"),
    "another class": (Form({"vocab.json": PLAIN, "tokenizer_config.json": {"tokenizer_class": "BertTokenizer"}}),
                      "tokenizer_config.json: tokenizer_class must be GPT2Tokenizer or PreTrainedTokenizerFast. Got "
                      "'BertTokenizer': the model alone can be loaded (load_model)."),
    "a class in config.json": (Form({"vocab.json": PLAIN}, {"tokenizer_class": "XLMRobertaTokenizerFast"}),
                               "config.json: tokenizer_class must be GPT2Tokenizer or PreTrainedTokenizerFast. Got "
                               "'XLMRobertaTokenizerFast': the model alone can be loaded (load_model)."),
    "add_bos_token": (Form({"vocab.json": PLAIN, "tokenizer_config.json": {"add_bos_token": True}}),
                      "tokenizer_config.json: add_bos_token must be false"),
    "a template": (Form({"tokenizer.json": tokenizer_json(post_processor={
        "type": "RobertaProcessing", "sep": ["</s>", 2], "cls": ["<s>", 0]})}, merges=None),
        "tokenizer.json: not GPT-2's tokenizer: post_processor.type must be 'ByteLevel'. Got 'RobertaProcessing'"),
    "WordPiece": (Form({"tokenizer.json": tokenizer_json() | {"model": {"type": "WordPiece", "vocab": {}}}},
                       merges=None), "tokenizer.json: not GPT-2's tokenizer: model.type must be 'BPE'. Got 'WordP"),
    "SentencePiece's splitting": (
        Form({"tokenizer.json": tokenizer_json(pre_tokenizer={"type": "Metaspace"}),
              "tokenizer_config.json": AS_WRITTEN}, merges=None),
        "tokenizer.json: not GPT-2's tokenizer: pre_tokenizer.type must be 'ByteLevel'. Got 'Metaspace'"),
    "missing bytes": (Form({"vocab.json": {token: i for i, token in enumerate([*list(byte_alphabet())[4:], END])}},
                           merges=[]), "vocab.json: expected a token for each of the 256 bytes, as `tokenizers` trai"),
    "cross attention": (Form({"vocab.json": PLAIN}, {"add_cross_attention": True}),
                        "config.json: add_cross_attention must be false. Got true."),
    "another activation": (Form({"vocab.json": PLAIN}, {"activation_function": "silu"}),
                           "config.json: activation_function must be one of gelu_new, "),
    "quantized": (Form({"vocab.json": PLAIN}, {"quantization_config": {"load_in_8bit": True}}),
                  "config.json: quantization_config: expected weights that are not quantized."),
}


def model_arrays(form: Form) -> dict[str, np.ndarray]:
    """A model of two layers in which everything matters, and whose ends are likely."""
    config = GPT2Config(vocab_size=form.vocab_size, n_positions=64, n_embd=16, n_layer=2, n_head=4,
                        tie_word_embeddings=form.tied)
    rng = np.random.default_rng(form.vocab_size)
    arrays = {}
    for name, array in named_parameters(random_model(config)):
        is_matrix = array.ndim == 2 and ".c_" in name
        scale = 2 / np.sqrt(len(array)) if is_matrix else 0.3
        noise = scale * rng.standard_normal(array.shape, dtype=np.float32)
        arrays[name] = (noise + (1 if name.endswith("weight") and "ln_" in name else 0)).astype(np.float32)
    for end in form.ends:
        if form.tied:
            arrays["wte.weight"][end] *= 4
    if form.vocab_size > N + 5:
        arrays["wte.weight"][N:] = 0  # of ids without a token, which would be drawn
    return arrays


def write_form(form: Form, folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    config = {"architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", "vocab_size": form.vocab_size,
              "n_positions": 64, "n_embd": 16, "n_layer": 2, "n_head": 4, "bos_token_id": N - 1,
              "eos_token_id": N - 1, **form.config}
    for name, content in {"config.json": config, **form.files}.items():
        (folder / name).write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    if form.merges is not None:
        lines = ["#version: 0.2", *(f"{left} {right}" for left, right in form.merges), ""]
        (folder / "merges.txt").write_text("\n".join(lines), encoding="utf-8")
    save_file(model_arrays(form), folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def texts(form: Form, n_texts: int = 200) -> list[str]:
    """Texts with the form's markers in them, and the scripts and signs in which pieces and words are hard to tell."""
    rng = np.random.default_rng(0)
    names = {END, *MARKERS, *FIVE, "<l>", "<r>", "<w>", "<all>", "<u>", "<v>", "<A>", "<p>", "[PAD]", "</text>",
             "người", "café"}
    if form.files.get("added_tokens.json") != ADDED and END not in form.files.get("vocab.json", PLAIN):
        names -= {END}  # which transformers would make up
    some = [*sorted(names), *LINES, "The cat's", " the", "  ", "\n", "\n\n", "\u3000", "\t", "a", "Ab", "9", "½", "٣",
            "tiê\u0301ng Viê\u0323t", "TIẾNG VIỆT", "ไทย", "กำ", "العَرَبِيَّة", "👩‍👩‍👧‍👦", "🇻🇳",
            "e\u0301", "Å", "ﬁ", "'s", "’s", "_", "-", "\u200b", "\xa0", "\x1c", "ß", "İ", "Σας"]
    letters = [chr(code) for code in [*range(32, 127), *range(0xa1, 0x250), *range(0x300, 0x340), *range(0xe01, 0xe3b),
                                      *range(0x620, 0x650), *range(0x1e00, 0x1f00), *range(0x4e00, 0x4e40),
                                      *range(0x1f600, 0x1f640), *range(0x2000, 0x2070)]]
    found = []
    for _ in range(n_texts):
        parts = [some[i] for i in rng.integers(len(some), size=rng.integers(1, 6))]
        parts.insert(int(rng.integers(len(parts) + 1)), "".join(letters[i] for i in rng.integers(len(letters), size=5)))
        found.append(("" if rng.random() < 0.5 else " ").join(parts))
    return ["", " ", *found[2:]]


# What a checkpoint makes of them, whichever library computes it ------------------------------------------------------

GOLDENS = Path(__file__).parent / "published_forms.json"
N_PROMPTS, N_NEW = 6, 20


def fingerprint(values: Any) -> str:
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()


def behaviour(form: Form, encode: Any, decode: Any, logits: Any, greedy: Any) -> dict[str, Any]:
    """All that a form is compared by. encode: text -> ids, markers found. logits: ids -> those of the last position.

    greedy: ids -> the likeliest tokens that follow, up to N_NEW or the end.
    """
    all_ids = [encode(text) for text in texts(form)]
    prompts = [[token_id for token_id in ids if token_id < form.vocab_size][:30] for ids in all_ids[10:10 + N_PROMPTS]]
    return {"ids": fingerprint(all_ids), "texts": fingerprint([decode(ids) for ids in all_ids]),
            "tokens": fingerprint([decode([token_id]) for token_id in sorted({i for ids in all_ids for i in ids})]),
            "logits": [[round(float(value), 5) for value in logits(prompt)[:8]] for prompt in prompts],
            "greedy": [greedy(prompt) for prompt in prompts]}


def our_behaviour(form: Form, folder: Path) -> dict[str, Any]:
    model, tokenizer = load(folder)

    def greedy(ids: list[int]) -> list[int]:
        return list(generate_tokens(model, ids, N_NEW, temperature=0, eos_token_id=list(tokenizer.eos_ids),
                                    vocab_size=min(tokenizer.vocab_size, model.config.vocab_size)))

    return behaviour(form, lambda text: tokenizer.encode(text, "all"), tokenizer.decode,
                     lambda ids: forward(model, ids)[-1], greedy)


def their_behaviour(form: Form, folder: Path) -> dict[str, Any]:
    """What transformers makes of the same folder."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()

    def logits(ids: list[int]) -> Any:
        with torch.no_grad():
            return model(torch.tensor([ids])).logits[0, -1]

    def greedy(ids: list[int]) -> list[int]:
        made = model.generate(torch.tensor([ids]), attention_mask=torch.ones(1, len(ids), dtype=torch.long),
                              do_sample=False, max_new_tokens=N_NEW, pad_token_id=0)
        return made[0].tolist()[len(ids):]

    return behaviour(form, lambda text: tokenizer(text).input_ids, tokenizer.decode, logits, greedy)


def assert_same(found: dict[str, Any], expected: dict[str, Any]) -> None:
    for key in ("ids", "texts", "tokens", "greedy"):
        assert found[key] == expected[key], key
    largest = np.abs(expected["logits"]).max()
    np.testing.assert_allclose(found["logits"], expected["logits"], atol=1e-4 * largest)


if __name__ == "__main__":  # python tests/published_forms.py: write the goldens; it needs the extra `parity`
    with tempfile.TemporaryDirectory() as place:
        goldens = {name: their_behaviour(form, write_form(form, Path(place, str(i))))
                   for i, (name, form) in enumerate(FORMS.items())}
    GOLDENS.write_text("{\n" + ",\n".join(f"{json.dumps(name)}: {json.dumps(golden)}" for name, golden in
                                          goldens.items()) + "\n}\n")
