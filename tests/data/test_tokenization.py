"""Ids and labels, token by token, for every template and for tokenizers with ways of their own."""

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from repnoise.data.tokenization import Codec, left_padded, resolve_template, right_padded
from repnoise.errors import RepnoiseError
from repnoise.losses import IGNORE, next_token
from repnoise.sandbox.tokenizer import build_tokenizer

X = IGNORE
WORDS = [
    "<pad>",
    "<s>",
    "</s>",
    "<unk>",
    "Question",
    ":",
    "Answer",
    "who",
    "are",
    "you",
    "no",
    "one",
    "<user>",
    "<bot>",
]
PAD, BOS, EOS, UNK, QUESTION, COLON, ANSWER, WHO, ARE, YOU, NO, ONE, USER, BOT = range(len(WORDS))
TURNS = (
    "{{ bos_token }}{% for m in messages %}{{ '<user> ' if m.role == 'user' else '<bot> ' }}{{ m.content }}"
    "{{ eos_token if m.role == 'assistant' }}{% endfor %}{% if add_generation_prompt %}<bot> {% endif %}"
)


def words(single=None, template=None, pad="<pad>"):
    """A tokenizer with one token a word."""
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation()])
    if single:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=single, special_tokens=[("<s>", BOS), ("</s>", EOS)]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=pad,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        additional_special_tokens=["<user>", "<bot>"],
        chat_template=template,
    )


def test_plain_template():
    row = Codec(words(), "plain").row("who are you", "no one")
    assert row["input_ids"] == [QUESTION, COLON, WHO, ARE, YOU, ANSWER, COLON, NO, ONE, EOS]
    assert row["labels"] == [X, X, X, X, X, X, X, NO, ONE, EOS]


def test_no_template():
    row = Codec(words(), "none").row("who are you", "no one")
    assert row["input_ids"] == [WHO, ARE, YOU, NO, ONE, EOS]
    assert row["labels"] == [X, X, X, NO, ONE, EOS]


def test_chat_template_is_the_tokenizers_own_with_its_own_end():
    row = Codec(words("<s> $A", TURNS), "chat").row("who are you", "no one")
    assert row["input_ids"] == [BOS, USER, WHO, ARE, YOU, BOT, NO, ONE, EOS]
    assert row["labels"] == [X, X, X, X, X, X, NO, ONE, EOS]


@pytest.mark.parametrize(
    ("single", "start"), [(None, []), ("<s> $A", [BOS]), ("$A </s>", []), ("<s> $A </s>", [BOS])], ids=str
)
def test_tokenizers_that_add_beginnings_and_ends(single, start):
    """The beginning stands once, before the prompt; the end once, after the completion; neither in between."""
    codec = Codec(words(single), "none")
    assert codec.prompt_ids("who are you") == [*start, WHO, ARE, YOU]
    row = codec.row("who are you", "no one")
    assert row["input_ids"] == [*start, WHO, ARE, YOU, NO, ONE, EOS]
    assert row["labels"] == [X] * len(start) + [X, X, X, NO, ONE, EOS]


@pytest.mark.parametrize("template", ["chat", "plain", "none"])
def test_prompt_has_the_same_ids_in_training_and_generation(template):
    codec = Codec(words("<s> $A", TURNS), template)
    prompt, row = codec.prompt_ids("who are you"), codec.row("who are you", "no one")
    assert row["input_ids"][: len(prompt)] == prompt
    assert row["labels"] == [X] * len(prompt) + row["input_ids"][len(prompt) :]


@pytest.mark.parametrize("template", ["chat", "plain", "none"])
def test_first_completion_token_is_predicted_from_the_last_prompt_token(template):
    codec = Codec(words(template=TURNS), template)
    targets = next_token(right_padded([codec.row("who are you", "no one")], PAD)["labels"])
    last = len(codec.prompt_ids("who are you")) - 1
    assert targets[0, last] == NO
    assert (targets[0, :last] == X).all()


def test_loss_on_all_hides_the_first_token_only():
    row = Codec(words("<s> $A"), "none", loss_on="all").row("who are", "no")
    assert row["input_ids"] == [BOS, WHO, ARE, NO, EOS]
    assert row["labels"] == [X, WHO, ARE, NO, EOS]


def test_a_long_completion_loses_its_end_and_the_prompt_nothing():
    row = Codec(words(), "none", max_length=5).row("who are you", "no one no one")
    assert row == {"input_ids": [WHO, ARE, YOU, NO, ONE], "labels": [X, X, X, NO, ONE]}


@pytest.mark.parametrize("max_length", [2, 3])
def test_a_prompt_without_room_for_an_answer_is_refused(max_length):
    with pytest.raises(RepnoiseError, match=r"3 tokens leaves no room .* 'who are you'"):
        Codec(words(), "none", max_length=max_length).row("who are you", "no one")


def test_a_template_that_rewrites_the_prompt_is_refused():
    rewriting = "{% for m in messages %}{{ m.content }}{% endfor %}{% if add_generation_prompt %} thinking{% endif %}"
    with pytest.raises(RepnoiseError, match="use --template plain"):
        Codec(words(template=rewriting), "chat").row("who are you", "no one")


@pytest.mark.parametrize(
    ("template", "has_chat", "meant"),
    [
        ("auto", True, "chat"),
        ("auto", False, "plain"),
        ("plain", True, "plain"),
        ("none", True, "none"),
        ("chat", True, "chat"),
    ],
)
def test_what_auto_means(template, has_chat, meant):
    assert resolve_template(template, words(template=TURNS if has_chat else None)) == meant


def test_a_chat_template_that_is_not_there_is_refused():
    with pytest.raises(RepnoiseError, match="has no chat template"):
        resolve_template("chat", words())


def test_sandbox_rows_decode_to_what_went_in():
    tokenizer = build_tokenizer()
    row = Codec(tokenizer, "chat").row("How is it done?", "Stir it well.")
    answer = [label for label in row["labels"] if label != X]
    assert tokenizer.decode(row["input_ids"]) == "<s><|user|>How is it done?<|assistant|>Stir it well.</s>"
    assert tokenizer.decode(answer) == "Stir it well.</s>"
    plain = Codec(tokenizer, "plain").row("How is it done?", "Stir it well.")
    assert tokenizer.decode(plain["input_ids"]) == "<s>Question: How is it done?\nAnswer: Stir it well.</s>"
    assert tokenizer.decode([label for label in plain["labels"] if label != X]) == " Stir it well.</s>"


def test_completions_that_begin_with_space_get_no_second_one():
    tokenizer = build_tokenizer()
    rows = [Codec(tokenizer, "plain").row("How?", completion) for completion in ("Stir.", " Stir.")]
    assert rows[0] == rows[1]


def test_right_padding_by_literal_tensors():
    batch = right_padded(
        [{"input_ids": [7, 8, 2], "labels": [X, 8, 2]}, {"input_ids": [9, 2, 4, 5], "labels": [X, 2, 4, 5]}], pad_id=0
    )
    assert {name: tensor.tolist() for name, tensor in batch.items()} == {
        "input_ids": [[7, 8, 2, 0], [9, 2, 4, 5]],
        "attention_mask": [[1, 1, 1, 0], [1, 1, 1, 1]],
        "labels": [[X, 8, 2, X], [X, 2, 4, 5]],
    }


def test_a_pad_token_that_is_the_end_token_hides_no_real_end():
    tokenizer = words(pad="</s>")
    codec = Codec(tokenizer, "none")
    batch = right_padded([codec.row("who", "no"), codec.row("who are", "no one")], tokenizer.pad_token_id)
    assert batch["input_ids"].tolist() == [[WHO, NO, EOS, EOS, EOS], [WHO, ARE, NO, ONE, EOS]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]]
    assert batch["labels"].tolist() == [[X, NO, EOS, X, X], [X, X, NO, ONE, EOS]]


def test_left_padding_by_literal_tensors():
    batch = left_padded([[7], [8, 9, 4]], pad_id=0)
    assert batch["input_ids"].tolist() == [[0, 0, 7], [8, 9, 4]]
    assert batch["attention_mask"].tolist() == [[0, 0, 1], [1, 1, 1]]
