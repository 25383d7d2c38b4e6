"""Needle retrieval: only the selected path can find a key-value pair far outside the window.

A sequence is a haystack of pairs (key, value), each one position, followed by queries that show a key of a pair at
least eight windows back and ask for its value. The compressed path sees that pair only as one of several in a mean;
exact attention to it has to come from a block that the compressed scores select. The same model is trained with the
selected path and with its gate held at 0.

    python examples/needle.py --steps 1000
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn

from nsa_codegen import NSA
from nsa_codegen.nn import NSAAttention
from nsa_codegen.target import processor_name

SELECTED = 1  # the order of gates is compressed, selected, window
RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True, kw_only=True)
class Task:
    """The sizes of a haystack.

    Keys are fresh random codes, so that nothing can be learnt by heart. Queries stand at the end, `distance` or more
    positions from their pairs.
    """

    pairs: int = 256
    queries: int = 32
    code: int = 64
    values: int = 16
    window: int = 16
    distance: int = 128

    def batch(self, size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return features `[size, pairs + queries, code + values]` and the queries' values `[size, queries]`."""
        keys = torch.randn(size, self.pairs, self.code, generator=generator)
        values = torch.randint(self.values, (size, self.pairs), generator=generator)
        # The first query stands at `pairs`, so that every pair up to `pairs - distance` is far enough from all of them.
        reach = self.pairs - self.distance + 1
        asked = torch.rand(size, reach, generator=generator).argsort(dim=1)[:, : self.queries]
        shown = keys.gather(1, asked[:, :, None].expand(-1, -1, self.code))
        named = nn.functional.one_hot(values, self.values) * self.values**0.5
        features = torch.cat([keys, shown], dim=1)
        features = torch.cat([features, nn.functional.pad(named, (0, 0, 0, self.queries))], dim=2)
        return features, values.gather(1, asked)


class Retriever(nn.Module):
    """An NSA model with a linear read-out of the value at every query."""

    def __init__(self, task: Task, *, selection: bool, layers: int) -> None:
        super().__init__()
        self.queries = task.queries
        self.body = NSA.build(
            embed_dim=task.code + task.values,
            hidden_size=128,
            num_heads=4,
            head_dim=64,
            num_layers=layers,
            window_size=task.window,
            block_size=16,
            num_selected_blocks=8,
            compression_ratio=4,
            selection="compressed",
            gate="sigmoid",
            dropout=0.0,
            output_mode="all",
            seq_len=task.pairs + task.queries,
        )
        self.head = nn.Linear(128, task.values)
        if not selection:
            switch_off_selection(self.body)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits `[B, queries, values]` for features `[B, pairs + queries, code + values]`."""
        return self.head(self.body(x)[:, -self.queries :])


def switch_off_selection(model: nn.Module) -> None:
    """Hold the selected path's gate at exactly 0: a sigmoid of -inf, whose gradient is 0 as well."""
    for layer in model.modules():
        if isinstance(layer, NSAAttention):
            with torch.no_grad():
                layer.gate_proj.weight.view(layer.spec.num_heads, 3, -1)[:, SELECTED] = 0.0
                layer.gate_proj.bias.view(layer.spec.num_heads, 3)[:, SELECTED] = -torch.inf


def train(task: Task, *, selection: bool, steps: int, batch: int, layers: int, seed: int) -> dict:
    """Train one model; return its curve and its accuracy on sequences that it has not seen."""
    torch.manual_seed(seed)
    model = Retriever(task, selection=selection, layers=layers)
    optimiser = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.01, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 2e-3, total_steps=steps, pct_start=0.1)
    generator = torch.Generator().manual_seed(seed + 1)
    curve, start = [], time.perf_counter()
    name = "with selection" if selection else "without selection"
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, disable=not sys.stderr.isatty()) as progress:
        bar = progress.add_task(name, total=steps)
        for step in range(steps):
            x, y = task.batch(batch, generator)
            logits = model(x)
            loss = nn.functional.cross_entropy(logits.flatten(0, 1), y.flatten())
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimiser.step()
            schedule.step()
            accuracy = (logits.argmax(-1) == y).float().mean().item()
            curve.append((step, loss.item(), accuracy))
            progress.update(bar, advance=1, description=f"{name}: loss {loss.item():.3f}, accuracy {accuracy:.3f}")
            if step % 100 == 0 and progress.disable:
                print(f"{name}: step {step}, loss {loss.item():.3f}, accuracy {accuracy:.3f}", flush=True)
    return {
        "selection": selection,
        "accuracy": evaluate(model, task, torch.Generator().manual_seed(seed + 2)),
        "seconds": round(time.perf_counter() - start, 1),
        "parameters": sum(p.numel() for p in model.parameters()),
        "curve": curve,
    }


@torch.no_grad()
def evaluate(model: Retriever, task: Task, generator: torch.Generator, batches: int = 20) -> float:
    """Return the share of queries answered rightly on fresh sequences."""
    hits = []
    for _ in range(batches):
        x, y = task.batch(32, generator)
        hits.append((model(x).argmax(-1) == y).float().mean().item())
    return sum(hits) / len(hits)


def draw(runs: list[dict], task: Task, path: Path) -> None:
    """Save the accuracy of both runs against the step, smoothed over 20 steps."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    for run in runs:
        accuracy = torch.tensor([a for _, _, a in run["curve"]])
        window = min(20, len(accuracy))
        smooth = accuracy.unfold(0, window, 1).mean(dim=1)
        name = "with selection" if run["selection"] else "selected path off"
        axes.plot(range(window - 1, len(accuracy)), smooth, label=f"{name}: {100 * run['accuracy']:.1f} % on new data")
    axes.axhline(1 / task.values, color="grey", linestyle=":", label="guessing")
    axes.set(xlabel="step", ylabel="accuracy on the queries", ylim=(0, 1.02))
    axes.set_title(f"A pair at least {task.distance // task.window} windows back, among {task.pairs}")
    axes.legend()
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, dpi=120)


def main() -> None:
    """Train both models, print and save what they reach."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--layers", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    task = Task()
    sizes = {"steps": options.steps, "batch": options.batch, "layers": options.layers, "seed": options.seed}
    runs = [train(task, selection=selection, **sizes) for selection in (True, False)]
    options.out.mkdir(exist_ok=True, parents=True)
    draw(runs, task, options.out / "needle.png")
    record = {
        "command": " ".join(["python examples/needle.py", *(f"--{name} {value}" for name, value in sizes.items())]),
        "machine": processor_name(),
        "platform": platform.platform(),
        "torch": torch.__version__,
        "task": asdict(task),
        "runs": [{**run, "curve": run["curve"][:: max(1, options.steps // 200)]} for run in runs],
    }
    (options.out / "needle.json").write_text(json.dumps(record, indent=1) + "\n")
    for run in runs:
        print(f"selection={run['selection']}: accuracy {100 * run['accuracy']:.1f} % in {run['seconds']} s")


if __name__ == "__main__":
    main()
