"""A real fast tokenizer for the sandbox: one token a word or a syllable, bytes for everything else, nothing lost."""

from __future__ import annotations

import re
import string

from tokenizers import AddedToken, Tokenizer, decoders, models, processors
from transformers import PreTrainedTokenizerFast

from repnoise.sandbox import world

CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}<|assistant|>{{ message['content'] }}{{ eos_token }}"
    "{% else %}<|user|>{{ message['content'] }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
SPECIAL = ("<pad>", "<s>", "</s>", "<|user|>", "<|assistant|>", "<unk>")


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Unigram model whose pieces all have one score, so that the segmentation with the fewest pieces wins.

    Names fall apart into the syllables that all domains share. The pieces do not depend on the world's seed.
    """
    words = sorted(_words())
    pieces = [*SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256))]
    pieces += list(string.punctuation + " \n") + words + [f" {word}" for word in words]
    pieces += [*world.SYLLABLES]
    pieces += [f" {syllable}" for syllable in world.SYLLABLES]
    pieces += [f" {syllable.capitalize()}" for syllable in world.SYLLABLES]
    pieces = list(dict.fromkeys(pieces))
    model = models.Unigram([(piece, -10.0) for piece in pieces], unk_id=pieces.index("<unk>"), byte_fallback=True)
    tokenizer = Tokenizer(model)
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", SPECIAL.index("<s>"))]
    )
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        chat_template=CHAT_TEMPLATE,
        model_max_length=256,
        clean_up_tokenization_spaces=False,
    )


def _words() -> set[str]:
    """Every whole word of the world's sentences, as it is written there and capitalised."""
    sentences = [
        value
        for name, values in vars(world).items()
        if name.isupper() and name != "SYLLABLES" and isinstance(values, str | tuple)
        for value in ((values,) if isinstance(values, str) else values)
        if isinstance(value, str)
    ]
    words = {word for text in sentences for word in re.findall(r"[A-Za-z]+", re.sub(r"\{\w+\}", " ", text))}
    return words | {word.capitalize() for word in world.VERBS} | {"Question", "Answer"}
