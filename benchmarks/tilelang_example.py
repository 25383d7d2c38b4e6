"""Selected attention, forward, beside TileLang's own example of it: what both kernels take, without a GPU.

    git clone --depth 1 https://github.com/tile-ai/tilelang
    python benchmarks/tilelang_example.py tilelang/examples/deepseek_nsa/example_tilelang_nsa_fwd.py --write

The example is lowered with the options that it ships with, and with TileLang's defaults. `--write` keeps its figures in
results/tilelang-nsa-example.json, which a test compares ours with. It needs nvcc and nvdisasm.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.metadata
import importlib.util
import json
import sys
import tempfile
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nsa_codegen.cli.app import print_table
from nsa_codegen.cli.figures import resource_figures
from nsa_codegen.cli.shown import Shown, find_kernels
from nsa_codegen.cli.stages import kernel_resources
from nsa_codegen.nvcc import compile_cubin, find_nvcc
from nsa_codegen.resources import Resources, cubin_resources
from nsa_codegen.spec import NSASpec
from nsa_codegen.target import GPU_TARGETS, GpuTarget

RESULTS = Path(__file__).parent / "results" / "tilelang-nsa-example.json"
TARGETS = ("sm_80", "sm_90a")
HEADS, GROUPS, DIM, BLOCK, SELECTED, TOKENS = 64, 4, 128, 64, 16, 4096
OPTIONS = ("its own", "default")


def load_example(path: Path) -> Any:
    """Return the example's kernel maker; its module imports a reference beside it, which is not needed here."""
    sys.modules.setdefault("reference", types.SimpleNamespace(naive_nsa=None))  # type: ignore[arg-type]
    spec = importlib.util.spec_from_file_location("tilelang_nsa_example", path)
    if spec is None or spec.loader is None:
        raise SystemExit(f"{path} is no Python file")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.native_sparse_attention


def example_resources(maker: Any, target: GpuTarget, options: Mapping[str, Any]) -> Resources:
    """Return what the example's kernel takes on `target`, lowered with these pass options."""
    import tilelang
    from tilelang import tvm

    tvm_target = tvm.target.Target({"kind": "cuda", "arch": target.name})
    with tvm_target, tvm.transform.PassContext(opt_level=3, config=dict(options)):
        function = maker.get_tir(
            batch=1, heads=HEADS, seq_len=TOKENS, dim=DIM, is_causal=True, block_size=BLOCK, groups=HEADS // GROUPS,
            selected_blocks=SELECTED,
        )  # fmt: skip
        lowered = tilelang.lower(function, target=tvm_target)
    (device,) = lowered.device_mod.functions.values()
    threads = int(device.attrs["thread_extent"]["threadIdx.x"])
    shared = int(device.attrs["dyn_shared_memory_buf"])
    with tempfile.TemporaryDirectory() as folder:
        cubin = compile_cubin(str(lowered.kernel_source), target, Path(folder))
        return cubin_resources(cubin, threads=threads, shared_bytes=shared, target=target)


def our_kernel(target: GpuTarget) -> Shown:
    """Return our kernel for the example's shape on `target`."""
    spec = NSASpec.paper(
        num_heads=HEADS, num_kv_heads=GROUPS, head_dim=DIM, value_dim=DIM, block_size=BLOCK,
        num_selected_blocks=SELECTED,
    )  # fmt: skip
    return find_kernels("gather_attention_fwd", spec.program(), "float16", target)[0]


def main() -> None:
    """Print both, and keep the example's figures if asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("example", type=Path, help="example_tilelang_nsa_fwd.py of a TileLang checkout")
    parser.add_argument("--target", nargs="+", default=TARGETS, choices=[n for n in GPU_TARGETS if n.startswith("sm_")])
    parser.add_argument("--write", action="store_true", help=f"keep the example's figures in {RESULTS.name}")
    parser.add_argument("--theirs-only", action="store_true", help="leave our kernel out")
    given = parser.parse_args()
    maker = load_example(given.example)
    figures: dict[str, dict[str, Any]] = {}
    for name in given.target:
        target = GPU_TARGETS[name]
        theirs = {o: example_resources(maker, target, maker.pass_configs if o == "its own" else {}) for o in OPTIONS}
        figures[name] = {o: r.to_json() for o, r in theirs.items()}
        columns = {f"TileLang's example, {o} options": resource_figures(r) for o, r in theirs.items()}
        if not given.theirs_only:
            columns["ours"] = resource_figures(kernel_resources(our_kernel(target)))
        rows = [{"figure": f} | {c: values[f] for c, values in columns.items()} for f in next(iter(columns.values()))]
        print_table(f"selected attention, forward, on {name}", rows, ("figure", *columns))
    if given.write:
        record = {
            "source": "tile-ai/tilelang examples/deepseek_nsa/example_tilelang_nsa_fwd.py",
            "function_sha256": hashlib.sha256(maker.func_source.encode()).hexdigest(),
            "tilelang": importlib.metadata.version("tilelang"),
            "nvcc": find_nvcc().version,
            "shape": {
                "heads": HEADS, "groups": GROUPS, "dim": DIM, "block": BLOCK, "selected": SELECTED, "tokens": TOKENS,
            },
            "figures": figures,
        }  # fmt: skip
        RESULTS.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
