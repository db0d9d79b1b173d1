"""OpenAI's weights give the values that others have published: pytest -m pretrained (needs the hub, 548 MB once)."""

import numpy as np
import pytest

from numpy_gpt2 import HubError, forward, generate_tokens, load, stream_text

pytestmark = pytest.mark.pretrained

GREEDY_IDS = {
    "transformers' tests": (
        [464, 3290],
        [373, 1043, 287, 257, 2214, 1474, 262, 16246, 286, 2688, 290, 2688, 27262, 13, 198, 198, 464, 3290]),
    "fastGPT, its example": (
        [36235, 39141, 18765, 1143, 326, 9061, 561, 530, 1110, 1716, 845, 3665, 11, 475, 772, 339, 714, 407, 5967],
        [703, 484, 561, 307, 1498, 284, 466, 523, 13, 198, 198, 1, 40, 892, 326, 262, 749, 1593, 1517, 318]),
    "fastGPT, its test": (
        [15017, 6033, 318],
        [257, 1748, 286, 517, 621, 352, 1510, 661]),
}
PICOGPT_PROMPT = "Alan Turing theorized that computers would one day become"
PICOGPT_TEXT = (" the most powerful machines on the planet.\n\nThe computer is a machine that can perform complex "
                "calculations, and it can perform these calculations in a way that is very similar to the human brain.")
TRANSFORMER_LENS_LOSS = 5.331855773925781  # of "Hello world!" after the end of text, a mean over tokens


@pytest.fixture(scope="module")
def small():
    try:
        return load("small")
    except HubError as error:
        pytest.skip(f"OpenAI's weights are out of reach: {error}")


@pytest.mark.parametrize("source", GREEDY_IDS)
def test_greedy_ids_are_the_published_ones(small, source):
    model, _ = small
    prompt, published = GREEDY_IDS[source]
    assert list(generate_tokens(model, prompt, len(published), temperature=0)) == published


def test_the_greedy_text_is_that_of_picogpt(small):
    stream = stream_text(*small, PICOGPT_PROMPT, 40, temperature=0)
    assert "".join(stream) == PICOGPT_TEXT
    assert len(stream.ids) == 40


def test_the_loss_is_that_of_transformer_lens(small):
    model, tokenizer = small
    ids = [tokenizer.eot_id, *tokenizer.encode("Hello world!")]
    logits = forward(model, ids)[:-1].astype("float64")
    log_probs = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    loss = -log_probs[np.arange(len(ids) - 1), ids[1:]].mean()
    assert loss == pytest.approx(TRANSFORMER_LENS_LOSS, abs=1e-4)
