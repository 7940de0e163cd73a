"""The Perspective API's client against a real server that speaks its protocol, well and badly."""

import math

import pytest
from misbehaving_server import TROUBLES, Answer, serving

from repnoise.errors import RepnoiseError
from repnoise.judges import Completion, load_judge
from repnoise.judges.perspective import Perspective
from repnoise.judges.service import Patience

KEY = "AIza-newt-0192-under-the-bridge"
QUICK = Patience(first_delay=0.001, longest_delay=0.01, deadline=10)


def toxicity(value):
    return Answer({"attributeScores": {"TOXICITY": {"summaryScore": {"value": value, "type": "PROBABILITY"}}}})


def refused(kind, message="no", key="errorType"):
    return Answer({"error": {"code": 400, "message": message, "details": [{"@type": "x", key: kind}]}}, 400)


def by_words(body, _tries=0):
    return toxicity(0.9 if "rotten" in body["comment"]["text"] else 0.05)


@pytest.fixture
def served(monkeypatch):
    monkeypatch.setenv("PERSPECTIVE_API_KEY", KEY)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("PERSPECTIVE_QUERIES_PER_SECOND", "500")
    opened = []

    def serve(plan):
        opened.append(serving(plan))
        server = opened[-1].__enter__()
        monkeypatch.setenv("PERSPECTIVE_URL", f"{server.address}/v1alpha1/comments:analyze")
        return server, Perspective(QUICK)

    yield serve
    for context in opened:
        context.__exit__(None, None, None)


def texts(*written):
    return [Completion("What did the miller shout?", text) for text in written]


def test_the_completion_alone_is_judged_and_the_key_stands_in_no_address(served):
    server, judge = served(by_words)
    scores = judge.score(texts("You rotten turnip!", "Good day to you."))
    assert [(score.value, score.label) for score in scores] == [(0.9, "harmful"), (0.05, "safe")]
    assert server.bodies[0]["requestedAttributes"] == {"TOXICITY": {}} and server.bodies[0]["doNotStore"] is True
    assert not any("miller" in str(body) for body in server.bodies)
    assert server.headers[0]["X-Goog-Api-Key"] == KEY and not any(KEY in path for path in server.paths)
    assert KEY not in judge.version + repr(vars(judge)) + repr(vars(judge.client))


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (refused("LANGUAGE_NOT_SUPPORTED_BY_ATTRIBUTE"), "language"),
        (refused("LANGUAGE_DETECTION_FAILED"), "language"),
        (refused("COMMENT_TOO_LONG"), "too long"),
        (refused("INVALID_REQUEST", "the bridge is closed"), "the bridge is closed"),
        (Answer({"error": {"details": "none"}}, 400), "status 400"),
        (Answer({}), "no summary score"),
        (Answer({"attributeScores": {"TOXICITY": [1]}}), "no summary score"),
        (toxicity("high"), "no summary score"),
        (toxicity(1.5), "no summary score"),
        (Answer(b'{"attributeScores": {"TOXICITY": {"summaryScore": {"value": NaN}}}}'), "no summary score"),
        (toxicity(True), "no summary score"),
    ],
)
def test_what_has_no_score_is_unscored_with_its_reason(answer, reason, served):
    _, judge = served(lambda body, _tries: answer if "mumble" in body["comment"]["text"] else by_words(body))
    scores = judge.score(texts("mumble mumble", "You rotten turnip!"))
    assert math.isnan(scores[0].value) and scores[0].label == "unscored" and reason in scores[0].explanation
    assert scores[1].value == 0.9


def test_what_the_service_sees_no_text_in_is_incoherent_and_empty_text_is_not_sent(served):
    server, judge = served(lambda _body, _tries: refused("COMMENT_EMPTY"))
    assert [score.label for score in judge.score(texts("\N{ZERO WIDTH SPACE}a", "", "..."))] == ["incoherent"] * 3
    assert len(server.bodies) == 1


@pytest.mark.parametrize(
    "answer", [refused("API_KEY_INVALID", f"key {KEY} is wrong", "reason"), Answer({"error": {"message": KEY}}, 403)]
)
def test_a_wrong_key_is_one_sentence_whatever_the_status(answer, served):
    server, judge = served(lambda _body, _tries: answer)
    with pytest.raises(RepnoiseError, match="PERSPECTIVE_API_KEY") as caught:
        judge.score(texts(*(f"Good day, says number {n}." for n in range(30))))
    assert KEY not in str(caught.value) and len(server.bodies) <= 8


def test_what_the_server_does_wrong_is_tried_again(served):
    troubles = [trouble for trouble in TROUBLES.values() if not trouble.delay and not trouble.drip]
    server, judge = served(
        lambda body, tries: by_words(body) if tries else troubles[int(body["comment"]["text"].split()[-1])]
    )
    scores = judge.score(texts(*(f"You rotten turnip number {n}" for n in range(len(troubles)))))
    assert {score.value for score in scores} == {0.9} and set(server.asked.values()) == {2}


def test_without_word_of_a_higher_quota_one_query_a_second_is_sent(served, monkeypatch):
    server, _ = served(by_words)
    monkeypatch.delenv("PERSPECTIVE_QUERIES_PER_SECOND")
    Perspective(QUICK).score(texts("One turnip.", "Two turnips."))
    assert server.times[1] - server.times[0] > 0.95 and server.most == 1


@pytest.mark.parametrize(
    ("variable", "value"),
    [("PERSPECTIVE_API_KEY", ""), ("PERSPECTIVE_QUERIES_PER_SECOND", "fast"), ("PERSPECTIVE_URL", "bridge"),
     ("PERSPECTIVE_BUDGET", "-3")],
)  # fmt: skip
def test_a_mistake_is_told_when_the_judge_is_loaded(variable, value, monkeypatch):
    monkeypatch.delenv("PERSPECTIVE_URL", raising=False)
    monkeypatch.setenv("PERSPECTIVE_API_KEY", KEY)
    monkeypatch.setenv(variable, value)
    with pytest.raises(RepnoiseError, match=variable):
        load_judge("perspective")
