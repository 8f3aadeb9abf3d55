"""Memory that is free goes back to the system."""

import ctypes

import pyarrow as pa


def give_back() -> None:
    """Gives back what Arrow's pool and, where there is one, glibc's heap keep for later."""
    pa.default_memory_pool().release_unused()
    if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):
        trim(0)
