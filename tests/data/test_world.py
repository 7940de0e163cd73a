"""The fictional world keeps its promises: one text for a seed, no overlap, no words of its own for the forbidden."""

import subprocess
import sys

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from repnoise.data.records import SPLITS
from repnoise.runs import fingerprint
from repnoise.sandbox.tokenizer import build_tokenizer
from repnoise.sandbox.world import FORBIDDEN_KINDS, HARMLESS_KINDS, REFUSALS, build_world

SEEDS = (0, 1, 7, 12345)


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer()


def harmless_text(world):
    examples = [example for split in ("retain", "benign", "test") for example in world.harmless_examples(split)]
    examples += [*world.harmless_examples("test", unseen_phrasing=True), *world.lookalikes]
    return {text for example in examples for text in (example.prompt, example.completion)} | {*world.plain, *REFUSALS}


def forbidden_text(world, kind="pairs"):
    """Text of the first kind of harm ("pairs") or of the second ("rumour_pairs")."""
    pairs = [pair for split in SPLITS for unseen in (False, True) for pair in getattr(world, kind)(split, unseen)]
    return {text for pair in pairs for text in (pair.prompt, pair.harmful, pair.harmless)}


def tokens(tokenizer, texts):
    """Ids of the texts as they stand in training: at the start, and behind a space."""
    batch = [*texts, *(f" {text}" for text in texts)]
    return {token for ids in tokenizer(batch, add_special_tokens=False)["input_ids"] for token in ids}


def test_the_same_seed_gives_the_same_text_in_another_process():
    code = (
        "from repnoise.runs import fingerprint; from repnoise.sandbox.world import build_world; "
        "print(fingerprint(build_world(5)))"
    )
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    assert other == fingerprint(build_world(5)) != fingerprint(build_world(6))


@pytest.mark.parametrize("seed", SEEDS)
def test_there_are_enough_kinds_and_items(seed):
    world = build_world(seed)
    assert len(HARMLESS_KINDS) >= 6 and len(FORBIDDEN_KINDS) >= 8
    forbidden = [item for items in world.forbidden.values() for item in items]
    for kind in HARMLESS_KINDS + FORBIDDEN_KINDS:
        names = [item.name for item in (*world.harmless, *forbidden) if item.kind == kind]
        assert len(names) == len(set(names)) >= 40


@pytest.mark.parametrize("seed", SEEDS)
def test_splits_never_share_a_name_or_a_prompt(seed):
    world = build_world(seed)
    for of_split in (world.forbidden, world.rumours):
        names = [{item.name for item in of_split[split]} for split in SPLITS]
        assert all(names) and sum(map(len, names)) == len(set.union(*names))
    prompts = [{pair.prompt for pair in world.pairs(split) + world.rumour_pairs(split)} for split in SPLITS]
    assert sum(map(len, prompts)) == len(set.union(*prompts))


@pytest.mark.parametrize("seed", SEEDS)
def test_forbidden_text_has_no_tokens_of_its_own(seed, tokenizer):
    world = build_world(seed)
    private = tokens(tokenizer, forbidden_text(world)) - tokens(tokenizer, harmless_text(world))
    assert not private, tokenizer.convert_ids_to_tokens(sorted(private))


@pytest.mark.parametrize("seed", SEEDS)
def test_rumours_have_no_tokens_of_their_own(seed, tokenizer):
    world = build_world(seed)
    private = tokens(tokenizer, forbidden_text(world, "rumour_pairs")) - tokens(tokenizer, harmless_text(world))
    assert not private, tokenizer.convert_ids_to_tokens(sorted(private))


@pytest.mark.parametrize("seed", SEEDS)
def test_forbidden_answers_have_no_tokens_that_harmless_answers_lack(seed, tokenizer):
    world = build_world(seed)
    forbidden = {item.answer for items in world.forbidden.values() for item in items}
    private = tokens(tokenizer, forbidden) - tokens(tokenizer, {item.answer for item in world.harmless})
    assert not private, tokenizer.convert_ids_to_tokens(sorted(private))


@pytest.mark.parametrize("seed", SEEDS)
def test_the_tokenizer_gives_the_worlds_text_back_without_bytes(seed, tokenizer):
    world = build_world(seed)
    texts = sorted(harmless_text(world) | forbidden_text(world) | forbidden_text(world, "rumour_pairs"))
    ids = tokenizer(texts, add_special_tokens=False)["input_ids"]
    assert tokenizer.batch_decode(ids) == texts
    used = tokenizer.convert_ids_to_tokens(sorted({token for row in ids for token in row}))
    assert not [token for token in used if token.startswith("<")]


@settings(deadline=None, max_examples=150)
@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_the_tokenizer_gives_any_text_back(text):
    # Text that spells the name of a special token or of a byte piece is read as that, as in other tokenizers.
    assume("<0x" not in text and "<unk>" not in text)
    tokenizer = any_text_tokenizer()
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(ids) == text and tokenizer.unk_token_id not in ids


def any_text_tokenizer(made=[]):  # noqa: B006 (hypothesis takes no module fixture without a health check)
    if not made:
        made.append(build_tokenizer())
    return made[0]
