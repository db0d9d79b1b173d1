"""A model with some weights replaced shares all the others, and leaves the old model as it was."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from numpy_gpt2 import forward, named_parameters, replace_weights
from strategies import passes


@given(passes(), st.data())
def test_a_model_with_a_weight_replaced_shares_all_the_others(drawn, data):
    model, ids = drawn
    before = dict(named_parameters(model))
    name = data.draw(st.sampled_from(sorted(before)))
    new = before[name] + 1
    replaced = replace_weights(model, {name: new})
    after = dict(named_parameters(replaced))
    assert after.keys() == before.keys()
    assert after[name] is new
    assert all(after[other] is before[other] for other in before if other != name)
    assert (replaced.lm_head is replaced.wte) == (model.lm_head is model.wte)
    np.testing.assert_array_equal(forward(replace_weights(replaced, {name: before[name]}), ids), forward(model, ids))


@given(passes())
def test_what_does_not_fit_is_refused_by_name(drawn):
    model, _ = drawn
    with pytest.raises(ValueError, match="no parameter 'h.0.attn.c_atn.weight'; the nearest is 'h.0.attn.c_at"):
        replace_weights(model, {"h.0.attn.c_atn.weight": model.wte})
    with pytest.raises(ValueError, match="ln_f.bias must have shape .*, float64. Got .*, float64"):
        replace_weights(model, {"ln_f.bias": model.wte})
    with pytest.raises(ValueError, match="ln_f.bias must have shape .*, float64. Got .*, float32"):
        replace_weights(model, {"ln_f.bias": model.ln_f.bias.astype(np.float32)})
