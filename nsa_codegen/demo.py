"""The main job on real text: build kernels, train a byte-level language model, check it, save it, let it write.

The text is the Python standard library's own sources, which every machine that runs this has. The model is NSA in the
paper's form at a small size; attention and its gradients run on compiled kernels, the rest is torch.
"""

from __future__ import annotations

import copy
import math
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .build import build_all
from .cache import ModelCache
from .errors import DemoError, MissingPackageError
from .index_sets import require_choice
from .nn import IMPLS, NSA, NSAModel
from .outputs import require_file
from .requests import needed_requests
from .spec import NSASpec
from .target import native_target

if TYPE_CHECKING:
    from rich.console import Console

BYTES = 256  # the vocabulary
CONTEXT, BATCH = 512, 4  # bytes that the model sees at once, and sequences per step
LEARNING_RATE, WARM_UP_STEPS, CLIP = 3e-3, 20, 1.0
HELD_OUT = 0.1  # of the text, its end, never trained on
OPTIONS: dict[str, Any] = {
    "hidden_size": 128,
    "num_layers": 2,
    "dropout": 0.0,
    "num_heads": 4,
    "num_kv_heads": 2,
    "head_dim": 32,
    "window_size": 64,
    "block_size": 16,
    "num_selected_blocks": 6,
    "num_initial_blocks": 1,
    "num_local_blocks": 2,
    "compression_kernel": 8,
    "compression_stride": 4,
    "compression": "mlp",
    "selection": "compressed",
    "gate": "sigmoid",
    "kv_per_path": True,
}


class ByteLM(nn.Module):
    """A language model over bytes: embedding, `NSA.build(..., output_mode="all")`, linear to 256 logits.

    NSA itself has no position encoding, so sines and cosines of the position are added to the embedding.
    `options` are those of `NSA.build`; `hidden_size` is the embedding's size too.
    """

    def __init__(self, *, hidden_size: int = 128, impl: str = "auto", **options: Any) -> None:
        super().__init__()
        self.embedding = nn.Embedding(BYTES, hidden_size)
        self.body: NSAModel = NSA.build(hidden_size, hidden_size, output_mode="all", impl=impl, **options)
        self.head = nn.Linear(hidden_size, BYTES)

    @property
    def spec(self) -> NSASpec:
        """What the model's attention computes."""
        return self.body.options.spec

    def forward(self, tokens: Tensor, cache: ModelCache | None = None) -> Tensor:
        """Return the logits `[B, T, 256]` of the bytes after `tokens [B, T]`, int64, after those of a `cache`."""
        embedded = self.embedding(tokens)
        start = 0 if cache is None else cache.length
        logits: Tensor = self.head(self.body(embedded + positions(embedded, start), cache))
        return logits

    def loss(self, tokens: Tensor) -> Tensor:
        """Return the mean cross-entropy, in nats, of each byte of `tokens [B, T + 1]` given those before it."""
        return F.cross_entropy(self(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())


def positions(x: Tensor, start: int = 0) -> Tensor:
    """Return the sinusoidal encoding `[T, D]` of the positions from `start` on of `x [B, T, D]`.

    Wavelengths are from 2 pi to 20000 pi.
    """
    half = x.shape[-1] // 2
    frequencies = torch.exp(torch.arange(half, device=x.device) * (-math.log(10_000.0) / half))
    angles = torch.arange(start, start + x.shape[1], device=x.device)[:, None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], dim=1).to(x.dtype)


def read_sources(limit: int = 4_000_000) -> Tensor:
    """Return up to `limit` bytes of the standard library's sources, uint8, in the order of their names."""
    folder = Path(os.__file__).parent
    text = bytearray()
    for path in sorted(folder.glob("*.py")) + sorted(folder.glob("*/*.py")):
        if len(text) >= limit:
            break
        if path.parent.name not in ("site-packages", "dist-packages", "test"):
            text += path.read_bytes()
    if len(text) < 100 * CONTEXT:
        raise DemoError(f"{folder} holds {len(text)} bytes of Python sources; the demo trains on those: install them")
    return torch.frombuffer(text[:limit], dtype=torch.uint8)


def batches(text: Tensor, generator: torch.Generator, *, batch: int = BATCH, length: int = CONTEXT) -> Iterator[Tensor]:
    """Yield random pieces of `text` without end, int64 `[batch, length + 1]`."""
    while True:
        starts = torch.randint(0, len(text) - length - 1, (batch, 1), generator=generator)
        yield text[starts + torch.arange(length + 1)].long()


@torch.no_grad()
def generate(
    model: ByteLM, prompt: bytes, length: int, *, temperature: float = 0.0, generator: torch.Generator | None = None
) -> bytes:
    """Return `length` bytes that follow `prompt`: the likeliest ones, or with a temperature, drawn ones.

    A cache keeps what the model has seen; past the context that it was trained with, it sees the last half anew.
    """
    tokens = torch.tensor([list(prompt)])
    cache, new = model.body.new_cache(), tokens[:, -CONTEXT:]
    for _ in range(length):
        if cache.length + new.shape[1] > CONTEXT:
            cache, new = model.body.new_cache(), tokens[:, -CONTEXT // 2 :]
        logits = model(new, cache)[:, -1]
        if temperature > 0:
            following = torch.multinomial((logits / temperature).softmax(-1), 1, generator=generator)
        else:
            following = logits.argmax(-1, keepdim=True)
        tokens, new = torch.cat([tokens, following], dim=1), following
    return bytes(tokens[0, len(prompt) :].tolist())


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """How far one result is from float64: `error`, eager float32's `eager`, and the `allowed` 3 * eager + 2 ulp."""

    name: str
    error: float
    eager: float
    allowed: float

    @property
    def holds(self) -> bool:
        """Whether the error is one that is allowed."""
        return self.error <= self.allowed


def compare_with_float64(model: ByteLM, tokens: Tensor) -> tuple[Agreement, ...]:
    """Return how logits and gradients agree with the float64 reference, on `tokens [B, T + 1]`.

    All gradients of a block are taken as one vector. On its own, that of a bias on keys is nothing but rounding,
    since softmax ignores what all keys have in common.
    """
    eager = copy.deepcopy(model)
    eager.body.impl = "reference"
    found = [_results(m, tokens) for m in (model, eager, copy.deepcopy(eager).double())]
    return tuple(_agreement(name, *(f[name] for f in found)) for name in found[0])


def _results(model: ByteLM, tokens: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    with torch.no_grad():
        logits = model(tokens[:, :-1])
    model.loss(tokens).backward()  # type: ignore[no-untyped-call]
    parts = {"embedding": model.embedding, "head": model.head}
    parts |= {f"block {i}": block for i, block in enumerate(model.body.blocks)}
    gradients = {}
    for name, module in parts.items():
        own = [p.grad.flatten() for p in module.parameters() if p.grad is not None]
        gradients[f"gradients of {name}"] = torch.cat(own)
    model.zero_grad()
    return {"logits": logits, **gradients}


def _agreement(name: str, mine: Tensor, eager: Tensor, exact: Tensor) -> Agreement:
    error, other = ((x.double() - exact).abs().nan_to_num(nan=math.inf).max().item() for x in (mine, eager))
    floor = 2 * torch.finfo(torch.float32).eps * exact.abs().max().item()
    return Agreement(name=name, error=error, eager=other, allowed=3 * other + floor)


@dataclass(frozen=True, kw_only=True)
class DemoResult:
    """What the demo measured; losses are in nats per byte, on text that was held out."""

    parameters: int
    steps: int
    train_seconds: float
    train_tokens_per_second: float
    forward_tokens_per_second: float
    loss_before: float
    loss_after: float
    agreements: tuple[Agreement, ...]
    model_bytes: int
    saved: str | None
    prompt: str
    continuation: str

    @property
    def worst(self) -> Agreement:
        """The result nearest to, or farthest beyond, its allowed error."""
        return max(self.agreements, key=lambda a: a.error / a.allowed if a.allowed else math.inf * a.error)

    @property
    def agrees(self) -> bool:
        """Whether every result is within its allowed error."""
        return all(a.holds for a in self.agreements)

    def to_json(self) -> dict[str, Any]:
        """Return the result as plain data."""
        return asdict(self) | {"agrees": self.agrees}


def run_demo(
    *,
    seconds: float = 30.0,
    steps: int | None = None,
    impl: str = "compiled",
    save: Path | None = None,
    temperature: float = 0.7,
    out: Console | None = None,
) -> DemoResult:
    """Run the demo, telling its story on `out`, and return what it measured.

    Trains for `steps`, or else for about `seconds`. An interrupted training leaves what it has trained in `save`.
    Raises `MissingPackageError`, `OutputError`, `DemoError`, and what building kernels raises.
    """
    require_choice("demo", "impl", impl, IMPLS)
    _require_safetensors()
    if save is not None:
        require_file("demo.save", save)
    if out is None:
        from rich.console import Console

        out = Console(quiet=True)
    torch.manual_seed(0)
    text = read_sources()
    cut = int(len(text) * (1 - HELD_OUT))
    held_out = batches(text[cut:], torch.Generator().manual_seed(1))
    fixed = torch.cat([next(held_out) for _ in range(4)])
    model = ByteLM(impl=impl, **OPTIONS)
    parameters = sum(p.numel() for p in model.parameters())
    out.print(f"text: {len(text):,} bytes of Python's standard library, the last tenth held out")
    out.print(f"model: {parameters:,} parameters, {OPTIONS['num_layers']} NSA layers, context {CONTEXT} bytes")
    if impl != "reference":
        _build_kernels(model.spec, out)

    before = _held_out_loss(model, fixed)
    try:
        took, tokens_seen, done = _train(model, text[:cut], seconds, steps, out)
    except KeyboardInterrupt:
        if save is not None:
            _save(model, save)
            out.print(f"interrupted; the model as it was is in {save}", markup=False, soft_wrap=True)
        raise
    after = _held_out_loss(model, fixed)
    forward_speed = _forward_speed(model, fixed[:, :-1])
    agreements = compare_with_float64(model, fixed[:2])
    size = _save_and_reload(model, save, fixed[:1, :-1])
    prompt = b"import os\n\n\ndef "
    written = generate(model, prompt, 240, temperature=temperature, generator=torch.Generator().manual_seed(2))
    result = DemoResult(
        parameters=parameters,
        steps=done,
        train_seconds=took,
        train_tokens_per_second=tokens_seen / took,
        forward_tokens_per_second=forward_speed,
        loss_before=before,
        loss_after=after,
        agreements=agreements,
        model_bytes=size,
        saved=None if save is None else str(save),
        prompt=prompt.decode(),
        continuation=written.decode(errors="replace"),
    )
    _tell(result, impl, out)
    return result


def _require_safetensors() -> None:
    import importlib.util

    if importlib.util.find_spec("safetensors") is None:
        raise MissingPackageError(
            "the demo saves its model with safetensors, which is not installed; pip install 'nsa_codegen[train]'"
        )


def _build_kernels(spec: NSASpec, out: Console) -> None:
    requests = needed_requests(spec.program(), "float32", native_target())
    start = time.perf_counter()
    with _progress(out) as progress:
        task = progress.add_task("building kernels", total=len(requests))
        built = build_all(requests, on_done=lambda _: progress.advance(task))
    for outcome in built:
        if outcome.error is not None:
            raise outcome.error
    fresh = sum(b.how != "stored" for b in built)
    took = time.perf_counter() - start
    out.print(f"kernels: {len(built)} forward and backward, {fresh} of them built now, in {took:.1f} s")


def _train(model: ByteLM, text: Tensor, seconds: float, steps: int | None, out: Console) -> tuple[float, int, int]:
    """Train with AdamW, and return the seconds it took, the bytes trained on, and the steps."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0.01)
    pieces, losses, step = batches(text, torch.Generator().manual_seed(0)), [], 0
    start = time.perf_counter()

    def fraction_done() -> float:
        return step / steps if steps is not None else (time.perf_counter() - start) / seconds

    with _progress(out) as progress:
        task = progress.add_task("training", total=1.0)
        while (done := fraction_done()) < 1:
            for group in optimizer.param_groups:  # warm up, then decay to a tenth
                group["lr"] = LEARNING_RATE * min(1, (step + 1) / WARM_UP_STEPS) * (1 - 0.9 * done)
            loss = model.loss(next(pieces))
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(model.parameters(), CLIP)
            optimizer.step()
            step += 1
            losses.append(loss.item())
            recent = sum(losses[-20:]) / len(losses[-20:])
            progress.update(task, completed=fraction_done(), description=f"training, step {step}, loss {recent:.3f}")
            if not out.is_terminal and (step == 1 or step % 50 == 0):
                out.print(f"  step {step:4}  loss {recent:.3f}")
    return time.perf_counter() - start, step * BATCH * CONTEXT, step


@torch.no_grad()
def _held_out_loss(model: ByteLM, tokens: Tensor) -> float:
    return model.loss(tokens).item()


@torch.no_grad()
def _forward_speed(model: ByteLM, tokens: Tensor) -> float:
    """Return tokens per second of forward passes over `tokens`, the best of some."""
    return tokens.numel() / min(_seconds(lambda: model(tokens)) for _ in range(4))


def _seconds(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


@torch.no_grad()
def _save_and_reload(model: ByteLM, save: Path | None, tokens: Tensor) -> int:
    """Save, load into a new model, and return the file's size; raises `DemoError` unless outputs are bit-equal."""
    from safetensors.torch import load_file

    with tempfile.TemporaryDirectory() as folder:
        path = save or Path(folder) / "model.safetensors"
        _save(model, path)
        again = ByteLM(impl=model.body.impl, **OPTIONS)
        again.load_state_dict(load_file(path))
        if not torch.equal(again(tokens), model(tokens)):
            raise DemoError(f"the model reloaded from {path} computes something else than the one that was saved")
        return path.stat().st_size


def _save(model: ByteLM, path: Path) -> None:
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    try:
        save_file(model.state_dict(), path)
    except (OSError, SafetensorError) as error:
        raise DemoError(f"the model can't be saved as {path}: {error}") from error


def _tell(result: DemoResult, impl: str, out: Console) -> None:
    from rich.text import Text

    bits = [loss / math.log(2) for loss in (result.loss_before, result.loss_after)]
    worst, count = result.worst, len(result.agreements)
    verdict = "agree" if result.agrees else "DISAGREE"
    lines = (
        f"loss on held-out text: {result.loss_before:.3f} -> {result.loss_after:.3f} nats per byte "
        f"({bits[0]:.2f} -> {bits[1]:.2f} bits) in {result.steps} steps",
        f"speed: {result.train_tokens_per_second:,.0f} tokens/s training, "
        f"{result.forward_tokens_per_second:,.0f} tokens/s forward",
        f"float64 reference: logits and gradients of {count - 1} parts {verdict}; allowed is 3x eager float32's error "
        f"+ 2 ulp, the nearest to it: {worst.name}, {worst.error:.1e} of {worst.allowed:.1e}",
        f"saved and reloaded: {result.saved or 'a temporary file'}, {result.model_bytes:,} bytes, outputs bit-equal",
        f"attention by: {impl}, {torch.get_num_threads()} threads",
    )
    out.rule("continuation")
    out.print(Text(result.prompt, style="bold") + Text(result.continuation, style="not bold"))
    out.rule("summary")
    for line in lines:
        out.print(line, markup=False, soft_wrap=True)


def _progress(out: Console) -> Any:
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
    return Progress(*columns, console=out, disable=not out.is_terminal)
