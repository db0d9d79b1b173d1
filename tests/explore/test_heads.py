"""Laws of the heads' names: patterns made by hand get the names they were made for, with their scores."""

import numpy as np
import pytest

from numpy_gpt2.explore.heads import MIN_SCORE, head_scores, kinds_of_keys, named_heads

REPEATED = [7, 1, 2, 3, 4, 5, 6, 8, 9, 1, 2, 3, 4, 5, 6, 8]  # position 0 is not repeated; queries count from 8 on
N = len(REPEATED)


def looking(weight, target):
    """A head whose every row has `weight` on target(query), if there is one, and the rest on itself."""
    pattern = np.eye(N)
    for query in range(N):
        key = target(query)
        if key is not None and 0 <= key < query:
            pattern[query, query] = 1 - weight
            pattern[query, key] += weight
    return pattern


def duplicate(query):
    return query - 8 if query >= 9 else None


HEADS = {
    "previous token": lambda query: query - 1,
    "first token": lambda query: 0,
    "duplicate token": duplicate,
    "induction": lambda query: query - 7 if query >= 9 else None,
}


@pytest.mark.parametrize("weight", [1, 0.7, MIN_SCORE + 0.01])
@pytest.mark.parametrize("kind", HEADS)
def test_a_head_made_for_a_kind_gets_its_name_with_its_mean_weight(kind, weight):
    silent, made = np.eye(N), looking(weight, HEADS[kind])
    head, = named_heads([np.stack([silent]), np.stack([silent, made])], REPEATED)
    assert (head.layer, head.head, head.kind) == (1, 1, kind)
    assert head.score == pytest.approx(weight)
    assert head.n_rows == {"previous token": 8, "first token": 8, "duplicate token": 7, "induction": 7}[kind]


def test_a_weak_head_an_even_one_and_one_that_looks_two_back_get_no_name():
    even = np.tril(np.ones((N, N))) / np.arange(1, N + 1)[:, np.newaxis]
    pattern = np.stack([looking(MIN_SCORE - 0.01, HEADS["previous token"]), even, looking(1, lambda query: query - 2)])
    assert named_heads([pattern], REPEATED) == []


def test_too_few_rows_give_no_name():
    previous = np.eye(14)[[0, *range(13)]][np.newaxis]
    assert named_heads([previous], list(range(14)))[0].n_rows == 6
    assert named_heads([previous[:, :13, :13]], list(range(13))) == []
    assert named_heads([np.ones((1, 1, 1))], [1]) == []


def test_weights_on_all_earlier_copies_count_together():
    ids = [9, 1, 2, 10, 11, 12, 13, 14, 1, 3, 1]
    pattern = np.zeros((1, 11, 11))
    pattern[0, 10, [1, 8]] = 0.25, 0.5
    pattern[0, 8, 1] = 0.75
    assert head_scores(pattern, kinds_of_keys(ids)["duplicate token"]).tolist() == [0.75]


def test_a_row_where_two_kinds_look_at_one_key_counts_for_neither():
    ids = [9, 10, 11, 12, 13, 14, 15, 1, 2, 1]  # row 9: what came after the last 1 is the previous token
    kinds = kinds_of_keys(ids)
    assert [kind for kind, mask in kinds.items() if mask[9].any()] == ["first token", "duplicate token"]
    assert [kind for kind, mask in kinds.items() if mask[8].any()] == ["previous token", "first token"]
    assert not any(mask[:8].any() for mask in kinds.values())
