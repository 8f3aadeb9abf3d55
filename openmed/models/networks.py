"""timm, loaded without torch's compiler.

timm and torchvision load the compiler for a decorator and a check of theirs. That takes as long as all else
that a prediction needs, and no prediction uses it. Whoever trains or compiles loads it then, as torch does.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import torch

_COMPILER = "torch._dynamo"


@contextmanager
def _without_compiler() -> Iterator[None]:
    """Stands in for torch's compiler while the modules load that only ask for it."""
    if _COMPILER in sys.modules:
        yield
        return
    compiler, details = ModuleType(_COMPILER), ModuleType(f"{_COMPILER}.utils")
    vars(details).update(is_compile_supported=lambda device: False)
    vars(compiler).update(disable=_undecorated, utils=details)
    standing_in = {module.__name__: module for module in (compiler, details)}
    sys.modules.update(standing_in)
    try:
        yield
    finally:
        for name in standing_in:
            del sys.modules[name]
        vars(torch).pop("_dynamo", None)


def _undecorated(function: Callable | None = None, *_: Any, **__: Any) -> Callable:
    return (lambda decorated: decorated) if function is None else function


with _without_compiler():
    import timm
    import timm.data
    import timm.utils

__all__ = ["timm"]
