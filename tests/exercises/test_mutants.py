"""How much a check notices: right solutions with one small change each, nearly all of which must be rejected."""

import ast
import copy
import signal

import pytest

from numpy_gpt2.exercises.checking import check_function
from numpy_gpt2.exercises.course import chapter_source, definition, exercises_by_name, lookup, run_source

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs setitimer")]

OPERATORS = {ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.MatMult: ast.Mult,
             ast.Pow: ast.Mult, ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.In: ast.NotIn,
             ast.Is: ast.IsNot, ast.NotEq: ast.Eq}
ATTRIBUTES = {"weight": "bias", "bias": "weight", "c_attn": "c_proj", "c_fc": "c_proj", "ln_1": "ln_2", "wte": "wpe",
              "max": "min", "mean": "sum", "sum": "mean", "argmax": "argmin", "exp": "abs", "tanh": "sin", "k": "v",
              "n_embd": "n_inner", "n_inner": "n_embd", "vocab_size": "n_positions", "lm_head": "wte"}


def body_nodes(function):
    """The nodes of a function's body, but for its docstring and the texts of errors."""
    for statement in function.body[1:]:
        for node in ast.walk(statement):
            if isinstance(node, (ast.JoinedStr, ast.Raise)):
                for inside in ast.walk(node):
                    inside.is_text = True
            if not hasattr(node, "is_text"):
                yield node


def changes_of(node):
    """What may be changed about a node: names, each with a function that makes the change."""
    if isinstance(node, ast.BinOp) and type(node.op) in OPERATORS:
        yield "operator", lambda n: setattr(n, "op", OPERATORS[type(n.op)]())
    if isinstance(node, ast.BinOp) and isinstance(node.op, (ast.Sub, ast.Div, ast.MatMult, ast.Pow)):
        yield "operands", lambda n: n.__dict__.update(left=n.right, right=n.left)
    if isinstance(node, ast.BinOp):
        yield "only the left", lambda n: n.__dict__.update(right=ast.Constant(1), op=ast.Mult())
    if isinstance(node, ast.AugAssign) and type(node.op) in OPERATORS:
        yield "operator", lambda n: setattr(n, "op", OPERATORS[type(n.op)]())
    if isinstance(node, ast.Compare) and type(node.ops[0]) in OPERATORS:
        yield "comparison", lambda n: n.ops.__setitem__(0, OPERATORS[type(n.ops[0])]())
    if isinstance(node, ast.Constant) and type(node.value) in (int, float):
        yield "one more", lambda n: setattr(n, "value", n.value + 1)
        yield "negative", lambda n: setattr(n, "value", -n.value - 1 if type(n.value) is int else -n.value)
    if isinstance(node, ast.Attribute) and node.attr in ATTRIBUTES:
        yield "attribute", lambda n: setattr(n, "attr", ATTRIBUTES[n.attr])
    if isinstance(node, ast.Call) and len(node.args) > 1 and ast.unparse(node.func) != "min":
        yield "arguments", lambda n: n.args.__setitem__(slice(0, 2), n.args[1::-1])
    if isinstance(node, ast.Call) and node.args and not isinstance(node.func, ast.Attribute):
        yield "only the argument", lambda n: n.__dict__.update(func=ast.Name("first", ast.Load()))
    if isinstance(node, ast.Return) and isinstance(node.value, ast.Tuple) and len(node.value.elts) == 2:
        yield "order", lambda n: n.value.elts.reverse()
    if isinstance(node, ast.Return) and ast.unparse(node) != "return None":
        yield "nothing returned", lambda n: setattr(n, "value", None)
    if isinstance(node, ast.If):
        yield "never", lambda n: setattr(n, "test", ast.Constant(False))
        yield "always", lambda n: setattr(n, "test", ast.Constant(True))


def mutants(exercise):
    """(what was changed, function) for each change to an exercise's solution."""
    tree = ast.parse(chapter_source(exercise.chapter))
    nodes = list(body_nodes(definition(tree, exercise.path)))
    for i, node in enumerate(nodes):
        for name, _ in changes_of(node):
            changed = copy.deepcopy(tree)
            target = list(body_nodes(definition(changed, exercise.path)))[i]
            before = ast.unparse(target)
            dict(changes_of(target))[name](target)
            what = f"{exercise.name} line {node.lineno}: {before}  ->  {ast.unparse(target)}"
            source = "def first(x, *others):\n    return x\n\n\n" + ast.unparse(ast.fix_missing_locations(changed))
            yield what, lookup(run_source(source, "mutant", exercise.file), exercise.path)


def interrupt(*_):
    raise TimeoutError


def is_rejected(exercise, function):
    """Whether a check fails; one that takes seconds of the processor's time is interrupted, which fails too."""
    signal.setitimer(signal.ITIMER_VIRTUAL, 3, 1)  # again each second: a case that is interrupted ends only itself
    try:
        return check_function(exercise, function).state != "passed"
    except TimeoutError:
        return True
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)


def test_at_least_97_percent_of_300_mutants_are_rejected():
    before = signal.signal(signal.SIGVTALRM, interrupt)
    made = [(exercise, what, function) for exercise in exercises_by_name().values()
            for what, function in mutants(exercise)]
    survivors = [what for exercise, what, function in made if not is_rejected(exercise, function)]
    signal.signal(signal.SIGVTALRM, before)
    assert len(made) >= 300
    print(f"{len(made)} mutants; accepted:", *survivors, sep="\n")
    assert len(survivors) <= 0.03 * len(made)
