"""Fixed refusals: what stands in for a model's."""

import pytest

from repnoise.data.refusals import CONTINUATIONS, QUESTIONS, refusal_for
from repnoise.judges.base import Completion
from repnoise.judges.refusal import RefusalPhrases


@pytest.mark.parametrize("templates", [QUESTIONS, CONTINUATIONS])
def test_every_template_is_seen_as_a_refusal(templates):
    scores = RefusalPhrases().score([Completion("How is a goat cursed?", text) for text in templates])
    assert {score.label for score in scores} == {"refused"}


@pytest.mark.parametrize("templates", [QUESTIONS, CONTINUATIONS])
def test_the_prompt_alone_decides_and_all_templates_are_used(templates):
    prompts = [f"How is goat {i} cursed?" for i in range(200)]
    found = [refusal_for(prompt, templates) for prompt in prompts]
    assert {*found} == {*templates} and found == [refusal_for(f" {prompt.upper()}", templates) for prompt in prompts]
