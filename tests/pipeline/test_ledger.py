"""The ledger: where every dispatched group is."""

from __future__ import annotations

import json

import pytest

from dapo_openrlhf.pipeline.ledger import Ledger, LedgerImbalance


def busy_ledger() -> Ledger:
    """20 dispatched: 5 trained, 2 in training, 3 + 1 dropped, 2 + 1 failed, hence 6 in flight or ready."""
    ledger = Ledger()
    ledger.dispatched = 20
    ledger.trained = 5
    ledger.training = 2
    ledger.dropped["all_wrong"] += 3
    ledger.dropped["all_right"] += 1
    ledger.failed["generate_timeout"] += 2
    ledger.failed["verifier_error"] += 1
    return ledger


def test_an_empty_ledger_balances() -> None:
    Ledger().check(in_flight=0, ready=0)


def test_balanced_whatever_the_split_of_the_rest() -> None:
    for in_flight in range(7):
        busy_ledger().check(in_flight=in_flight, ready=6 - in_flight)


@pytest.mark.parametrize(("in_flight", "ready"), [(3, 2), (2, 3), (4, 3), (0, 0), (6, 6)])
def test_a_lost_or_doubled_group_is_found(in_flight: int, ready: int) -> None:
    with pytest.raises(LedgerImbalance, match="do not add up"):
        busy_ledger().check(in_flight=in_flight, ready=ready)


@pytest.mark.parametrize("counter", ["dispatched", "trained", "training"])
def test_every_counter_takes_part(counter: str) -> None:
    ledger = busy_ledger()
    setattr(ledger, counter, getattr(ledger, counter) + 1)
    with pytest.raises(LedgerImbalance):
        ledger.check(in_flight=4, ready=2)


@pytest.mark.parametrize("counter", ["dropped", "failed"])
def test_every_reason_takes_part(counter: str) -> None:
    ledger = busy_ledger()
    getattr(ledger, counter)["a new reason"] += 1
    with pytest.raises(LedgerImbalance, match="a new reason"):
        ledger.check(in_flight=4, ready=2)


def test_the_message_shows_the_counters() -> None:
    with pytest.raises(LedgerImbalance, match=r"'dispatched': 20.*'generate_timeout': 2.*'in_flight': 1, 'ready': 0"):
        busy_ledger().check(in_flight=1, ready=0)


def test_snapshot_holds_everything_and_is_json() -> None:
    snapshot = busy_ledger().snapshot(in_flight=4, ready=2)
    assert json.loads(json.dumps(snapshot)) == {
        "dispatched": 20,
        "trained": 5,
        "training": 2,
        "dropped": {"all_wrong": 3, "all_right": 1},
        "failed": {"generate_timeout": 2, "verifier_error": 1},
        "in_flight": 4,
        "ready": 2,
    }


def test_snapshot_is_a_copy() -> None:
    ledger = busy_ledger()
    snapshot = ledger.snapshot(in_flight=4, ready=2)
    ledger.dropped["all_wrong"] += 1
    assert snapshot["dropped"] == {"all_wrong": 3, "all_right": 1}
