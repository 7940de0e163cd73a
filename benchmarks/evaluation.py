"""What an evaluation costs: generation one by one, in batches and with a static cache; likelihoods; judges.

    python benchmarks/evaluation.py                                   # the sandbox, on what device there is
    python benchmarks/evaluation.py --quick                           # a try, in seconds
    python benchmarks/evaluation.py --model MODEL --data NAME:PATH    # another model, other questions

Each is measured in a process of its own, so that no peak of memory is another's: on a CPU the peak is what the process
came to hold beyond what it held before model and data; on a GPU, what PyTorch's allocator gave out at most. The time is
the median of `--repeats` after one that is not counted, the spread the fastest and the slowest. Tokens are those that
were generated, with the one that ends a text and without padding. The questions are the held-out forbidden ones.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from own_process import alone, resident

from repnoise.data.sources import PairedData
from repnoise.data.tokenization import Codec
from repnoise.evals import generation
from repnoise.evals.evaluations import EVALUATIONS, likelihoods
from repnoise.evals.generation import Generation, generate
from repnoise.inputs import Inputs
from repnoise.judges import Completion, load_judge
from repnoise.modeling import LoadedModel

JUDGES = ("exact", "refusal")


@dataclass(frozen=True)
class Setting:
    """A model with data, and which of their questions are asked."""

    loaded: LoadedModel
    data: PairedData
    codec: Codec
    prompts: list[str]
    tokens: int


Work = Callable[[Setting], tuple[int, int | None]]
"""Does what is measured; returns how many texts it was about, and how many tokens it generated."""


def main() -> None:
    """Measure everything and print a table; with --output, write what was measured as JSON."""
    options = _options()
    if options.only:
        print(json.dumps(measured(options.only, options)))
        return
    names = [_batches_of(size) for size in options.batch_sizes] + [_static(options.batch_sizes[-1])]
    names += ["likelihoods", *JUDGES]
    results = [measured(name, options) if options.quick else _alone(name) for name in names]
    print(table(results))
    if options.output:
        device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
        facts = {"torch": torch.__version__, "threads": torch.get_num_threads(), "device": device}
        settings = {name: getattr(options, name) for name in ("model", "data", "prompts", "max_new_tokens")}
        options.output.write_text(json.dumps({**facts, **settings, "measured": results}, indent=2) + "\n")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", default="sandbox", help="as repnoise evaluate takes it")
    parser.add_argument("--data", default="sandbox", help="likewise")
    parser.add_argument("--prompts", type=int, default=160, help="most questions that are asked")
    parser.add_argument("--max-new-tokens", type=int, default=64)
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 8, 64, 256], help="the first is the baseline")
    parser.add_argument("--repeats", type=int, default=5, help="times that are counted")
    parser.add_argument("--quick", action="store_true", help="a try: few prompts, all in one process")
    parser.add_argument("--output", type=Path, help="JSON file for the results")
    parser.add_argument("--only", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.quick:
        options.prompts, options.max_new_tokens, options.batch_sizes, options.repeats = 4, 4, [1, 4], 2
    return options


def _alone(name: str) -> dict[str, Any]:
    """What a process of its own measured, or why it could not."""
    return {"what": name} | alone(__file__, [*sys.argv[1:], "--only", name])


def measured(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """Seconds of each repetition, its texts and tokens, and the peak in bytes."""
    before = resident("VmRSS")
    loaded, data, codec = _opened(options.model, options.data)
    questions = EVALUATIONS["resistance"][1].questions(data)[: options.prompts]
    setting = Setting(loaded, data, codec, [question.prompt for question in questions], options.max_new_tokens)
    if name == "exact" and not data.exact:
        return {"what": name, "failed": f"answers are not known in {data.name}"}
    work, times, texts, tokens = _works(options)[name], [], 0, None
    for _ in range(1 + options.repeats):
        start = time.perf_counter()
        texts, tokens = work(setting)  # All of them end with numbers on the CPU, so there is no GPU to wait for.
        times.append(time.perf_counter() - start)
    peak = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else resident("VmHWM") - before
    return {"what": name, "seconds": times[1:], "texts": texts, "tokens": tokens, "peak_bytes": peak}


@cache
def _opened(model: str, data: str) -> tuple[LoadedModel, PairedData, Codec]:
    return Inputs(model=model, data=data, skip_long=True).open()


def _works(options: argparse.Namespace) -> dict[str, Work]:
    works: dict[str, Work] = {_batches_of(size): partial(generated, size=size) for size in options.batch_sizes}
    works[_static(options.batch_sizes[-1])] = partial(generated, size=options.batch_sizes[-1], cache="static")
    works |= {name: partial(judged, name=name) for name in JUDGES}
    return works | {"likelihoods": likelihood}


def _batches_of(size: int) -> str:
    return "one by one" if size == 1 else f"batches of {size}"


def _static(size: int) -> str:
    return f"batches of {size}, static cache"


def generated(setting: Setting, size: int, cache: str | None = None) -> tuple[int, int]:
    """Greedy completions of all prompts, as an evaluation generates them, or with another cache of keys and values."""
    make, configured, tokens = generation._generated, generation._config, 0

    def counted(*arguments: Any) -> list[tuple[str, int]]:
        nonlocal tokens
        found = make(*arguments)
        tokens += sum(count for _, count in found)
        return found

    def with_cache(*arguments: Any) -> Any:
        config = configured(*arguments)
        config.cache_implementation = cache
        return config

    generation._generated, generation._config = counted, with_cache
    try:
        settings = Generation(max_new_tokens=setting.tokens, batch_size=size)
        generate(setting.loaded, setting.codec, setting.prompts, settings)
    finally:
        generation._generated, generation._config = make, configured
    return len(setting.prompts), tokens


def likelihood(setting: Setting) -> tuple[int, None]:
    """Cross-entropies of all held-out completions, and perplexity of the plain text."""
    likelihoods(setting.loaded, setting.codec, setting.data)
    held_out = sum(map(len, setting.data.held_out.values()))
    return held_out + len(setting.data.harmless_test) + len(setting.data.plain_text), None


def judged(setting: Setting, name: str) -> tuple[int, None]:
    """Both completions of every held-out pair, the harmful one being the answer that is looked for."""
    pairs = [pair for group in setting.data.held_out.values() for pair in group]
    answers = [Completion(pair.prompt, text, pair.harmful) for pair in pairs for text in (pair.harmful, pair.harmless)]
    load_judge(name).score(answers)
    return len(answers), None


def table(results: list[dict[str, Any]]) -> str:
    """A Markdown table: a line for each thing that was measured."""
    lines = ["| what | texts | median s | spread | texts a second | tokens a second | peak |"]
    lines.append("| --- | ---: | ---: | --- | ---: | ---: | ---: |")
    for row in results:
        if "failed" in row:
            lines.append(f"| {row['what']} | {str(row['failed']).replace('|', '/')} | | | | | |")
            continue
        times, median = row["seconds"], statistics.median(row["seconds"])
        cells = [f"{row['texts']:,}", f"{median:.3g}", f"{min(times):.3g} to {max(times):.3g}"]
        cells += [f"{row['texts'] / median:,.0f}", f"{row['tokens'] / median:,.0f}" if row["tokens"] else ""]
        lines.append(f"| {row['what']} | {' | '.join(cells)} | {row['peak_bytes'] / 1e9:.3g} GB |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
