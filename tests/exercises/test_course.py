"""The course holds together: the engine and the solutions obey each law, stubs do not, known mistakes are named."""

import ast
import doctest
import inspect
from string import Formatter

import numpy as np
import pytest

from numpy_gpt2.exercises.checking import check_function
from numpy_gpt2.exercises.course import (CHAPTERS, LANGUAGES, chapter_source, chapter_titles, exercises_by_name, lookup,
                                         mistaken_function, run_source, solutions, stub_source)
from numpy_gpt2.exercises.laws import LAWS
from numpy_gpt2.exercises.messages import MESSAGES

EXERCISES = exercises_by_name()
MISTAKES = [(name, i) for name in EXERCISES for i in range(len(EXERCISES[name].mistakes))]


def solution(name):
    return lookup(solutions(EXERCISES[name].chapter), EXERCISES[name].path)


@pytest.mark.parametrize("name", EXERCISES)
def test_the_engine_passes(name):
    verdict = check_function(EXERCISES[name], LAWS[name].reference)
    assert (verdict.state, verdict.message) == ("passed", "passed")


@pytest.mark.parametrize("name", EXERCISES)
def test_the_solution_passes(name):
    verdict = check_function(EXERCISES[name], solution(name))
    assert (verdict.state, verdict.message) == ("passed", "passed")


@pytest.mark.parametrize("name", EXERCISES)
def test_a_stub_is_not_written(name):
    stubs = run_source(stub_source(EXERCISES[name].chapter), "stubs", "stubs.py")
    assert check_function(EXERCISES[name], lookup(stubs, EXERCISES[name].path)).state == "not written"


@pytest.mark.parametrize("name", EXERCISES)
def test_a_stub_has_the_engines_arguments(name):
    engines, stubs = (inspect.signature(function).parameters.values()
                      for function in (LAWS[name].reference, solution(name)))
    assert [(p.name, p.kind, p.default) for p in stubs] == [(p.name, p.kind, p.default) for p in engines]


@pytest.mark.parametrize("name", EXERCISES)
def test_an_exercise_bears_its_functions_name(name):
    assert LAWS[name].reference.__name__ == name


@pytest.mark.parametrize("name", EXERCISES)
def test_a_stub_has_a_worked_example(name):
    assert ">>> " in solution(name).__doc__


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_the_worked_examples_are_right(chapter):
    assert doctest.testmod(solutions(chapter)).failed == 0


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_a_stub_gives_no_solution_away(chapter):
    exercises = [exercise for exercise in EXERCISES.values() if exercise.chapter == chapter]
    stubs = stub_source(chapter)
    assert stubs.count("    raise NotImplementedError\n") == len(exercises)
    assert len(stubs.splitlines()) < len(chapter_source(chapter).splitlines()) + 1
    ast.parse(stubs)


@pytest.mark.parametrize("name, i", MISTAKES)
def test_a_known_mistake_is_rejected_and_named(name, i):
    mistake = EXERCISES[name].mistakes[i]
    function = mistaken_function(EXERCISES[name], mistake)
    language = LANGUAGES[i % 2]
    verdict = check_function(EXERCISES[name], function, language)
    assert (verdict.state, verdict.message.split("\n")[0]) == ("wrong", mistake.text[language])


@pytest.mark.parametrize("name", EXERCISES)
def test_every_exercise_knows_three_mistakes_and_three_hints(name):
    exercise = EXERCISES[name]
    assert len(exercise.mistakes) >= 3
    assert len(exercise.hints) == 3
    texts = [exercise.title, *exercise.hints, *(mistake.text for mistake in exercise.mistakes)]
    assert all(text.keys() == set(LANGUAGES) and all(text.values()) for text in texts)


def test_every_exercise_has_a_law_and_every_law_an_exercise():
    assert list(LAWS) == list(EXERCISES)
    assert all(set(title) == set(LANGUAGES) for title in chapter_titles().values())


@pytest.mark.parametrize("name", EXERCISES)
def test_the_cases_repeat_and_some_have_batch_axes(name):
    law = LAWS[name]
    one, other = law.seeded_cases(name), law.seeded_cases(name)
    arrays = [[value for value in args if isinstance(value, np.ndarray)] for args in one]
    others = [[value for value in args if isinstance(value, np.ndarray)] for args in other]
    assert all(np.array_equal(a, b, equal_nan=a.dtype.kind == "f")
               for args, args_2 in zip(arrays, others) for a, b in zip(args, args_2))
    if any(arrays) and law.batch_of(one[-1]) != ():
        assert not law.has_batch(one[0])


def test_the_languages_say_the_same_things():
    assert MESSAGES["en"].keys() == MESSAGES["vi"].keys()
    for key in MESSAGES["en"]:
        fields = [{field for _, field, _, _ in Formatter().parse(MESSAGES[language][key]) if field}
                  for language in LANGUAGES]
        assert fields[0] == fields[1], key
