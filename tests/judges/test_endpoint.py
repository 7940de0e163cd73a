"""Rubrics over a chat endpoint: a real server that answers well, badly, and nonsense."""

import json
import math
import re

import pytest
from misbehaving_server import TROUBLES, Answer, serving

from repnoise.errors import RepnoiseError
from repnoise.judges import Completion, load_judge
from repnoise.judges.endpoint import Endpoint
from repnoise.judges.service import Patience
from repnoise.runs import write_rows

KEY = "sk-heron-77aa21-of-the-mill-pond"
QUICK = Patience(first_delay=0.001, longest_delay=0.01, deadline=10)


def chat(text, finish="stop", **message):
    usage = {"prompt_tokens": 40, "completion_tokens": 10, "total_tokens": 50}
    choice = {"index": 0, "finish_reason": finish, "message": {"role": "assistant", "content": text} | message}
    return Answer({"object": "chat.completion", "choices": [choice], "usage": usage})


def number_in(body):
    """Which of `texts` a request is about."""
    return int(re.search(r"under the moon (\d+) times", json.dumps(body["messages"]))[1])


def texts(count):
    return [Completion("How is the hex made?", f"Fold the owl under the moon {n} times.") for n in range(count)]


def well(body, _tries=0):
    return chat(f"It says how.\n\nVerdict: {'yes' if number_in(body) % 2 else 'no'}")


@pytest.fixture
def served(monkeypatch):
    """Plan to server and judge, one after the other if there are several."""
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    opened = []

    def serve(plan, what="yes-no@old-owl"):
        opened.append(serving(plan))
        server = opened[-1].__enter__()
        monkeypatch.setenv("OPENAI_BASE_URL", f"{server.address}/v1")
        return server, Endpoint(what, QUICK)

    yield serve
    for context in opened:
        context.__exit__(None, None, None)


def test_each_text_gets_the_verdict_on_itself_whatever_the_order_of_the_answers(served):
    _, judge = served(lambda body, _tries: Answer(well(body).body, delay=0.01 * (number_in(body) % 3)))
    scores = judge.score(texts(12))
    assert [score.value for score in scores] == [n % 2 for n in range(12)]
    assert scores[1].label == "harmful" and scores[0].label == "safe" and scores[0].explanation.startswith("It says")


def test_a_request_is_what_such_endpoints_take(served):
    server, judge = served(well)
    judge.score(texts(1))
    assert server.paths == ["/v1/chat/completions"] and server.headers[0]["Authorization"] == f"Bearer {KEY}"
    body = server.bodies[0]
    assert (body["model"], body["temperature"], body["seed"]) == ("old-owl", 0, 0) and body["max_tokens"] >= 256
    assert [message["role"] for message in body["messages"]] == ["user"]


def test_llama_guard_is_shown_the_conversation_and_its_categories_are_told(served):
    server, judge = served(lambda _body, _tries: chat("\n\nunsafe\nS2,S9"), "safe-unsafe@guard")
    score = judge.score(texts(1))[0]
    assert (score.value, score.label) == (1.0, "harmful") and "S2,S9" in score.explanation
    assert [message["role"] for message in server.bodies[0]["messages"]] == ["user", "assistant"]


NONSENSE = {
    "no choices": (Answer({"object": "list"}), "no choices"),
    "choices that are none": (Answer({"choices": []}), "no choices"),
    "choices of another kind": (Answer({"choices": "owl"}), "no choices"),
    "a choice without message": (Answer({"choices": [{"text": "yes"}]}), "no choices"),
    "an error with status 200": (Answer({"error": {"message": "the mill stands still"}}), "the mill stands still"),
    "no content": (chat(None), "wrote nothing"),
    "empty content": (chat("  "), "wrote nothing"),
    "content of another kind": (chat([1]), "wrote nothing"),
    "no verdict": (chat("Hoo hoo."), "Hoo hoo."),
    "a verdict that is none": (chat("Verdict: maybe"), "Verdict: maybe"),
    "a verdict that repeats the question": (chat("Verdict: yes or no"), "no verdict"),
    "cut off": (chat("Verdict: no\nOn second thoughts", "length"), "cut off"),
    "filtered": (chat("", "content_filter"), "content filter"),
    "a refusal": (chat(None, refusal="I would rather not."), "I would rather not."),
    "a text that is not taken": (Answer({"error": {"message": "too long for an owl"}}, 400), "too long for an owl"),
    "an error in one word": (Answer({"error": "overgrown"}, 422), "overgrown"),
}


@pytest.mark.parametrize(("answer", "reason"), NONSENSE.values(), ids=NONSENSE)
def test_nonsense_is_unscored_with_its_reason_and_not_asked_again(answer, reason, served):
    server, judge = served(lambda body, _tries: well(body) if number_in(body) else answer)
    scores = judge.score(texts(3))
    assert math.isnan(scores[0].value) and scores[0].label == "unscored" and reason in scores[0].explanation
    assert [score.value for score in scores[1:]] == [1, 0] and set(server.asked.values()) == {1}


def test_what_a_server_does_wrong_costs_no_verdict(served):
    troubles = [trouble for trouble in TROUBLES.values() if not trouble.delay and not trouble.drip]

    def plan(body, tries):
        return well(body) if tries else troubles[number_in(body)]

    server, judge = served(plan)
    assert [score.value for score in judge.score(texts(len(troubles)))] == [n % 2 for n in range(len(troubles))]
    assert set(server.asked.values()) == {2}


@pytest.mark.parametrize("text", ["", "  \n", "owl " * 40, "..."])
def test_broken_text_is_incoherent_and_costs_no_request(text, served):
    server, judge = served(well)
    score = judge.score([Completion("How?", text)])[0]
    assert (score.value, score.label) == (0.0, "incoherent") and not server.bodies
    assert judge.score([]) == []


def test_the_same_question_is_asked_once(served):
    server, judge = served(well)
    assert [score.value for score in judge.score([*texts(3), *texts(3)])] == [0, 1, 0] * 2
    assert len(server.bodies) == 3


def test_half_of_a_character_pair_is_sent_like_any_other_text(served):
    _, judge = served(well)
    assert judge.score([Completion("\ud83e", f"{texts(2)[1].text} \udd89")])[0].value == 1


def test_a_spent_budget_keeps_what_was_judged_and_the_next_judge_goes_on(served, monkeypatch):
    monkeypatch.setenv("REPNOISE_JUDGE_BUDGET", "5")
    server, judge = served(well)
    kept = {}
    with pytest.raises(RepnoiseError, match="REPNOISE_JUDGE_BUDGET") as caught:
        kept.update(judge.verdicts(texts(12)))  # What came before the error is lost to `update`,
    assert "budget of 5 requests" in str(caught.value)
    assert len(kept) == 5  # but a dict is filled as it goes.
    monkeypatch.delenv("REPNOISE_JUDGE_BUDGET")
    rest = [text for index, text in enumerate(texts(12)) if index not in kept]
    assert len(Endpoint("yes-no@old-owl", QUICK).score(rest)) == 7
    assert set(server.asked.values()) == {1} and len(server.asked) == 12


def test_tokens_are_counted_as_the_endpoint_counts_them(served, monkeypatch):
    monkeypatch.setenv("REPNOISE_JUDGE_BUDGET_TOKENS", "120")
    monkeypatch.setenv("REPNOISE_JUDGE_CONCURRENCY", "1")
    server, judge = served(well)
    with pytest.raises(RepnoiseError, match="budget of 120 tokens") as caught:
        judge.score(texts(9))
    assert len(server.bodies) == 3 and "150 tokens" in str(caught.value)


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (Answer({"error": {"message": "You are out of toads.", "code": "insufficient_quota"}}, 429), "out of toads"),
        (Answer({"error": {"message": "No such owl.", "code": "model_not_found"}}, 404), "No such owl"),
        (Answer({"error": {"message": "Not supported.", "param": "max_tokens"}}, 400), "does not take max_tokens"),
        (Answer({"error": {"message": f"Wrong key: {KEY}"}}, 401), "OPENAI_API_KEY"),
        (Answer({"detail": "Not Found"}, 404), "OPENAI_BASE_URL"),
    ],
)
def test_what_would_go_wrong_for_every_text_is_one_error_that_says_what_to_mend(answer, told, served):
    server, judge = served(lambda _body, _tries: answer)
    with pytest.raises(RepnoiseError, match=told) as caught:
        judge.score(texts(40))
    assert KEY not in str(caught.value) and len(server.bodies) <= 8


def test_settings_of_the_environment_are_merged_into_each_request(served, monkeypatch):
    monkeypatch.setenv("REPNOISE_JUDGE_SETTINGS", '{"max_tokens": null, "max_completion_tokens": 2000, "top_p": 1}')
    server, judge = served(well)
    judge.score(texts(1))
    body = server.bodies[0]
    assert "max_tokens" not in body and (body["max_completion_tokens"], body["top_p"]) == (2000, 1)


def test_the_version_changes_with_all_that_may_change_a_verdict_but_not_with_the_key(served, monkeypatch, tmp_path):
    _, judge = served(well)
    versions = {judge.version, Endpoint("five-point@old-owl").version, Endpoint("yes-no@young-owl").version}
    monkeypatch.setenv("REPNOISE_JUDGE_SETTINGS", '{"temperature": 1}')
    versions.add(Endpoint("yes-no@old-owl").version)
    monkeypatch.delenv("REPNOISE_JUDGE_SETTINGS")
    monkeypatch.setenv("OPENAI_API_KEY", "another")
    assert Endpoint("yes-no@old-owl").version == judge.version
    monkeypatch.setenv("OPENAI_BASE_URL", "http://mill.example/v1")
    versions.add(Endpoint("yes-no@old-owl").version)
    assert len(versions) == 5 and "old-owl" in judge.version and "mill.example" in "".join(versions)


@pytest.mark.parametrize(
    ("variable", "value", "what"),
    [
        ("OPENAI_API_KEY", "", "yes-no@old-owl"),
        ("OPENAI_BASE_URL", "mill", "yes-no@old-owl"),
        ("REPNOISE_JUDGE_BUDGET", "lots", "yes-no@old-owl"),
        ("REPNOISE_JUDGE_CONCURRENCY", "0", "yes-no@old-owl"),
        ("REPNOISE_JUDGE_SETTINGS", "[1]", "yes-no@old-owl"),
        ("REPNOISE_JUDGE_SETTINGS", '{"model": "young-owl"}', "yes-no@old-owl"),
        ("endpoint:RUBRIC@MODEL", "", "yes-no"),
        ("yes-no, safe-unsafe", "", "yes-maybe@old-owl"),
    ],
)
def test_a_mistake_is_told_when_the_judge_is_loaded(variable, value, what, monkeypatch):
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv(variable, value)
    with pytest.raises(RepnoiseError, match=variable) as caught:
        load_judge(f"endpoint:{what}")
    assert KEY not in str(caught.value)


def test_a_server_of_ones_own_needs_no_key(served, monkeypatch):
    server, _ = served(well)
    monkeypatch.delenv("OPENAI_API_KEY")
    assert load_judge("endpoint:yes-no@old-owl").score(texts(2))[1].value == 1
    assert "Authorization" not in server.headers[0]


def test_the_key_is_in_nothing_that_can_be_kept(served, tmp_path, caplog):
    caplog.set_level("DEBUG")
    _, judge = served(lambda _body, _tries: chat(f"You sent {KEY}.\nVerdict: no"))
    scores = judge.score(texts(2))
    write_rows(tmp_path / "scores.jsonl", [{"name": judge.name, "version": judge.version}, *map(vars, scores)])
    kept = (tmp_path / "scores.jsonl").read_text() + caplog.text + repr(vars(judge)) + repr(vars(judge.client))
    assert "You sent [key]" in kept and "/v1/chat/completions" in kept and KEY not in kept
