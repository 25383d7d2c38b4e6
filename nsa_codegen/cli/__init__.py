"""`nsa-codegen`: build, inspect, execute and verify kernels, show the environment, run the demo and the benchmarks.

Each command imports what it needs when it runs, so that `nsa-codegen --help` is instant. What goes wrong on purpose
(`NSAError`) is one red line on stderr and exit code 1.
"""

from __future__ import annotations

from .app import app
from .bench import bench
from .build import build
from .demo import demo
from .env import env
from .execute import execute
from .explain import explain
from .inspect import inspect
from .replay import replay
from .stored import list_kernels
from .tune import Tune, tune
from .verify import verify

__all__ = ["app"]

app.command("build")(build)
app.command("inspect")(inspect)
app.command("explain")(explain)
app.command("replay")(replay)
app.command("execute")(execute)
app.command("list")(list_kernels)
app.command("verify")(verify)
app.command("env")(env)
app.command("demo")(demo)
app.command("bench")(bench)
app.command("tune", cls=Tune)(tune)
