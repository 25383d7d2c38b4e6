"""Launch facts: what TileLang's host code does before and at each kernel launch, as plain data, and its evaluation.

The host module that TileLang lowers to prints as Python. Its text gives the order of arguments, the grid, the dynamic
shared memory and the tensor maps of each launch as expressions of the dynamic sizes; they are kept as text (JSON-able)
and evaluated by a walk over their syntax, for given tensors.
"""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from .executable import Argument, Executable, TensorMap
from .failures import LaunchError
from .report import Report

_AXES = ("blockIdx.x", "blockIdx.y", "blockIdx.z", "threadIdx.x", "threadIdx.y", "threadIdx.z")
_SHARED = "tirx.use_dyn_shared_memory"
_SWIZZLES = {0: 0, 1: 32, 2: 64, 3: 128}
Facts = dict[str, Any]


def launch_facts(artifact: Any) -> Facts:
    """Return the launch facts of `tilelang.lower(...)`'s result, JSON-able.

    `{"arguments": [{"name", "type", "shape"}], "definitions": {name: expression}, "launches": [{"kernel", "grid",
    "block", "shared_bytes", "parameters": [{"tensor"} | {"value"} | {"map"}]}]}`; shapes are lists of expressions,
    None for scalars. A map has the fields of cuTensorMapEncodeTiled. Raises `LaunchError` if the host code has a form
    that is not known.
    """
    for g, f in artifact.device_mod.functions.items():
        if any(int(c) != 1 for c in (f.attrs.get("cluster_dims", ()))):
            raise LaunchError(f"kernel {g.name_hint} is launched in clusters of blocks, which are not modelled")
    device = {
        g.name_hint: [str(tag) for tag in f.attrs["tirx.kernel_launch_params"]]
        for g, f in artifact.device_mod.functions.items()
    }
    return facts_of_host_text(str(artifact.host_mod), device)


def facts_of_host_text(text: str, device: Mapping[str, Sequence[str]]) -> Facts:
    """Return the launch facts in a printed host module; `device` gives each kernel's launch tags in order."""
    functions = [n for n in ast.walk(ast.parse(text)) if isinstance(n, ast.FunctionDef)]
    if len(functions) != 1:
        raise LaunchError(f"the host module has {len(functions)} functions; launch facts are known for one")
    return _Reader(device).read(functions[0])


def bind(facts: Facts, arguments: Sequence[torch.Tensor | int | float]) -> dict[str, Any]:
    """Return the value of every name for these arguments, in the order of the template's: tensors, scalars, sizes.

    Raises `LaunchError` for what the host code of a GPU refuses as well: a tensor with another shape or type than the
    declared one, or one that is not contiguous.
    """
    declared = facts["arguments"]
    if len(arguments) != len(declared):
        raise LaunchError(
            f"{len(declared)} arguments are declared ({', '.join(a['name'] for a in declared)}), not {len(arguments)}"
        )
    names: dict[str, Any] = {}
    pending = []
    for argument, value in zip(declared, arguments, strict=True):
        names[argument["name"]] = value
        if argument["shape"] is None:
            continue
        if not isinstance(value, torch.Tensor) or value.dim() != len(argument["shape"]):
            raise LaunchError(f"argument {argument['name']} must be a tensor of shape {argument['shape']}")
        if str(value.dtype) != f"torch.{argument['type']}" or not value.is_contiguous():
            had = f"{value.dtype}, strides {tuple(value.stride())}"
            raise LaunchError(f"argument {argument['name']} must be a contiguous {argument['type']} tensor, not {had}")
        for expression, size in zip(argument["shape"], value.shape, strict=True):
            if expression.isidentifier() and expression not in names:
                names[expression] = int(size)
            else:
                pending.append((argument["name"], expression, int(size)))
    for name, expression in facts["definitions"].items():
        if name not in names:
            try:
                names[name] = evaluate(expression, names)
            except LaunchError:
                continue
    for name, expression, size in pending:
        if evaluate(expression, names) != size:
            raise LaunchError(
                f"argument {name}: a size is {size} where {expression} = {evaluate(expression, names)} is declared"
            )
    return names


def execute(
    executable: Executable, facts: Facts, arguments: Sequence[torch.Tensor | int | float], *, order: str = "forward",
    seed: int = 0, **options: Any,
) -> list[Report]:  # fmt: skip
    """Run every launch of `facts` in turn over `arguments` (the template's order) and return the reports."""
    names = bind(facts, arguments)
    reports = []
    for launch in facts["launches"]:
        grid, block = (tuple(int(evaluate(x, names)) for x in launch[k]) for k in ("grid", "block"))
        reports.append(executable.run(
            launch["kernel"], grid=(grid[0], grid[1], grid[2]), block=(block[0], block[1], block[2]),
            shared_bytes=int(evaluate(launch["shared_bytes"], names)),
            arguments=[_argument(p, names) for p in launch["parameters"]], order=order, seed=seed, **options,
        ))  # fmt: skip
    return reports


def run_lowered(
    artifact: Any,
    arguments: Sequence[torch.Tensor | int | float],
    *,
    arch: str,
    cache: Path | None = None,
    **options: Any,
) -> list[Report]:
    """Run what `tilelang.lower` returned for `arch` over `arguments` in the template's order; see `execute`."""
    return execute(Executable.of(artifact.kernel_source, arch, cache), launch_facts(artifact), arguments, **options)


def _argument(parameter: Facts, names: Mapping[str, Any]) -> Argument:
    if "map" not in parameter:
        value: Argument = evaluate(parameter["value"] if "value" in parameter else parameter["tensor"], names)
        return value
    fields = parameter["map"]

    def several(key: str) -> tuple[int, ...]:
        return tuple(int(evaluate(x, names)) for x in fields[key])

    return TensorMap(
        tensor=names[fields["tensor"]], shape=several("shape"), strides=several("strides"), box=several("box"),
        element_strides=several("element_strides"), swizzle=_SWIZZLES[int(evaluate(fields["swizzle"], names))],
        interleave=int(evaluate(fields["interleave"], names)), nan_fill=bool(evaluate(fields["oob_fill"], names)),
    )  # fmt: skip


def evaluate(expression: str, names: Mapping[str, Any]) -> Any:
    """Return the value of an expression of the host code; raises `LaunchError` for a form or name that is not known."""
    return _value(ast.parse(expression, mode="eval").body, names)


_BINARY: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod, ast.LShift: operator.lshift, ast.RShift: operator.rshift, ast.BitAnd: operator.and_,
    ast.BitOr: operator.or_, ast.BitXor: operator.xor, ast.Div: operator.truediv,
}  # fmt: skip
_COMPARE: dict[type[ast.cmpop], Callable[[Any, Any], bool]] = {
    ast.Lt: operator.lt, ast.LtE: operator.le, ast.Gt: operator.gt, ast.GtE: operator.ge, ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
}  # fmt: skip
_CALLS: dict[str, Callable[..., Any]] = {
    "min": min, "max": max, "shift_left": operator.lshift, "shift_right": operator.rshift,
    "bitwise_and": operator.and_, "bitwise_or": operator.or_, "truncdiv": lambda a, b: int(a / b),
    "Div": lambda a, b: int(a / b),
    "floordiv": operator.floordiv, "floormod": operator.mod, "ceildiv": lambda a, b: -(-a // b),
    "Select": lambda c, a, b: a if c else b, "if_then_else": lambda c, a, b: a if c else b, "bool": bool,
    "Cast": lambda _, v: v, "cast": lambda v, _: v,
    **{f"{s}int{b}": int for s in ("", "u") for b in (8, 16, 32, 64)}, "float32": float, "float64": float,
}  # fmt: skip


def _value(node: ast.expr, names: Mapping[str, Any]) -> Any:
    match node:
        case ast.Constant(value=value):
            return value
        case ast.Name(id=name) if name in names:
            return names[name]
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _BINARY:
            return _BINARY[type(op)](_value(left, names), _value(right, names))
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_value(operand, names)
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            return not _value(operand, names)
        case ast.BoolOp(op=op, values=values):
            parts = [_value(v, names) for v in values]
            return all(parts) if isinstance(op, ast.And) else any(parts)
        case ast.Compare(left=left, ops=[op], comparators=[right]) if type(op) in _COMPARE:
            return _COMPARE[type(op)](_value(left, names), _value(right, names))
        case ast.Call(func=ast.Attribute(attr=name), args=args) if name in _CALLS:
            return _CALLS[name](*(_value(a, names) for a in args))
    raise LaunchError(f"host code with an expression that is not known: {ast.unparse(node)}")


class _Reader:
    """The walk over the host function's statements."""

    def __init__(self, device: Mapping[str, Sequence[str]]) -> None:
        self.device = device
        self.positions: dict[str, int] = {}
        self.shapes: dict[str, list[str]] = {}
        self.types: dict[str, str] = {}
        self.definitions: dict[str, str] = {}
        self.maps: dict[str, Facts] = {}
        self.launches: list[Facts] = []

    def read(self, function: ast.FunctionDef) -> Facts:
        for node in _in_order(function.body):
            match node:
                case ast.AnnAssign(target=ast.Name(id=name), annotation=annotation, value=value) if value is not None:
                    self.define(name, value, ast.unparse(annotation))
                case ast.Assign(targets=[ast.Name(id=name)], value=value):
                    self.define(name, value, "")
                case ast.Expr(value=ast.Call() as call):
                    self.call(call)
        arguments = []
        for name in sorted(self.positions, key=lambda n: self.positions[n]):
            arguments.append({"name": name, "type": self.types.get(name, ""), "shape": self.shapes.get(name)})
        if not self.launches:
            raise LaunchError("the host code launches no kernel")
        return {"arguments": arguments, "definitions": self.definitions, "launches": self.launches}

    def define(self, name: str, value: ast.expr, annotation: str) -> None:
        position = _argument_position(value)
        if position is not None and not name.endswith("_type_index"):
            base = name.removesuffix("_handle")
            self.positions.setdefault(base, position)
            if base == name:
                self.types[name] = annotation.removeprefix("T.")
            return
        match value:
            case ast.Call(func=ast.Attribute(attr="decl_buffer"), keywords=keywords,
                          args=[ast.Tuple(elts=shape), *given]):  # fmt: skip
                data = next((k.value.id for k in keywords if k.arg == "data" and isinstance(k.value, ast.Name)), None)
                if data in self.positions:
                    self.shapes[data] = [ast.unparse(s) for s in shape]
                    self.types[data] = str(ast.literal_eval(given[0])) if given else "float32"
            case ast.Call(func=ast.Attribute(attr=("tvm_struct_get" | "tvm_stack_alloca" | "handle"))):
                return
            case _:
                text = ast.unparse(value)
                if not any(
                    word in text for word in ("struct_get", "_shape", "_strides", "isnullptr", "T.int32()", "T.int64()")
                ):
                    self.definitions[name] = text

    def call(self, call: ast.Call) -> None:
        match call:
            case ast.Call(func=ast.Attribute(attr="call_packed"), args=[ast.Constant(value=str(name)), *args]):
                if name.startswith("__tvm_tensormap_create"):
                    self.tensor_map(name, args)
                elif name in self.device:
                    self.launch(name, args)

    def tensor_map(self, name: str, args: list[ast.expr]) -> None:
        if name != "__tvm_tensormap_create_tiled":
            raise LaunchError(f"{name}: tensor maps other than tiled ones are not known")
        texts = [ast.unparse(a) for a in args]
        handle, kind, rank_text, tensor, *rest = texts
        rank = int(rank_text)
        interleave, swizzle, promotion, fill = rest[4 * rank : 4 * rank + 4]
        self.maps[handle] = {
            "tensor": tensor, "data_type": int(kind), "shape": rest[:rank], "strides": rest[rank + 1 : 2 * rank],
            "box": rest[2 * rank : 3 * rank], "element_strides": rest[3 * rank : 4 * rank], "interleave": interleave,
            "swizzle": swizzle, "l2_promotion": promotion, "oob_fill": fill,
        }  # fmt: skip

    def launch(self, name: str, args: list[ast.expr]) -> None:
        tags = list(self.device[name])
        texts = [ast.unparse(a) for a in args]
        count = len(texts) - len(tags)
        sizes = dict(zip(tags, texts[count:], strict=True))
        if unknown := set(tags) - {*_AXES, _SHARED}:
            raise LaunchError(f"kernel {name} is launched with {', '.join(sorted(unknown))}, which is not known")
        parameters: list[Facts] = []
        for text in texts[:count]:
            if text in self.maps:
                parameters.append({"map": self.maps[text]})
            else:
                parameters.append({"tensor" if text in self.shapes else "value": text})
        self.launches.append({
            "kernel": name, "parameters": parameters, "grid": [sizes.get(a, "1") for a in _AXES[:3]],
            "block": [sizes.get(a, "1") for a in _AXES[3:]], "shared_bytes": sizes.get(_SHARED, "0"),
        })  # fmt: skip


def _in_order(body: Sequence[ast.stmt]) -> list[ast.stmt]:
    out: list[ast.stmt] = []
    for statement in body:
        out.append(statement)
        for inner in ("body", "orelse"):
            out += _in_order(getattr(statement, inner, []))
    return out


def _argument_position(value: ast.expr) -> int | None:
    """Return k if the expression reads field 15 (the value) of the k-th packed argument."""
    for node in ast.walk(value):
        match node:
            case ast.Call(func=ast.Attribute(attr="tvm_struct_get"), args=[ast.Name(id="args"), position, field, *_]):
                if isinstance(position, ast.Constant) and isinstance(field, ast.Constant) and field.value == 15:
                    return int(str(position.value))
    return None
