"""What a call needs of limits: by its task, its arguments and its headers."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from celery_budgets.model.demands import CallLimits, key_problems, limit_problems, weight_problems
from celery_budgets.model.limit import Limit

KNOWN = {
    "openai": Limit("openai", 20, rate="300/m"),  # a burst of 5
    "tenant": Limit("tenant", 2, key="tenant_id"),
    "size": Limit("size", 2, key=lambda args, kwargs: len(args[0])),
}


def a_task(run=lambda tenant_id, path=None: None, limits=("openai", "tenant"), weight=1):
    return SimpleNamespace(name="t", run=run, limits=limits, weight=weight)


def needed(task, args=(), kwargs=None, tell=lambda limit, error: None, **headers):
    headers = {f"budgets_{name}": value for name, value in headers.items()}
    demands = CallLimits(task, KNOWN).demands(args, kwargs or {}, headers, tell)
    return [(demand.limit.name, demand.key, demand.weight) for demand in demands]


@pytest.mark.parametrize(
    ("run", "args", "kwargs", "key"),
    [
        (lambda tenant_id, path: None, ("acme", "p"), {}, "acme"),
        (lambda path, tenant_id: None, ("p",), {"tenant_id": 7}, "7"),
        (lambda path, *, tenant_id: None, ("p",), {"tenant_id": "acme"}, "acme"),
        (lambda path, tenant_id="all": None, ("p",), {}, "all"),
        (lambda path, **more: None, ("p",), {"tenant_id": "acme"}, "acme"),
    ],
)
def test_a_key_is_found_by_the_signature(run, args, kwargs, key):
    """Positional, by keyword, or the default."""
    assert needed(a_task(run, ["tenant"]), args, kwargs) == [("tenant", key, 1)]


def test_a_key_may_be_a_function():
    """Of the arguments."""
    assert needed(a_task(limits=["size"]), ("acme",)) == [("size", "4", 1)]


def test_a_key_of_the_sender_wins():
    """A header, from whoever has no task."""
    task = a_task(limits=["tenant"])
    assert needed(task, ("acme",), limit_keys={"tenant": "other"}) == [("tenant", "other", 1)]
    assert needed(task, ("acme",), limit_keys=["no mapping"]) == [("tenant", "acme", 1)]


def test_who_has_no_key_is_told_of():
    """And so is a function that raises; both wait under one key."""
    told = []

    def tell(limit, error):
        told.append((limit, type(error)))

    assert needed(a_task(limits=["tenant"]), tell=tell) == [("tenant", "", 1)]
    assert needed(a_task(limits=["size"]), tell=tell) == [("size", "", 1)]
    assert told == [("tenant", type(None)), ("size", IndexError)]


@pytest.mark.parametrize(
    ("own", "header", "weights"),
    [
        (1, None, [1, 1]),
        (2, None, [2, 2]),
        ({"openai": 3}, None, [3, 1]),
        (2, 1, [1, 1]),
        (2, {"openai": 4}, [4, 2]),
        (2, "two", [2, 2]),
        (1, 100, [5, 2]),
    ],
)
def test_a_weight_is_that_of_the_sender_or_of_the_task(own, header, weights):
    """A foreign sender's is as high as the limit ever grants at most."""
    task = a_task(weight=own)
    headers = {} if header is None else {"weight": header}
    assert [weight for *_, weight in needed(task, ("acme",), **headers)] == weights


@pytest.mark.parametrize(
    ("task", "words"),
    [
        (a_task(limits=["opnai"]), "limit 'opnai' is not known; did you mean 'openai'?"),
        (
            a_task(lambda tenant, path: None, ["tenant"]),
            r"its key 'tenant_id' is no argument of the task \(its arguments: tenant, path\); add",
        ),
        (a_task(limits=["openai"], weight=6), "weight 6 is above what limit 'openai' ever grants"),
        (a_task(limits=["tenant"], weight=3), "its concurrency of 2; lower the weight, or raise"),
    ],
)
def test_what_cannot_be_held_is_told(task, words):
    """With its object, its numbers and its remedy."""
    (problem,) = limit_problems(task, KNOWN)
    assert problem.startswith("task 't': ")
    with pytest.raises(ValueError, match=words):
        raise ValueError(problem)


@pytest.mark.parametrize("weight", [0, -1, True, 1.5, "2", {"openai": 0}])
def test_a_weight_is_a_whole_number(weight):
    """Of 1 or more."""
    (problem,) = weight_problems("it", weight, ["openai"], KNOWN)
    assert "must be a whole number of 1 or more" in problem


def test_a_weight_or_a_key_of_another_limit_is_told():
    """With the nearest of those that it has."""
    (problem,) = weight_problems("it", {"opnai": 2}, ["openai"], KNOWN)
    assert problem == (
        "it: weight: 'opnai' is no limit that it names; did you mean 'openai'? known: openai"
    )
    (problem,) = key_problems("it", {"openai": "x"}, ["openai", "tenant"], KNOWN)
    assert problem.startswith("it: limit_keys: 'openai' is no limit with keys that it names")
    (problem,) = key_problems("it", "acme", ["tenant"], KNOWN)
    assert "must be a mapping" in problem
    assert [*key_problems("it", {"tenant": "x"}, ["tenant"], KNOWN)] == []
