"""`python -m nsa_codegen.cli` is `nsa-codegen`."""

from . import app

app(prog_name="nsa-codegen")
