"""Sparse attentions as descriptions of about ten lines, compiled by the same templates: run it to print them.

Each function returns a `Program`: which keys, which of them a query sees, and how the paths are combined. Loops,
masks, gathering and backward follow from that. `functional.attention(program, q, kv, gates)` runs one.
"""

from __future__ import annotations

from nsa_codegen.index_sets import causal, complete, first, top_k, window
from nsa_codegen.program import Path, Phi, Program


def dense(num_heads: int = 8, num_kv_heads: int = 8, head_dim: int = 64) -> Program:
    """Plain causal attention."""
    return Program(
        name="dense",
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        paths=(Path(name="all", visible=causal()),),
    )


def sinks(num_heads: int = 8, num_kv_heads: int = 8, head_dim: int = 64, sink: int = 4, recent: int = 512) -> Program:
    """Sliding window with sink tokens (StreamingLLM): the first `sink` tokens and the last `recent`."""
    return Program(
        name="sinks",
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        paths=(Path(name="recent", visible=first(sink) | window(recent)),),
    )


def moba(num_heads: int = 8, num_kv_heads: int = 8, head_dim: int = 64, block: int = 512, n: int = 3) -> Program:
    """Mixture of block attention (MoBA): the query's own block and the `n - 1` past ones whose mean key fits best."""
    return Program(
        name="moba",
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        paths=(Path(name="blocks", visible=top_k("mean_key", n=n, block=block)),),
    )


def nsa_seed(num_heads: int = 8, num_kv_heads: int = 8, head_dim: int = 32) -> Program:
    """NSA in its seed form: mean compression, mean-key selection, one gate per path."""
    return Program(
        name="nsa",
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        combine="scalar",
        paths=(
            Path(name="compressed", keys=Phi(kernel=4, stride=4), visible=complete(4, 4)),
            Path(name="selected", visible=top_k("mean_key", n=8, block=16)),
            Path(name="window", visible=window(64)),
        ),
    )


def nsa_paper(num_heads: int = 64, num_kv_heads: int = 4, head_dim: int = 192, value_dim: int = 128) -> Program:
    """NSA in the paper's form: learned compression whose softmax chooses the blocks, gates per token and head."""
    return Program(
        name="nsa",
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        value_dim=value_dim,
        combine="sigmoid",
        paths=(
            Path(name="compressed", keys=Phi(method="mlp", kernel=32, stride=16), visible=complete(32, 16)),
            Path(name="selected", visible=top_k("compressed", n=16, block=64, initial=1, local=2)),
            Path(name="window", visible=window(512)),
        ),
    )


PROGRAMS = (dense, sinks, moba, nsa_seed, nsa_paper)


def table(program: Program, tokens: int) -> str:
    """Return the operations and bytes of each path of `program` for one sequence, as text."""
    rows = [("path", "keys per query", "GFLOP", "MB")]
    for cost in program.cost(tokens):
        operations, megabytes = f"{cost.operations / 1e9:.2f}", f"{cost.bytes / 1e6:.1f}"
        rows.append((cost.path, f"{cost.pairs / tokens:.0f}", operations, megabytes))
    return "\n".join(f"  {name:<12}{keys:>16}{work:>12}{moved:>10}" for name, keys, work, moved in rows)


def main(tokens: int = 8192) -> None:
    """Print every program and what it costs."""
    for make in PROGRAMS:
        program = make()
        print(f"{make.__name__}: {(make.__doc__ or '').splitlines()[0]}\n{program}\n{tokens} tokens, forward, float32:")
        print(f"{table(program, tokens)}\n")


if __name__ == "__main__":
    main()
