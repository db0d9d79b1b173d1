"""The gradients of PyTorch's autograd, live, on random checkpoints: pytest -m parity (needs the extra `parity`)."""

import numpy as np
import pytest

from numpy_gpt2 import Recorder, backpropagate, forward, load_model, loss_and_gradients, named_parameters
from numpy_gpt2.scoring import LEFT_OUT

pytestmark = pytest.mark.parity

torch = pytest.importorskip("torch", reason="needs the extra `parity`")
transformers = pytest.importorskip("transformers", reason="needs the extra `parity`")

TOLERANCE = {"float32": 1e-5, "float64": 1e-10}  # of the largest number of each gradient

each_dtype = pytest.mark.parametrize("dtype", ["float32", "float64"])
each_activation = pytest.mark.parametrize("activation", ["gelu_new", "gelu", "relu"])


@pytest.fixture(autouse=True)
def same_weights_in_every_run():
    torch.manual_seed(0)  # for what transformers draws when it makes a model


@pytest.fixture(autouse=True, scope="module")
def quiet_and_frugal():
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    yield
    torch.set_num_threads(threads)


def both(folder, seed, dtype, **settings):
    """A random checkpoint in transformers, every bias and gain of it at work, and the same in ours."""
    rng = np.random.default_rng(seed)
    n_head = int(rng.integers(1, 5))
    config = transformers.GPT2Config(
        vocab_size=int(rng.integers(20, 300)), n_positions=300, n_embd=n_head * int(rng.integers(2, 17)),
        n_head=n_head, n_layer=int(rng.integers(1, 5)), n_inner=int(rng.integers(5, 200)),
        layer_norm_epsilon=float(rng.choice([1e-5, 1e-3])), bos_token_id=0, eos_token_id=0, attn_pdrop=0.0,
        embd_pdrop=0.0, resid_pdrop=0.0, **settings)
    theirs = transformers.GPT2LMHeadModel(config).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            size = 1 / parameter.shape[0] ** 0.5 if ".h." in name and parameter.ndim == 2 else 0.25
            parameter.add_(size * torch.randn(parameter.shape, generator=generator))
    theirs.save_pretrained(folder)
    return theirs.to(getattr(torch, dtype)), load_model(folder, dtype=dtype)


def logits_of(theirs, ids):
    return theirs(torch.as_tensor(np.atleast_2d(ids))).logits


def assert_same_gradients(gradients, theirs, dtype):
    expected = {name.removeprefix("transformer."): parameter.grad.numpy()
                for name, parameter in theirs.named_parameters()}
    ours = dict(named_parameters(gradients))
    assert ours.keys() == expected.keys()
    for name, gradient in ours.items():
        assert gradient.dtype == expected[name].dtype == dtype
        largest = np.abs(expected[name]).max()
        assert np.abs(gradient - expected[name]).max() <= TOLERANCE[dtype] * largest, name


@each_dtype
@each_activation
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("seed, shape", [(0, (40,)), (1, (3, 17)), (2, (2, 300)), (3, (1, 1))])
def test_loss_and_gradients_equal_autograd(tmp_path, seed, shape, tied, activation, dtype):
    theirs, ours = both(tmp_path, seed, dtype, tie_word_embeddings=tied, activation_function=activation)
    rng = np.random.default_rng(seed)
    ids, targets = rng.integers(ours.config.vocab_size, size=(2, *shape))
    targets[rng.random(shape) < 0.3] = LEFT_OUT
    targets[..., -1] = 1
    loss, gradients = loss_and_gradients(ours, ids, targets)
    expected = torch.nn.functional.cross_entropy(logits_of(theirs, ids).flatten(0, 1),
                                                 torch.as_tensor(np.atleast_2d(targets)).flatten())
    expected.backward()
    assert loss == pytest.approx(expected.item(), rel=1e-6 if dtype == "float32" else 1e-12)
    assert_same_gradients(gradients, theirs, dtype)


def test_the_default_targets_are_those_of_transformers(tmp_path):
    theirs, ours = both(tmp_path, 5, "float32")  # transformers computes its loss in float32 whatever the model's type
    ids = np.random.default_rng(0).integers(ours.config.vocab_size, size=(2, 30))
    loss, gradients = loss_and_gradients(ours, ids)
    expected = theirs(torch.as_tensor(ids), labels=torch.as_tensor(ids)).loss
    expected.backward()
    assert loss == pytest.approx(expected.item(), rel=1e-6)
    assert_same_gradients(gradients, theirs, "float32")


@each_dtype
def test_the_gradient_of_a_logit_difference_equals_autograd(tmp_path, dtype):
    theirs, ours = both(tmp_path, 6, dtype)
    ids = np.random.default_rng(0).integers(ours.config.vocab_size, size=25)
    acts = Recorder()
    d_logits = np.zeros_like(forward(ours, ids, tap=acts))
    d_logits[-1, 3], d_logits[-1, 7] = 1, -1
    gradients = backpropagate(ours, ids, acts, d_logits)
    logits = logits_of(theirs, ids)[0, -1]
    (logits[3] - logits[7]).backward()
    assert_same_gradients(gradients, theirs, dtype)
