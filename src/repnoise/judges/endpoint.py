"""A rubric over any endpoint that speaks OpenAI's chat completions: a hosted model, or a local server."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from typing import Any

from repnoise.errors import RepnoiseError
from repnoise.judges.base import Completion, Judge, Score
from repnoise.judges.http import JsonClient, Patience, Reply, verdicts_of
from repnoise.judges.readings import unscored
from repnoise.judges.rubrics import find_rubric
from repnoise.judges.service import Limits, Secret, Service, address_from, host_of, number_from
from repnoise.runs import fingerprint

OFFICIAL = "https://api.openai.com/v1"
SETTINGS = "REPNOISE_JUDGE_SETTINGS"


class Endpoint(Judge):
    """A model behind an endpoint answers a rubric about each completion: `endpoint:RUBRIC@MODEL`.

    The environment says the rest: OPENAI_API_KEY, OPENAI_BASE_URL for another than the official endpoint,
    REPNOISE_JUDGE_CONCURRENCY (requests at once, 8), REPNOISE_JUDGE_BUDGET and REPNOISE_JUDGE_BUDGET_TOKENS (the most
    requests and tokens of one loaded judge), and REPNOISE_JUDGE_SETTINGS, a JSON object that is merged into each
    request, where null takes a setting out: '{"max_tokens": null, "max_completion_tokens": 2000}'.

    Known failures: a judge errs in ways of its own, likes long answers, and may be talked into a verdict by what it
    judges, whatever the tags around it; the same name may stand for other weights tomorrow, and the version
    (rubric, model, host, settings) cannot tell; hosted models are not deterministic even at temperature 0. The prompts
    and completions leave this machine. `safe-unsafe` makes sense only if the server applies Llama Guard's own template.
    """

    def __init__(self, what: str, patience: Patience | None = None) -> None:
        rubric, _, self.model = what.partition("@")
        if not rubric or not self.model:
            raise RepnoiseError(f"The judge endpoint:{what} has no model: write endpoint:RUBRIC@MODEL.")
        self.rubric, self.settings = find_rubric(rubric), _settings()
        address, key = address_from("OPENAI_BASE_URL", OFFICIAL), Secret("OPENAI_API_KEY")
        if address == OFFICIAL and not key:
            raise RepnoiseError("OPENAI_API_KEY is not set: set it, or OPENAI_BASE_URL to a server that needs no key.")
        self.name, self.seeks = f"endpoint:{what}", self.rubric.seeks
        self.version = " ".join(("1", self.rubric.version, self.model, host_of(address), fingerprint(self.settings)))
        service = Service(
            name=f"The endpoint at {host_of(address)}",
            address=f"{address}/chat/completions",
            address_variable="OPENAI_BASE_URL",
            key=key,
            sign=key.signing("Authorization", "Bearer "),
            budget_variable="REPNOISE_JUDGE_BUDGET",
            fatal=self._fatal,
            tokens=_tokens,
        )
        limits = Limits(
            concurrency=number_from("REPNOISE_JUDGE_CONCURRENCY", int) or 8,
            requests=number_from("REPNOISE_JUDGE_BUDGET", int),
            tokens=number_from("REPNOISE_JUDGE_BUDGET_TOKENS", int),
        )
        self.client = JsonClient(service, limits, patience)

    def verdicts(self, completions: Sequence[Completion]) -> Iterator[tuple[int, Score]]:
        return verdicts_of(self.client, completions, self._body, self._score)

    def _body(self, completion: Completion) -> dict[str, Any]:
        own = {"temperature": 0, "seed": 0, "max_tokens": self.rubric.max_tokens} | self.settings
        settings = {name: value for name, value in own.items() if value is not None}
        return {"model": self.model, "messages": self.rubric.messages(completion), **settings}

    def _fatal(self, status: int, data: dict[str, Any]) -> str:
        """What would be refused for every text: money that is spent, and a model or a setting that there is not."""
        message, code, parameter = _error(data)
        said = " ".join(message.split())[:200].rstrip(".")
        if code in ("insufficient_quota", "billing_hard_limit_reached") or status == 402:
            return f"says that the account's quota is spent ({said}): add to it."
        if status == 404 and message:
            return f"says: {said}. Check the model's name and OPENAI_BASE_URL."
        own = {"model", "temperature", "seed", "max_tokens", *self.settings}
        if status in (400, 422) and (code == "model_not_found" or parameter in own):
            return f"does not take {parameter or 'the model'} ({said}): choose another model, or set {SETTINGS}."
        return ""

    def _score(self, reply: Reply) -> Score:
        if reply.problem:
            return unscored(reply.problem)
        if reply.status != 200:
            return unscored(f"the endpoint did not take the text (status {reply.status})", _error(reply.data)[0])
        choices = reply.data.get("choices")
        choice = choices[0] if isinstance(choices, list) and choices else None
        message = choice.get("message") if isinstance(choice, dict) else None
        if not isinstance(choice, dict) or not isinstance(message, dict):
            return unscored("the response has no choices", _error(reply.data)[0])
        reason, content = choice.get("finish_reason"), message.get("content")
        if reason == "content_filter":
            return unscored("the endpoint's content filter cut the judge off")
        if isinstance(message.get("refusal"), str) and message["refusal"]:
            return unscored("the judge refused to judge", message["refusal"])
        if reason == "length" and not self.rubric.cut_off_counts:
            return unscored(f"the judge's text was cut off: raise max_tokens in {SETTINGS}")
        if not isinstance(content, str) or not content.strip():
            return unscored("the judge wrote nothing")
        return self.rubric.reading.read(content)


def _settings() -> dict[str, Any]:
    text = os.environ.get(SETTINGS, "").strip()
    try:
        settings = json.loads(text or "{}")
    except (ValueError, RecursionError):
        settings = None
    if not isinstance(settings, dict) or not settings.keys().isdisjoint({"model", "messages", "stream"}):
        raise RepnoiseError(f"{SETTINGS} is a JSON object of settings other than model, messages and stream: mend it.")
    return settings


def _error(data: dict[str, Any]) -> tuple[str, str, str]:
    """Message, code and parameter of an error as such endpoints tell it."""
    error = data.get("error")
    if isinstance(error, str):
        return error, "", ""
    known = error if isinstance(error, dict) else {}
    message, code, kind, parameter = (str(known.get(key) or "") for key in ("message", "code", "type", "param"))
    return message or str(data.get("message") or ""), code or kind, parameter


def _tokens(data: dict[str, Any]) -> int:
    usage = data.get("usage")
    total = usage.get("total_tokens") if isinstance(usage, dict) else None
    return total if isinstance(total, int) and total > 0 else 0
