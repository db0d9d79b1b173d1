"""The answers to the live page's requests: a pass with interventions, a comparison, a continuation, tokens.

Each function takes the engine, the request (a JSON object), and the `Job` that schedules it and reports its progress;
it returns the answer, ready for JSON. Raises ValueError for a malformed request, FloatingPointError for logits that
are not finite, Refusal for a request that was replaced or timed out.
"""

import math
from dataclasses import replace
from typing import Any, Mapping, Sequence

import numpy as np

from ..config import GenerationConfig
from ..decoding import as_ids, generate_tokens
from ..errors import check_int
from ..lens import attribution_patching, chain, logit_difference, patch, residual_logits
from ..model import forward, transform, unembed
from ..ops import softmax
from ..sampling import check_finite, process_logits
from ..scoring import top_ids_of
from ..tap import STAGES, Recorder
from ..weights import GPT2
from .interventions import (CHANGEABLE, KINDS, MOST_INTERVENTIONS, first_lines, one_of, parse_interventions,
                            python_code, sources, tap_of)
from .page import most_tokens, page_data, rounded, token_name
from .prompts import Engine, Prompt, check_keys, n_known, parse_ids, parse_prompt, parse_text, parse_token
from .turns import Job

MOST_NEW_TOKENS = 128
N_ALTERNATIVES = 10
MOST_BATCHED = 2048  # tokens in a batch of patched passes: the activations of two full contexts
MOST_COMPARED = 300_000_000  # numbers that attribution keeps, of three passes: 1.2 GB
MOST_KEPT = 4  # cached pages without interventions, shown next to those with


def server_data(engine: Engine, prompt: str) -> dict[str, Any]:
    """What the page needs to know: the prompt and the server's limits. A page without it sends no requests."""
    return {"prompt": prompt,
            "max_tokens": most_tokens(engine.model.config), "max_new_tokens": MOST_NEW_TOKENS,
            "max_interventions": MOST_INTERVENTIONS, "kinds": list(KINDS), "stages": list(CHANGEABLE),
            "stages_with_heads": [name for name, stage in CHANGEABLE.items() if "n_head" in stage.shape],
            "global_stages": [name for name, stage in CHANGEABLE.items() if not stage.name.startswith("h.i.")]}


# A pass ---------------------------------------------------------------------------------------------------------------


def run_prompt(engine: Engine, request: Mapping[str, Any], job: Job) -> dict[str, Any]:
    """The page's data with the interventions and without, and Python code for the same pass."""
    check_keys("the request", request, ["page", "prompt", "ids", "interventions"])
    prompt = parse_prompt(engine, request)
    interventions = parse_interventions(engine, request.get("interventions"), len(prompt.ids))
    n_layer = engine.model.config.n_layer
    of_page = 2 * n_layer + 1  # the pass, then the lens
    is_kept = tuple(prompt.ids) in engine.kept
    job.expect(of_page * (bool(interventions) + (not is_kept)) + n_layer * len(sources(interventions)))
    with job.turn():
        before = baseline_page(engine, prompt.ids, job)
    code = python_code(engine, prompt, interventions)
    if not interventions:
        return {"page": before, "before": None, "code": code}
    with job.turn():
        tap = tap_of(engine, interventions, len(prompt.ids), job)
        page = page_data(engine.model, engine.tokenizer, prompt.ids, engine.name, chain(tap, job), job.advance)
    return {"page": page, "before": before, "code": code}


def baseline_page(engine: Engine, ids: Sequence[int], job: Job) -> dict[str, Any]:
    """The page's data without interventions, cached for the last MOST_KEPT prompts."""
    key = tuple(ids)
    if key not in engine.kept:
        engine.kept[key] = page_data(engine.model, engine.tokenizer, ids, engine.name, job, job.advance)
        if len(engine.kept) > MOST_KEPT:
            del engine.kept[next(iter(engine.kept))]  # the oldest
    return engine.kept[key]


# A comparison ---------------------------------------------------------------------------------------------------------


def compare(engine: Engine, request: Mapping[str, Any], job: Job) -> dict[str, Any]:
    """How much of the logit difference between two prompts each restored residual stream recovers.

    values [n_layer + 1, n_tokens]: the increase of the metric in the corrupted pass when the clean residual stream,
    before each block and after the last, is restored at one position. fractions: values / (clean - corrupted).
    Source: Meng et al., "Locating and Editing Factual Associations in GPT", section 2, 2022 (which corrupts by noise).
    """
    check_keys("the request", request, ["page", "prompt", "ids", "other", "other_ids", "target", "foil", "method"])
    clean, corrupted = parse_prompt(engine, request), parse_prompt(engine, request, "other", "other_ids")
    if len(clean.ids) != len(corrupted.ids):
        raise ValueError(f"the two prompts must have the same number of tokens. Got {len(clean.ids)} and "
                         f"{len(corrupted.ids)}.")
    method = one_of("method", request.get("method", "patching"), ["patching", "attribution"])
    names = residual_names(engine.model)
    n_layer, n_tokens = engine.model.config.n_layer, len(clean.ids)
    if method == "attribution":
        check_memory(engine.model, n_tokens)
    job.expect(2 * n_layer + (n_layer * (n_layer + 1) // 2 if method == "patching" else 3 * n_layer))
    clean_acts, corrupted_acts = Recorder(names), Recorder(names)
    with job.turn():
        clean_logits = forward(engine.model, clean.ids, tap=chain(clean_acts, job))  # [n_tokens, vocab_size]
        corrupted_logits = forward(engine.model, corrupted.ids, tap=chain(corrupted_acts, job))
    check_finite(clean_logits[-1])
    check_finite(corrupted_logits[-1])
    target, foil = parse_target_and_foil(engine, request, clean_logits[-1], corrupted_logits[-1])
    metric = logit_difference(target, foil)
    (clean_value, _), (corrupted_value, _) = metric(clean_logits), metric(corrupted_logits)
    if method == "attribution":
        with job.turn():
            effects = attribution_patching(engine.model, clean.ids, corrupted.ids, metric).effects
        values = np.array([effects[name] for name in names])  # [n_layer + 1, n_tokens]
    else:
        values = np.zeros((n_layer + 1, n_tokens))
        for layer, name in enumerate(names):
            residuals = clean_acts[name], corrupted_acts[name]
            for positions in batches(np.flatnonzero(np.any(residuals[0] != residuals[1], axis=-1)), n_tokens):
                with job.turn():
                    logits = restored_logits(engine.model, corrupted.ids, layer, *residuals, positions, job)
                check_finite(logits)
                values[layer, positions] = [metric(row[np.newaxis])[0] - corrupted_value for row in logits]
    difference = clean_value - corrupted_value
    return {"method": method, "ids": clean.ids, "other_ids": corrupted.ids, "target": target, "foil": foil,
            "clean": round(clean_value, 5), "corrupted": round(corrupted_value, 5), "values": rounded(values, 5),
            "fractions": rounded(values / difference, 5) if difference else None,
            "names": names_of(engine, [*clean.ids, *corrupted.ids, target, *([] if foil is None else [foil])]),
            "code": comparison_code(engine, clean, corrupted, target, foil, method, difference)}


def residual_names(model: GPT2) -> list[str]:
    """The names of the residual stream before each block and after the last: n_layer + 1 stages."""
    n_layer = model.config.n_layer
    return [f"h.{layer}.resid_pre" for layer in range(n_layer)] + [f"h.{n_layer - 1}.resid_post"]


def check_memory(model: GPT2, n_tokens: int) -> None:
    """Raise ValueError if attribution needs too much memory: all arrays of two passes, and all gradients of one."""
    n_numbers = 0
    for stage in STAGES:
        n_blocks = model.config.n_layer if stage.name.startswith("h.i.") else 1
        n_numbers += 3 * n_blocks * math.prod(stage.concrete_shape(model.config, n_tokens, n_tokens, n_tokens))
    if n_numbers > MOST_COMPARED:
        raise ValueError(f"attribution can keep at most {MOST_COMPARED:,} numbers. Got {n_numbers:,}, for {n_tokens} "
                         f"tokens and {model.config.n_layer:,} layers: compare by patching, or shorten the prompts.")


def parse_target_and_foil(engine: Engine, request: Mapping[str, Any], clean_logits: np.ndarray,
                          corrupted_logits: np.ndarray) -> tuple[int, int | None]:
    """The target token and the foil, whose logit is subtracted (or None); by default the prompts' predictions."""
    target = request.get("target")
    if target is None:
        target = top_ids_of(clean_logits[np.newaxis, :n_known(engine)], 1)[0, 0]
    target = parse_token(engine, target, "target")
    if "foil" not in request:
        likeliest = top_ids_of(corrupted_logits[np.newaxis, :n_known(engine)], min(2, n_known(engine)))[0]  # [2]
        return target, next((int(token_id) for token_id in likeliest if token_id != target), None)
    return target, None if request["foil"] is None else parse_token(engine, request["foil"], "foil")


def batches(positions: np.ndarray, n_tokens: int) -> list[np.ndarray]:
    """The positions in batches of at most MOST_BATCHED tokens, and at least one position, each."""
    n_rows = max(1, MOST_BATCHED // n_tokens)
    return [positions[i:i + n_rows] for i in range(0, len(positions), n_rows)]


def restored_logits(model: GPT2, ids: Sequence[int], layer: int, clean: np.ndarray, corrupted: np.ndarray,
                    positions: np.ndarray, job: Job) -> np.ndarray:
    """The last position's logits [n_rows, vocab_size], each row with one of positions [n_rows] restored before `layer`.

    clean, corrupted: the residual stream there, [n_tokens, n_embd]. Equal to `patch("h.{layer}.resid_pre", clean,
    positions=...)` for each position, but in one batch, and without the earlier blocks, which no patch changes.
    """
    rows = np.arange(len(positions))
    residual = np.repeat(corrupted[np.newaxis], len(rows), axis=0)  # [n_rows, n_tokens, n_embd]
    residual[rows, positions] = clean[positions]
    if layer == model.config.n_layer:
        return residual_logits(model, residual[:, -1])
    rest = replace(model, h=model.h[layer:], config=replace(model.config, n_layer=model.config.n_layer - layer))
    batch = np.broadcast_to(ids, residual.shape[:2])  # [n_rows, n_tokens]
    hidden = transform(rest, batch, tap=chain(patch("h.0.resid_pre", residual), job))  # [n_rows, n_tokens, n_embd]
    return unembed(rest, hidden[:, -1])


def comparison_code(engine: Engine, clean: Prompt, corrupted: Prompt, target: int, foil: int | None,
                    method: str, difference: float) -> str:
    """A script that computes the same `values` [n_layer + 1, n_tokens] and prints the fractions.

    Without a difference, of which there are no fractions, it prints the values.
    """
    n_layer = engine.model.config.n_layer
    lines = [*first_lines(engine), f"clean = {clean.code}", f"corrupted = {corrupted.code}",
             f"metric = numpy_gpt2.logit_difference({target}, {foil})",
             f'names = [f"h.{{layer}}.resid_pre" for layer in range({n_layer})] + ["h.{n_layer - 1}.resid_post"]', ""]
    fraction = "value / (clean_value - corrupted_value)" if difference else "value"
    last = ["", "for name, row in zip(names, values):",
            f'    print(f"{{name:15}}", *(f"{{{fraction}:6.2f}}" for value in row))', ""]
    if method == "attribution":
        return "\n".join([*lines, "clean_value, corrupted_value, effects = numpy_gpt2.attribution_patching(",
                          "    model, clean, corrupted, metric)",
                          "values = [effects[name] for name in names]", *last])
    return "\n".join([*lines, "acts = numpy_gpt2.Recorder(names)",
                      "clean_value, _ = metric(numpy_gpt2.forward(model, clean, tap=acts))",
                      "corrupted_value, _ = metric(numpy_gpt2.forward(model, corrupted))", "values = []",
                      "for name in names:", "    values.append([])", "    for position in range(len(clean)):",
                      "        tap = numpy_gpt2.patch(name, acts[name], positions=position)",
                      "        value, _ = metric(numpy_gpt2.forward(model, corrupted, tap=tap))",
                      "        values[-1].append(value - corrupted_value)", *last])


# A continuation -------------------------------------------------------------------------------------------------------


def continue_text(engine: Engine, request: Mapping[str, Any], job: Job) -> dict[str, Any]:
    """Generate, sending each token with its alternatives; returns the finish reason, all ids and the text.

    `written`: ids that earlier requests generated after the prompt; `tap_of` tells which interventions reach them.
    """
    check_keys("the request", request, ["page", "prompt", "ids", "written", "interventions", "n", "temperature",
                                        "top_k", "top_p", "seed"])
    prompt = parse_text(engine, request, "prompt", "ids").ids
    written = request.get("written", [])
    ids = prompt + (parse_ids(engine, written, "written") if written != [] else [])
    interventions = parse_interventions(engine, request.get("interventions"), len(prompt))
    n = check_int("'n'", request.get("n"), 1, MOST_NEW_TOKENS)
    settings = {key: request[key] for key in ("temperature", "top_k", "top_p", "seed") if key in request}
    config = GenerationConfig(**settings)
    eos_ids = [*engine.tokenizer.eos_ids, *as_ids(engine.model.config.eos_token_id)]
    acts = Recorder("logits")
    job.expect((n + len(sources(interventions))) * engine.model.config.n_layer)
    with job.turn():
        tap = tap_of(engine, interventions, len(prompt), job)
    stream = generate_tokens(engine.model, ids, n, generation_config=config, eos_token_id=eos_ids,
                             vocab_size=n_known(engine), tap=chain(tap, acts, job))
    while True:
        with job.turn():
            token = next(stream, None)
        if token is None:
            return {"finish_reason": stream.finish_reason, "ids": ids, "text": engine.tokenizer.decode(ids)}
        job.send(token_line(engine, acts["logits"][-1, :n_known(engine)], ids, token, config))
        ids = [*ids, token]


def token_line(engine: Engine, logits: np.ndarray, ids: Sequence[int], token: int,
               config: GenerationConfig) -> dict[str, Any]:
    """A sampled token, its probability and its alternatives: logits [n_known], the ids before it."""
    probabilities = softmax(logits)  # [n_known]
    processed = process_logits(logits, np.asarray(ids), config)  # [n_known]
    drawn = np.eye(1, len(logits), token)[0] if config.temperature == 0 else softmax(processed)  # [n_known]
    likeliest = top_ids_of(logits[np.newaxis], min(N_ALTERNATIVES, len(logits)))[0].tolist()
    alternatives = likeliest if token in likeliest else [*likeliest, token]
    return {"token": token, "probability": round(float(probabilities[token]), 6),
            "alternatives": [[i, round(float(probabilities[i]), 6), round(float(drawn[i]), 6)] for i in alternatives],
            "names": names_of(engine, alternatives)}


def names_of(engine: Engine, ids: Sequence[int]) -> dict[int, str | list[int]]:
    """The text of each token, by id; its bytes where it is not whole characters."""
    return {token_id: token_name(engine.tokenizer, token_id) for token_id in sorted(set(ids))}


# Tokens ---------------------------------------------------------------------------------------------------------------


def tokenize(engine: Engine, request: Mapping[str, Any], job: Job) -> dict[str, Any]:
    """The tokens of a text, without a forward pass."""
    check_keys("the request", request, ["page", "prompt"])
    ids = parse_prompt(engine, request).ids
    return {"ids": ids, "names": names_of(engine, ids)}
