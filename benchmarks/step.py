"""What one step costs: two plain passes of a language model, RepNoise's step with all layers and with a quarter of them
(drawn anew each step), and a literal step as published, side by side.

    python benchmarks/step.py                                   # the three default shapes, on what device there is
    python benchmarks/step.py --shapes tiny --repeats 2         # a try, in seconds
    python benchmarks/step.py --shapes 7b --precision bf16      # for a GPU with 141 GB

A step is forward and backward pass without the optimiser, which is the same for all. Every variant of every shape runs
in a process of its own, so that no peak of memory is another's: on a CPU the peak is what the process came to hold
beyond what it held before the model; on a GPU, what PyTorch's allocator gave out at most. The time is the median of
`--repeats` steps after two that are not counted, the spread the fastest and the slowest. The floor of a step is
`repnoise.estimate`'s count of its operations less what is computed twice, at the rate of large products of matrices
that is measured in the same run. That of the literal step is RepNoise's: it is to do the same.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from own_process import alone, resident
from torch import Tensor, nn

VARIANTS = ("plain", "repnoise", "quarter", "literal")
UNCOUNTED = 2


@dataclass(frozen=True)
class Shape:
    """A Llama, and a batch of pairs: `completion` is the completion's share of the tokens of a row."""

    layers: int = 8
    width: int = 512
    intermediate: int = 1376
    heads: int = 8
    vocabulary: int = 32_000
    rows: int = 4
    length: int = 256
    completion: float = 0.75

    def prompt(self) -> int:
        return self.length - round(self.length * self.completion)


SHAPES = {
    "base": Shape(),
    "twice-the-layers": Shape(layers=16),
    "long-prompts": Shape(length=512, completion=0.375),
    "tiny": Shape(layers=2, width=32, intermediate=64, heads=2, vocabulary=200, rows=2, length=16),
    "7b": Shape(layers=32, width=4096, intermediate=11008, heads=32, rows=8),
}
"""By name. The first three are the default: beside the first, one has twice the layers, and one as many completion
tokens behind prompts five times as long."""


def main() -> None:
    """Measure every variant of every shape and print a table; with --output, write what was measured as JSON."""
    options = _options()
    if options.only:
        print(json.dumps(measured(options.only, Shape(**json.loads(options.shape)), options)))
        return
    settings = ["--precision", options.precision, "--device", options.device, "--repeats", str(options.repeats)]
    results = []
    for name in options.shapes:
        shape = SHAPES[name]
        rate = _alone("rate", shape, settings)
        rows = [_alone(variant, shape, settings) for variant in options.variants]
        results += [{"shape": name, **row, **_against_floor(row, shape, rate)} for row in rows]
        print(table(results[-len(rows) :]), flush=True)
    if options.output:
        facts = {"torch": torch.__version__, "threads": torch.get_num_threads(), "device": _device_name(options.device)}
        shapes = {name: asdict(SHAPES[name]) for name in options.shapes}
        options.output.write_text(json.dumps({**facts, "shapes": shapes, "steps": results}, indent=2) + "\n")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES)[:3])
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--repeats", type=int, default=7, help="steps that are timed")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--output", type=Path, help="JSON file for the results")
    parser.add_argument("--only", choices=(*VARIANTS, "rate"), help=argparse.SUPPRESS)
    parser.add_argument("--shape", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("there is no GPU to be had: leave --device out, or run this where there is one")
    return options


def _alone(only: str, shape: Shape, settings: list[str]) -> dict[str, Any]:
    """What a process of its own measured, or why it could not."""
    return {"variant": only} | alone(__file__, ["--only", only, "--shape", json.dumps(asdict(shape)), *settings])


def measured(variant: str, shape: Shape, options: argparse.Namespace) -> dict[str, Any]:
    """Times of the repeated step in seconds and its peak in bytes; for "rate", operations a second of a product."""
    device = torch.device(options.device)
    if variant == "rate":
        from repnoise.estimate import find_device

        return {"variant": variant, "rate": find_device("here").rate(options.precision)}
    torch.manual_seed(0)
    tiny = SHAPES["tiny"]  # A step that imports all there is to import.
    STEPS[variant](llama(tiny, device), batch(tiny, 0, device), batch(tiny, 1, device)).backward()
    before = resident("VmRSS")
    model = llama(shape, device)
    harmless, harmful = batch(shape, 0, device), batch(shape, 1, device)
    times = []
    for number in range(UNCOUNTED + options.repeats):
        model.zero_grad()
        start = time.perf_counter()
        with torch.autocast(device.type, torch.bfloat16, enabled=options.precision == "bf16"):
            loss = STEPS[variant](model, harmless, harmful)
        loss.backward()
        loss.item()  # Waits for the GPU.
        if device.type == "cuda":
            torch.cuda.synchronize()
        if number >= UNCOUNTED:
            times.append(time.perf_counter() - start)
    peak = torch.cuda.max_memory_allocated() if device.type == "cuda" else resident("VmHWM") - before
    return {"variant": variant, "seconds": times, "peak_bytes": peak}


def llama(shape: Shape, device: torch.device) -> nn.Module:
    """A Llama of this shape with random weights in fp32, made where it is used."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.width,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        max_position_embeddings=max(2048, shape.length),
        pad_token_id=1,
    )
    with device:
        return LlamaForCausalLM(config).train()


def batch(shape: Shape, seed: int, device: torch.device) -> dict[str, Tensor]:
    """Random tokens without padding, the prompt not to be predicted."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, shape.vocabulary, (shape.rows, shape.length), generator=generator)
    labels = ids.clone()
    labels[:, : shape.prompt()] = -100
    found = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}
    return {name: tensor.to(device) for name, tensor in found.items()}


def plain(model: nn.Module, harmless: dict[str, Tensor], harmful: dict[str, Tensor]) -> Tensor:
    """Cross-entropy of both completions: what two steps of ordinary fine-tuning compute."""
    from repnoise.defences.base import completion_ce

    return completion_ce(model, harmless) + completion_ce(model, harmful)


def repnoise(model: nn.Module, harmless: dict[str, Tensor], harmful: dict[str, Tensor]) -> Tensor:
    """The step of `repnoise defend`, with the whole lens."""
    from repnoise.defences import RepNoise

    return RepNoise().loss(model, harmless, harmful)[0]


def quarter(model: nn.Module, harmless: dict[str, Tensor], harmful: dict[str, Tensor]) -> Tensor:
    """The same with a quarter of the layers, drawn anew each step."""
    from repnoise.defences import RepNoise

    layers = model.config.num_hidden_layers  # type: ignore[union-attr]
    return RepNoise(layers_per_step=max(1, layers // 4)).loss(model, harmless, harmful)[0]  # type: ignore[operator]


def literal(model: nn.Module, harmless: dict[str, Tensor], harmful: dict[str, Tensor]) -> Tensor:
    """The same terms as directly as the paper's formulas can be written down.

    All hidden states are read out at all positions, and every pair of samples is subtracted from one another, samples
    being whole sequences. Masks are right, so that it is the memory and the work that differ and not the tokens.
    """
    stability = _literal_ce(_logits(model, harmless).logits, harmless)
    activations: list[Tensor] = []
    layers: Any = model.get_submodule("model.layers")
    hooks = [layer.mlp.register_forward_hook(lambda *arguments: activations.append(arguments[2])) for layer in layers]
    output = _logits(model, harmful, output_hidden_states=True)
    for hook in hooks:
        hook.remove()
    chosen = (harmful["labels"] != -100)[..., None]
    noise = [_literal_mmd((a * chosen).flatten(1), (torch.randn_like(a) * chosen).flatten(1)) for a in activations]
    norm, unembedding = model.get_submodule("model.norm"), model.get_submodule("lm_head")
    ascent = [_literal_ce(unembedding(norm(state)), harmful) for state in output.hidden_states[:-1]]
    ascent.append(_literal_ce(output.logits, harmful))
    return stability + torch.stack(noise).mean() - torch.log1p(torch.stack(ascent).mean())


def _logits(model: nn.Module, batch: dict[str, Tensor], **wanted: bool) -> Any:
    return model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False, **wanted)


def _literal_ce(logits: Tensor, batch: dict[str, Tensor]) -> Tensor:
    return F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), batch["labels"][:, 1:].flatten())


def _literal_mmd(x: Tensor, y: Tensor) -> Tensor:
    """Biased MMD^2 with five kernels from the differences of all pairs: a tensor (2n, 2n, dimension)."""
    both, n = torch.cat([x, y]).float(), len(x)
    distances = (both[None] - both[:, None]).square().sum(-1)
    bandwidth = distances.detach().sum() / (4 * n * n - 2 * n)
    kernel = torch.stack([torch.exp(-distances / (bandwidth * scale)) for scale in (0.25, 0.5, 1, 2, 4)]).sum(0)
    return kernel[:n, :n].mean() + kernel[n:, n:].mean() - kernel[:n, n:].mean() - kernel[n:, :n].mean()


STEPS: dict[str, Callable[..., Tensor]] = {
    "plain": plain,
    "repnoise": repnoise,
    "quarter": quarter,
    "literal": literal,
}


def _against_floor(row: dict[str, Any], shape: Shape, rate: dict[str, Any]) -> dict[str, Any]:
    """The floor of the variant in operations and in seconds, and the floor's time as a share of the measured one."""
    floor = floor_flops(shape, row["variant"])
    if "failed" in row or "failed" in rate:
        return {"floor_flops": floor}
    seconds = floor / rate["rate"]
    median = statistics.median(row["seconds"])
    return {
        "floor_flops": floor,
        "rate": rate["rate"],
        "floor_seconds": seconds,
        "median_seconds": median,
        "times_floor": median / seconds,
    }


def floor_flops(shape: Shape, variant: str) -> float:
    """Operations that the variant cannot do without, by the formulas of docs/performance.md."""
    from repnoise.defend import DefendConfig
    from repnoise.estimate import Rows, estimate
    from repnoise.inputs import Inputs
    from repnoise.optimisation import Training

    with torch.device("meta"):
        config: Any = llama(shape, torch.device("meta")).config
    defence = DefendConfig(training=Training(batch_size=shape.rows, steps=1))
    drawn = max(1, shape.layers // 4) if variant == "quarter" else None
    defence = replace(defence, defence=replace(defence.defence, retain_weight=0.0, layers_per_step=drawn))
    defence = replace(defence, inputs=Inputs(max_length=shape.length))
    found = estimate(defence, config, Rows(length=shape.length, completion=shape.completion))
    return 2 * found.parts["language modelling"] if variant == "plain" else found.floor_flops


def table(results: list[dict[str, Any]]) -> str:
    """A Markdown table: a line a variant."""
    lines = ["| shape | step | median s | spread | peak | floor | times the floor |", "|---|---|---|---|---|---|---|"]
    for row in results:
        floor = f"{row['floor_flops'] / 1e12:.3g} TFLOP"
        if "failed" in row or "median_seconds" not in row:
            why = str(row.get("failed", "no rate to compare with")).replace("|", "/")
            lines.append(f"| {row['shape']} | {row['variant']} | {why} | | | {floor} | |")
            continue
        times = row["seconds"]
        cells = [f"{row['median_seconds']:.3g}", f"{min(times):.3g} to {max(times):.3g}"]
        cells += [f"{row['peak_bytes'] / 1e9:.3g} GB", f"{floor}, {row['floor_seconds']:.3g} s"]
        lines.append(f"| {row['shape']} | {row['variant']} | {' | '.join(cells)} | {row['times_floor']:.2f} |")
    return "\n".join(lines)


def _device_name(device: str) -> str:
    return torch.cuda.get_device_name() if device == "cuda" else "cpu"


if __name__ == "__main__":
    main()
