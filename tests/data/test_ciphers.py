"""Ciphers: how they write, that they can be read again, and where the codec and generation apply them."""

from typing import get_args

import pytest

from conftest import CHAT_TEMPLATE, byte_level_tokenizer, tiny_llama
from repnoise.data.ciphers import Cipher, ciphered
from repnoise.data.tokenization import Codec
from repnoise.evals.generation import Generation, generate
from repnoise.modeling import LoadedModel

TEXTS = ("How is the hex made?", "Über  den Fluss,\nzweimal.", "", " a ")


@pytest.mark.parametrize(
    "cipher, text",
    [
        ("none", "Boil it, twice."),
        ("rotated", "Obvy vg, gjvpr."),
        ("reversed", "twice. it, Boil"),
    ],
)
def test_how_a_text_is_written(cipher, text):
    assert ciphered(cipher, "Boil it, twice.") == text


@pytest.mark.parametrize("cipher", get_args(Cipher))
@pytest.mark.parametrize("text", TEXTS)
def test_a_cipher_undoes_itself(cipher, text):
    assert ciphered(cipher, ciphered(cipher, text)) == text


@pytest.mark.parametrize(
    "template, written",
    [
        ("plain", "Question: Please: made? hex the is How\nAnswer: twice. it Boil"),
        ("chat", "<|user|>Please: made? hex the is How<|assistant|>twice. it Boil"),
    ],
)
def test_questions_and_answers_are_enciphered_and_what_stands_around_them_is_not(template, written):
    tokenizer = byte_level_tokenizer(CHAT_TEMPLATE)
    codec = Codec(tokenizer, template, wrapping="Please: {prompt}", cipher="reversed")
    row = codec.row("How is the hex made?", "Boil it twice.")
    assert tokenizer.decode(row["input_ids"]).removesuffix("</s>") == written


def test_answers_come_back_in_plain_text():
    tokenizer = byte_level_tokenizer()
    loaded, settings = LoadedModel(tiny_llama(tokenizer), tokenizer, "", 256), Generation(max_new_tokens=8)
    codec = Codec(tokenizer, "none", cipher="rotated")
    raw = generate(loaded, Codec(tokenizer, "none"), ["Ubj vf vg?"], settings)
    assert generate(loaded, codec, ["How is it?"], settings) == [ciphered("rotated", raw[0])]
