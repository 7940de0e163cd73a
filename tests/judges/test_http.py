"""The client against a real server that misbehaves in every way it can think of."""

import json
import logging
import pickle
import random
import socket
import threading
import time
import traceback
from dataclasses import replace
from email.utils import formatdate
from itertools import pairwise

import pytest
from misbehaving_server import TROUBLES, Answer, serving

from repnoise.errors import RepnoiseError
from repnoise.judges.http import JsonClient
from repnoise.judges.service import Limits, Patience, Secret, Service, address_from, host_of, number_from

KEY = "toad-4f1c8e-key-of-the-old-well"
QUICK = Patience(first_delay=0.001, longest_delay=0.01, deadline=10)


@pytest.fixture(autouse=True)
def key(monkeypatch):
    monkeypatch.setenv("VILLAGE_KEY", KEY)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    return KEY


def client_of(address, patience=QUICK, fatal=lambda _status, _data: "", **limits):
    secret = Secret("VILLAGE_KEY")
    service = Service(
        name="The village oracle",
        address=f"{address}/ask",
        address_variable="VILLAGE_URL",
        key=secret,
        sign=secret.signing("Authorization", "Bearer "),
        budget_variable="VILLAGE_BUDGET",
        fatal=fatal,
        tokens=lambda data: data.get("tokens", 0),
    )
    return JsonClient(service, Limits(**{"concurrency": 4} | limits), patience)


def bodies(count):
    return [json.dumps({"n": n}).encode() for n in range(count)]


def ask(client, count):
    """Replies by index, and the error that ended them, if any."""
    replies, error = {}, None
    try:
        for index, reply in client.ask(bodies(count)):
            assert index not in replies
            replies[index] = reply
    except RepnoiseError as stop:
        error = stop
    return replies, error


def good(body, _tries=0):
    return Answer({"value": body["n"]})


def test_every_body_is_asked_until_it_is_answered_and_never_after_it():
    troubles = list(TROUBLES.values())

    def plan(body, tries):
        return troubles[(body["n"] + 5 * tries) % len(troubles)] if tries < 2 else good(body)

    with serving(plan) as server:
        replies, error = ask(client_of(server.address, replace(QUICK, deadline=0.6), concurrency=8), 2 * len(troubles))
    assert error is None
    assert {n: reply.data for n, reply in replies.items()} == {n: {"value": n} for n in range(2 * len(troubles))}
    assert set(server.asked.values()) == {3}


@pytest.mark.parametrize("trouble", TROUBLES)
def test_a_body_that_is_never_answered_ends_with_its_problem_while_others_are_answered(trouble):
    patience = replace(QUICK, attempts=2, deadline=10 if "slow" not in trouble else 0.4)
    with serving(lambda body, _tries: TROUBLES[trouble] if body["n"] == 1 else good(body)) as server:
        replies, error = ask(client_of(server.address, patience), 3)
    assert error is None and sorted(replies) == [0, 1, 2]
    assert replies[1].problem.startswith("no answer after 2 attempts; the last time: ")
    assert not replies[1].problem.endswith(": ") and server.asked[bodies(2)[1]] == 2


def test_a_server_that_answers_nothing_is_given_up_with_one_sentence_and_no_verdicts():
    with serving(lambda _body, _tries: TROUBLES["internal error"]) as server:
        replies, error = ask(client_of(server.address), 100)
        alone, error_alone = ask(client_of(server.address), 1)
    assert replies == alone == {}
    for told in (str(error), str(error_alone)):
        assert "gives no answer (no answer after 7 attempts; the last time: status 500)" in told
        assert "VILLAGE_URL" in told and "is kept" in told
    assert len(server.asked) < 15  # Not a hundred texts with seven attempts each.


def test_a_server_that_goes_away_leaves_what_it_had_answered():
    def plan(body, _tries):
        return good(body) if body["n"] < 10 else TROUBLES["hung up"]

    with serving(plan) as server:
        replies, error = ask(client_of(server.address, concurrency=1), 30)
    assert sorted(replies) == list(range(10)) and "gives no answer" in str(error)
    assert not any(reply.problem for reply in replies.values())


def test_texts_that_a_server_failed_at_before_it_went_away_are_left_for_the_next_run():
    def plan(body, _tries):
        return TROUBLES["unavailable"] if body["n"] else Answer({"value": 0}, delay=0.3)

    with serving(plan) as server:
        replies, error = ask(client_of(server.address, replace(QUICK, attempts=1), concurrency=6), 6)
    assert sorted(replies) == [0] and "gives no answer" in str(error)


def test_nobody_at_the_address_is_one_sentence():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # Bound and not listening: connections are refused.
        replies, error = ask(client_of(f"http://127.0.0.1:{taken.getsockname()[1]}"), 2)
    assert replies == {} and "the connection failed" in str(error) and "VILLAGE_URL" in str(error)


@pytest.mark.parametrize("how", ["seconds", "date"])
def test_a_server_that_asks_for_a_pause_gets_it_from_everybody(how):
    # A date has whole seconds, so two of them make a pause of one second at the least.
    value = "0.4" if how == "seconds" else formatdate(time.time() + 2, usegmt=True)

    def plan(body, tries):
        return Answer({}, 429, (("Retry-After", value),)) if body["n"] == 0 and tries == 0 else good(body)

    with serving(plan) as server:
        replies, error = ask(client_of(server.address, concurrency=1), 3)
    assert error is None and len(replies) == 3
    assert server.times[1] - server.times[0] > 0.35


def test_a_pause_of_an_hour_ends_the_run_instead():
    with serving(lambda _body, _tries: Answer({}, 429, (("Retry-After", "3600"),))) as server:
        replies, error = ask(client_of(server.address), 5)
    assert replies == {} and "come back in 3600 seconds" in str(error) and error.exit_code == 1


def test_no_more_than_so_many_requests_a_second_are_sent():
    with serving(good) as server:
        ask(client_of(server.address, per_second=20), 5)
    assert all(later - sooner > 0.04 for sooner, later in pairwise(sorted(server.times)))


def test_as_many_requests_as_allowed_are_under_way_and_no_more():
    together = threading.Barrier(4)

    def plan(body, _tries):
        together.wait(timeout=5)  # Breaks, and with it the request, unless four are here at once.
        return good(body)

    with serving(plan) as server:
        replies, error = ask(client_of(server.address), 12)
    assert error is None and len(replies) == 12 and server.most == 4
    assert set(server.asked.values()) == {1}


@pytest.mark.parametrize("status", [400, 413, 422, 451])
def test_what_a_server_says_about_one_text_is_told_and_not_asked_again(status):
    with serving(lambda body, _tries: Answer({"why": "too long"}, status) if body["n"] else good(body)) as server:
        replies, error = ask(client_of(server.address), 2)
    assert error is None and (replies[1].status, replies[1].data) == (status, {"why": "too long"})
    assert set(server.asked.values()) == {1}


@pytest.mark.parametrize("status", [401, 403])
def test_a_wrong_key_is_one_sentence_that_names_its_variable(status):
    with serving(lambda _body, _tries: Answer({"error": f"wrong key {KEY}"}, status)) as server:
        replies, error = ask(client_of(server.address), 50)
    told = str(error)
    assert replies == {} and "VILLAGE_KEY" in told and told.count(". ") == 0 and KEY not in told
    assert len(server.asked) <= 4


@pytest.mark.parametrize("status", [301, 307, 404, 405])
def test_a_wrong_address_is_one_sentence_and_a_redirection_does_not_get_the_key(status):
    with (
        serving(good) as elsewhere,
        serving(lambda _b, _t: Answer({}, status, (("Location", f"{elsewhere.address}/ask"),))) as server,
    ):
        replies, error = ask(client_of(server.address), 3)
    assert replies == {} and "VILLAGE_URL" in str(error) and not elsewhere.headers


def test_what_is_under_way_when_something_ends_everything_is_still_received():
    together = threading.Barrier(4)

    def plan(body, _tries):
        together.wait(timeout=5)
        return Answer({"value": body["n"]}, delay=0.1) if body["n"] else Answer({}, 401)

    with serving(plan) as server:
        replies, error = ask(client_of(server.address), 50)
    assert sorted(replies) == [1, 2, 3] and "VILLAGE_KEY" in str(error)
    assert len(server.asked) == 4


def test_a_fault_that_holds_for_every_text_ends_everything():
    def fatal(status, data):
        return "has closed for the winter." if data.get("closed") else ""

    with serving(lambda _body, _tries: Answer({"closed": True}, 429)) as server:
        replies, error = ask(client_of(server.address, fatal=fatal), 20)
    assert replies == {} and str(error).startswith("The village oracle has closed for the winter.")
    assert set(server.asked.values()) == {1}


def test_a_spent_budget_stops_and_the_next_run_goes_on_where_it_was():
    with serving(good) as server:
        replies, error = ask(client_of(server.address, requests=7), 20)
        assert len(replies) == 7 and sum(server.asked.values()) == 7
        assert "budget of 7 requests" in str(error) and "VILLAGE_BUDGET" in str(error) and "7 answers" in str(error)
        rest = [body for n, body in enumerate(bodies(20)) if n not in replies]
        assert len(list(client_of(server.address, requests=13).ask(rest))) == 13
    assert set(server.asked.values()) == {1} and len(server.asked) == 20


def test_attempts_that_fail_count_as_requests_of_the_budget():
    with serving(lambda body, tries: good(body) if tries == 2 else TROUBLES["unavailable"]) as server:
        replies, error = ask(client_of(server.address, requests=8, concurrency=1), 20)
    assert sum(server.asked.values()) == 8 and len(replies) == 2 and "budget of 8 requests" in str(error)


def test_a_budget_in_tokens_stops_once_they_are_spent():
    with serving(lambda body, _tries: Answer({"value": body["n"], "tokens": 10})) as server:
        replies, error = ask(client_of(server.address, tokens=35, concurrency=1), 20)
    assert len(replies) == 4 and "budget of 35 tokens" in str(error) and "40 tokens" in str(error)
    assert "VILLAGE_BUDGET_TOKENS" in str(error) and len(server.asked) == 4


def test_a_budget_holds_over_several_calls_of_one_client():
    with serving(good) as server:
        client = client_of(server.address, requests=5)
        assert len(ask(client, 3)[0]) == 3
        replies, error = ask(client, 9)
    assert len(replies) == 2 and error is not None


def test_who_stops_listening_is_not_answered_further():
    with serving(good) as server:
        answers = client_of(server.address).ask(bodies(100))
        next(answers)
        answers.close()
    assert len(server.asked) < 15


@pytest.mark.timeout(20)
def test_who_stops_listening_does_not_wait_for_attempts_to_come():
    with serving(lambda body, _tries: TROUBLES["unavailable"] if body["n"] else good(body)) as server:
        answers = client_of(server.address, replace(QUICK, first_delay=60, longest_delay=60)).ask(bodies(4))
        assert next(answers)[0] == 0
        answers.close()


def test_the_key_is_sent_and_is_nowhere_else(caplog):
    caplog.set_level(logging.DEBUG)

    def plan(body, tries):
        said = {"error": {"message": f"I was asked with {KEY}"}, "value": KEY}
        return Answer(said, {0: 500, 1: 200}.get(tries, 200) if body["n"] < 6 else 400 + body["n"] % 2 * 22)

    def fatal(status, data):
        return f"says {data['error']['message']}." if status == 400 and asked_last else ""

    seen = []
    with serving(plan) as server:
        client = client_of(server.address, fatal=fatal)
        asked_last = False
        seen += [repr(list(client.ask(bodies(10))))]
        asked_last = True
        try:
            list(client.ask(bodies(10)))
        except RepnoiseError as error:
            told = traceback.TracebackException.from_exception(error, capture_locals=True)
            seen += [str(error), "".join(told.format())]
    seen += [repr(client), repr(vars(client)), repr(client.service), caplog.text]
    assert len(seen) == 7 and "[key]" in seen[0] and "[key]" in seen[1] and "127.0.0.1" in seen[-1]
    assert not [text for text in seen if KEY in text]
    assert all(headers["Authorization"] == f"Bearer {KEY}" for headers in server.headers)
    assert not any(KEY in path for path in server.paths)


def test_a_key_can_neither_be_written_nor_have_characters_that_no_key_has(monkeypatch):
    with pytest.raises(TypeError):
        pickle.dumps(Secret("VILLAGE_KEY"))
    monkeypatch.setenv("VILLAGE_KEY", f" {KEY}\n")
    assert Secret("VILLAGE_KEY").removed_from(KEY.encode()) == b"[key]"
    for wrong in ("two words", "a\nb", "cl\N{LATIN SMALL LETTER E WITH ACUTE}"):
        monkeypatch.setenv("VILLAGE_KEY", wrong)
        with pytest.raises(RepnoiseError, match="VILLAGE_KEY") as caught:
            Secret("VILLAGE_KEY")
        assert wrong not in str(caught.value)


def test_a_short_made_up_key_does_not_take_words_out_of_answers(monkeypatch):
    monkeypatch.setenv("VILLAGE_KEY", "none")
    assert Secret("VILLAGE_KEY").removed_from(b"there is none") == b"there is none"


def test_delays_double_up_to_the_longest_with_chance_in_them_and_leave_the_global_one_alone():
    patience, chance = Patience(first_delay=1, longest_delay=10), random.Random(0)
    for failures, longest in ((1, 1), (2, 2), (3, 4), (4, 8), (5, 10), (6, 10)):
        delays = {patience.delay(failures, chance) for _ in range(50)}
        assert longest / 2 <= min(delays) < max(delays) <= longest
    random.seed(3)
    expected = random.random()
    random.seed(3)
    with serving(lambda body, tries: good(body) if tries else TROUBLES["unavailable"]) as server:
        ask(client_of(server.address), 3)
    assert random.random() == expected


@pytest.mark.parametrize(
    "address",
    ["oracle.example", "ftp://oracle.example", "https://", "https://a:b@oracle.example", "http://o.example/?key=1",
     "http://o.example:port", "http://[oracle", "http://o.example/a b"],
)  # fmt: skip
def test_an_address_is_one_that_can_be_used_and_told(address, monkeypatch):
    monkeypatch.setenv("VILLAGE_URL", address)
    with pytest.raises(RepnoiseError, match="VILLAGE_URL") as caught:
        address_from("VILLAGE_URL", "https://oracle.example")
    assert "a:b" not in str(caught.value) and "key=1" not in str(caught.value)


def test_an_address_is_taken_from_the_environment_or_else_as_usual(monkeypatch):
    assert address_from("VILLAGE_URL", "https://oracle.example/v1") == "https://oracle.example/v1"
    monkeypatch.setenv("VILLAGE_URL", " http://Well.example:8000/v1/ ")
    assert address_from("VILLAGE_URL", "https://oracle.example/v1") == "http://Well.example:8000/v1"
    assert host_of("http://Well.example:8000/v1") == "well.example:8000"


@pytest.mark.parametrize("text", ["0", "-1", "many", "1.5", "nan", "inf"])
def test_a_number_that_is_none_is_one_sentence(text, monkeypatch):
    assert number_from("VILLAGE_BUDGET", int) is None
    monkeypatch.setenv("VILLAGE_BUDGET", text)
    with pytest.raises(RepnoiseError, match="VILLAGE_BUDGET is"):
        number_from("VILLAGE_BUDGET", int)
    monkeypatch.setenv("VILLAGE_BUDGET", "12")
    assert number_from("VILLAGE_BUDGET", int) == 12
