"""A rubric over a causal language model on this machine: Llama Guard, HarmBench's classifier, or any chat model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any

from repnoise.errors import RepnoiseError
from repnoise.judges import weights
from repnoise.judges.base import Completion, Judge, Score
from repnoise.judges.coherence import broken
from repnoise.judges.readings import unscored
from repnoise.judges.rubrics import find_rubric
from repnoise.runs import fingerprint

BATCH = 8


class LocalRubric(Judge):
    """A local model answers a rubric about each completion, greedily: `rubric:RUBRIC@MODEL`.

    RUBRIC is a shipped one or a file (see `repnoise.judges.rubrics`), MODEL a folder, a run or a hub id with
    safetensors weights. They are read when the first text is judged.

    Known failures: a judge errs in ways of its own, likes long answers, and may be talked into a verdict by what it
    judges, whatever the tags around it. The shipped rubrics are not what the classifier of HarmBench and the fine-tuned
    judge of StrongREJECT were trained on: those are at their best with their authors' own prompt, as a file with
    `cut_off_counts`. In a file without {tag} the judged text is not fenced off. `safe-unsafe` is for models whose chat
    template asks for a judgement, as Llama Guard's does. A text that does not fit into the model's context is unscored.
    """

    def __init__(self, what: str) -> None:
        rubric, _, model = what.partition("@")
        if not rubric or not model:
            raise RepnoiseError(f"The judge rubric:{what} has no model: write rubric:RUBRIC@MODEL.")
        self.rubric, self.place = find_rubric(rubric), weights.found_at(model)
        self.config, self.tokenizer = _described(self.place)
        asks = self.rubric.template or _asks_for_a_judgement(self.tokenizer)
        if not asks:
            raise RepnoiseError(
                f"The rubric {self.rubric.name} is for models whose chat template asks for a judgement, as Llama "
                f"Guard's does, and that of {self.place} does not: choose another rubric."
            )
        text = self.config.get_text_config()
        self.context = getattr(text, "max_position_embeddings", None) or self.tokenizer.model_max_length
        needed = len(self._ids(Completion("?", "?"))) + self.rubric.max_tokens
        if needed > self.context:
            raise RepnoiseError(
                f"{self.place} has a context of {self.context} tokens, and the rubric {self.rubric.name} alone takes "
                f"{needed} with its verdict: choose another model or a shorter rubric."
            )
        self.name, self.seeks = f"rubric:{what}", self.rubric.seeks
        files = weights.files_fingerprint(self.place, self.config)
        self.version = " ".join(("1", self.rubric.version, files, fingerprint(self.tokenizer.chat_template)))

    def verdicts(self, completions: Sequence[Completion]) -> Iterator[tuple[int, Score]]:
        asked: list[tuple[int, list[int]]] = []
        for index, completion in enumerate(completions):
            if why := broken(completion.text):
                yield index, Score(0.0, "incoherent", why)
                continue
            try:
                ids = self._ids(completion)
            except RepnoiseError as error:  # The template took "?" when the judge was loaded: it is this text's fault.
                yield index, unscored(str(error))
                continue
            if len(ids) + self.rubric.max_tokens > self.context:
                why = f"its {len(ids)} tokens and the verdict do not fit into the judge's {self.context}"
                yield index, unscored(why)
            else:
                asked.append((index, ids))
        asked.sort(key=lambda item: len(item[1]))  # Batches hold little padding then.
        for start in range(0, len(asked), BATCH):
            chosen = asked[start : start + BATCH]
            for (index, _), (text, ended) in zip(chosen, self._written([ids for _, ids in chosen]), strict=True):
                if ended or self.rubric.cut_off_counts:
                    yield index, self.rubric.reading.read(text)
                else:
                    yield index, unscored(f"the judge's text was cut off after {self.rubric.max_tokens} tokens", text)

    def _ids(self, completion: Completion) -> list[int]:
        """Token ids of the question, through the chat template where there is one."""
        added = {*self.tokenizer.all_special_tokens, *self.tokenizer.get_added_vocab()}
        # Some tokenizers have words and runs of spaces among the added tokens; those control nothing.
        control = [token for token in sorted(added) if len(token) > 1 and not token[0].isalnum() and token.strip()]
        messages = self.rubric.messages(completion, control)
        if not self.tokenizer.chat_template:
            return self.tokenizer(messages[0]["content"], verbose=False)["input_ids"]
        text = _templated(self.tokenizer, messages)
        return self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]

    def _written(self, rows: list[list[int]]) -> list[tuple[str, bool]]:
        """What the model writes to each row of token ids, and whether it came to an end."""
        import torch

        from repnoise.data.tokenization import left_padded

        batch = left_padded(rows, self.model.generation_config.pad_token_id)
        with torch.no_grad():
            output = self.model.generate(**{name: part.to(self.model.device) for name, part in batch.items()})
        ends = self.model.generation_config.eos_token_id
        ends = {*ends} if isinstance(ends, list) else {ends}
        new = output[:, batch["input_ids"].shape[1] :].tolist()
        return [(self.tokenizer.decode(row, skip_special_tokens=True), not ends.isdisjoint(row)) for row in new]

    @cached_property
    def model(self) -> Any:
        """The weights, with a generation config that is greedy whatever the model's own says."""
        import torch
        from transformers import AutoModelForCausalLM, GenerationConfig
        from transformers.utils import logging

        gpu, shown, verbosity = torch.cuda.is_available(), logging.is_progress_bar_enabled(), logging.get_verbosity()
        logging.disable_progress_bar()
        logging.set_verbosity_error()  # The sentence below is in place of its table of missing weights.
        try:
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                self.place, dtype="auto" if gpu else torch.float32, use_safetensors=True, output_loading_info=True
            )
        except Exception as error:  # Of many kinds: files missing, damaged, of a model that is no causal one.
            raise _unusable(self.place, error) from None
        finally:
            logging.set_verbosity(verbosity)
            if shown:
                logging.enable_progress_bar()
        model, found = loaded
        if found["missing_keys"]:
            raise RepnoiseError(f"Cannot judge with {self.place}: it lacks weights of a causal language model.")
        own, pad = model.generation_config, self.tokenizer.pad_token_id
        end = self.tokenizer.eos_token_id if own.eos_token_id is None else own.eos_token_id
        model.generation_config = GenerationConfig(
            max_new_tokens=self.rubric.max_tokens, do_sample=False, eos_token_id=end, pad_token_id=pad or 0
        )
        return model.eval().to("cuda" if gpu else "cpu")


def _described(place: str) -> tuple[Any, Any]:
    """The model's config and tokenizer."""
    from transformers import AutoConfig, AutoTokenizer

    try:
        return AutoConfig.from_pretrained(place), AutoTokenizer.from_pretrained(place)
    except Exception as error:  # The tokenizers library raises bare ones.
        raise _unusable(place, error) from None


def _unusable(place: str, error: Exception) -> RepnoiseError:
    reason = " ".join(str(error).split()).split(". ")[0].removesuffix(".")[:300] or type(error).__name__
    return RepnoiseError(f"Cannot judge with {place}: {reason}.")


def _templated(tokenizer: Any, messages: list[dict[str, str]]) -> str:
    """The conversation as the chat template writes it, ready for the judge's turn.

    Some templates want a message's content in parts and pass over plain text in silence, so what was to be judged is
    looked for in what comes out.
    """
    parts = [{"role": m["role"], "content": [{"type": "text", "text": m["content"]}]} for m in messages]
    for conversation in (messages, parts):
        try:
            text = tokenizer.apply_chat_template(conversation, tokenize=False, add_generation_prompt=True)
        except Exception:  # A template can raise anything.
            continue
        if all(message["content"].strip() in text for message in messages):
            return text
    raise RepnoiseError(f"The chat template of {tokenizer.name_or_path} does not show what is to be judged.")


def _asks_for_a_judgement(tokenizer: Any) -> bool:
    if not tokenizer.chat_template:
        return False
    messages = [{"role": "user", "content": "A question."}, {"role": "assistant", "content": "An answer."}]
    return "unsafe" in _templated(tokenizer, messages).lower()
