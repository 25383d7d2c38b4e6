"""A byte-level language model on the standard library's sources: NSA against full attention, all else equal.

Both models have the same parameters (full attention leaves NSA's three gates per layer unused), start from the same
values, and see the same bytes in the same order; both curves go into one picture.

    python examples/language_model.py --steps 300
"""

from __future__ import annotations

import argparse
import itertools
import json
import platform
import sys
import time
from pathlib import Path

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn

from nsa_codegen import functional
from nsa_codegen.demo import ByteLM, batches, read_sources
from nsa_codegen.index_sets import causal
from nsa_codegen.nn import NSAAttention
from nsa_codegen.program import Path as AttentionPath
from nsa_codegen.program import Program
from nsa_codegen.target import processor_name

RESULTS = Path(__file__).parent / "results"
LENGTH = 1024
OPTIONS = {
    "hidden_size": 192,
    "num_layers": 4,
    "dropout": 0.0,
    "num_heads": 6,
    "num_kv_heads": 2,
    "head_dim": 32,
    "window_size": 128,
    "block_size": 32,
    "num_selected_blocks": 6,
    "num_initial_blocks": 1,
    "num_local_blocks": 2,
    "compression_kernel": 16,
    "compression_stride": 8,
    "selection": "compressed",
}


class FullAttention(NSAAttention):
    """Dense causal attention with the projections of `NSAAttention`."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the attention's output `[B, T, hidden]` for `x [B, T, hidden]`."""
        spec = self.spec
        program = Program(
            name="full",
            num_heads=spec.num_heads,
            num_kv_heads=spec.num_kv_heads,
            head_dim=spec.head_dim,
            value_dim=spec.value_dim,
            paths=(AttentionPath(name="all", visible=causal()),),
        )
        q = self.q_proj(x).unflatten(-1, (spec.num_heads, spec.head_dim))
        k = self.k_proj["shared"](x).unflatten(-1, (spec.kv_heads, spec.head_dim))
        v = self.v_proj["shared"](x).unflatten(-1, (spec.kv_heads, spec.dv))
        return self.o_proj(functional.attention(program, q, {"all": (k, v)}).flatten(2))


def build(attention: str, seed: int) -> ByteLM:
    """Return the model with `"nsa"` or `"full"` attention; the same seed gives the same initial values."""
    torch.manual_seed(seed)
    model = ByteLM(**OPTIONS)
    if attention == "full":
        for block in model.body.blocks:
            replaced = FullAttention(OPTIONS["hidden_size"], block.attention.spec)
            replaced.load_state_dict(block.attention.state_dict())
            block.attention = replaced
    return model


def train(attention: str, text: Tensor, *, steps: int, batch: int, seed: int) -> dict:
    """Train one model; return its curve of losses in bits per byte, and the loss on held-out text."""
    model, split = build(attention, seed), int(0.95 * len(text))
    optimiser = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.05, betas=(0.9, 0.95))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 2e-3, total_steps=steps, pct_start=0.1)
    pieces = batches(text[:split], torch.Generator().manual_seed(seed), batch=batch, length=LENGTH)
    curve, start = [], time.perf_counter()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, disable=not sys.stderr.isatty()) as progress:
        bar = progress.add_task(attention, total=steps)
        for step, piece in enumerate(itertools.islice(pieces, steps)):
            loss = model.loss(piece)
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimiser.step()
            schedule.step()
            bits = loss.item() / torch.log(torch.tensor(2.0)).item()
            curve.append(bits)
            progress.update(bar, advance=1, description=f"{attention}: {bits:.3f} bits per byte")
            if step % 50 == 0 and progress.disable:
                print(f"{attention}: step {step}, {bits:.3f} bits per byte", flush=True)
    seconds = time.perf_counter() - start
    return {
        "attention": attention,
        "parameters": sum(p.numel() for p in model.parameters()),
        "held_out_bits_per_byte": held_out(model, text[split:]),
        "tokens_per_second": round(steps * batch * LENGTH / seconds),
        "seconds": round(seconds, 1),
        "curve": curve,
    }


@torch.no_grad()
def held_out(model: ByteLM, text: Tensor) -> float:
    """Return bits per byte over pieces of `text` that lie side by side."""
    pieces = text[: len(text) // (LENGTH + 1) * (LENGTH + 1)].long().view(-1, LENGTH + 1)[:40]
    losses = [model.loss(piece[None]) for piece in pieces]
    return (torch.stack(losses).mean() / torch.log(torch.tensor(2.0))).item()


def draw(runs: list[dict], path: Path) -> None:
    """Save both curves, smoothed over 20 steps."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    for run in runs:
        losses = torch.tensor(run["curve"])
        window = min(20, len(losses))
        name = {"nsa": "native sparse attention", "full": "full attention"}[run["attention"]]
        label = f"{name}: {run['held_out_bits_per_byte']:.3f} held out"
        axes.plot(range(window - 1, len(losses)), losses.unfold(0, window, 1).mean(1), label=label)
    axes.set(xlabel="step", ylabel="bits per byte", title=f"Python sources, {LENGTH} bytes of context")
    axes.legend()
    figure.savefig(path, dpi=120)


def main() -> None:
    """Train both models, print and save what they reach."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    sizes = {"steps": options.steps, "batch": options.batch, "seed": options.seed}
    runs = [train(attention, read_sources(), **sizes) for attention in ("nsa", "full")]
    options.out.mkdir(exist_ok=True, parents=True)
    draw(runs, options.out / "language_model.png")
    record = {
        "command": " ".join(["python examples/language_model.py", *(f"--{n} {value}" for n, value in sizes.items())]),
        "machine": processor_name(),
        "platform": platform.platform(),
        "torch": torch.__version__,
        "context": LENGTH,
        "options": OPTIONS,
        "runs": [{**run, "curve": [round(x, 4) for x in run["curve"]]} for run in runs],
    }
    (options.out / "language_model.json").write_text(json.dumps(record) + "\n")
    for run in runs:
        print(f"{run['attention']}: {run['held_out_bits_per_byte']:.3f} bits per byte held out, {run['seconds']} s")


if __name__ == "__main__":
    main()
