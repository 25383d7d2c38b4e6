"""One exception class per cause; every message says what was given, what is allowed and what to do.

`NSAError` is the common base. The classes that describe bad arguments also derive from `ValueError`,
so that callers who do not know this package still catch them.
"""


class NSAError(Exception):
    """Base of every error this package raises on purpose."""


class SpecError(NSAError, ValueError):
    """A declaration (`NSASpec`, `Program`, `Path`, index set) has a field or combination that is not allowed."""


class UnknownOptionError(NSAError, TypeError):
    """A keyword that no option of the call has; the message names the nearest valid one."""


class InputError(NSAError, ValueError):
    """A tensor handed to an op has a rank, shape, dtype, device or content that the op does not take."""


class TargetError(NSAError, ValueError):
    """A target name that is not known, or one that this machine or this version cannot serve."""


class ScheduleError(NSAError, ValueError):
    """A schedule that `check` refuses for this desc and target; the message carries the reason."""


class LoweringError(NSAError):
    """TileLang is missing, of another version than the pinned one, or refused a template."""


class CompilerError(NSAError):
    """No C++ compiler was found, or it failed; the message carries the command and its output."""


class StoreError(NSAError):
    """The kernel store cannot be read or written."""


class KeyFormationError(StoreError):
    """No stable key can be formed for a request; a weaker key is never used instead."""


class CorruptArtifactError(StoreError):
    """A stored file is not the one that its manifest describes; the entry was set aside."""


class BuildForbiddenError(StoreError):
    """A kernel is not in the store and `NSA_CODEGEN_NO_BUILD=1` forbids building it."""


class SecondDerivativeError(NSAError, NotImplementedError):
    """A gradient of a gradient was asked for; the kernels have first derivatives only."""


class ForwardDerivativeError(NSAError, NotImplementedError):
    """A forward-mode derivative was asked for; the kernels have reverse-mode derivatives only."""


class TransformError(NSAError, NotImplementedError):
    """A transform of `torch.func` was asked for that torch does not make of the kernels: a gradient, or `vmap`."""


class MissingPackageError(NSAError, ImportError):
    """A package of an optional extra is not installed."""


class TuningError(NSAError):
    """A search that can't begin or go on: a run that exists already, one that does not, or another one's study."""


class TuningLogError(TuningError):
    """A line or the meta of a tuning log that is not as written, of another format, or of another machine."""


class DemoError(NSAError):
    """The demo could not do its job: no text, or a reloaded model that computes something else."""


class OutputError(NSAError):
    """A file or folder that results are to be written to can't be written."""


class ExecutionError(NSAError):
    """The executor found a GPU kernel at fault, or could not model it."""


class KernelFailedError(NSAError):
    """A compiled kernel returned a non-zero status."""


def nearest(name: str, allowed: list[str] | tuple[str, ...]) -> str:
    """Return a sentence that names the allowed word nearest to `name`, or lists all of them."""
    import difflib

    close = difflib.get_close_matches(name, allowed, n=1, cutoff=0.5)
    if close:
        return f"did you mean {close[0]!r}? Allowed: {', '.join(sorted(allowed))}"
    return f"allowed: {', '.join(sorted(allowed))}"
