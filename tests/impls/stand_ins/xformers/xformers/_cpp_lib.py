"""What a test sets here is what xformers keeps when its library cannot be loaded."""

from __future__ import annotations

_cpp_library_load_exception = None
_built_with_cuda = True
