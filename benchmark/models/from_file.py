"""`path/to/file.py:factory`: a user's own code. It runs with the user's rights, as any script of theirs."""

from __future__ import annotations

import hashlib
import importlib.util
import sys
from pathlib import Path

from torch import nn

from annotations.errors import BeyondError, one_line, user_path
from benchmark.classifier import Classifier
from benchmark.models.assemble import assemble, complete
from benchmark.preprocessing import Preprocessing

_WANTED = "a benchmark.classifier.Classifier, or a pair (network, benchmark.preprocessing.Preprocessing)"


def load(rest: str, spec: str, cache_dir: Path | None) -> Classifier:  # noqa: ARG001 - the form of all sources
    """Call a factory without arguments and check what it returns.

    A `Classifier` is taken as it is: its module normalises by itself. Of a pair, the network takes normalised
    images, and the preprocessing's mean and std are put in front of it.

    Raises:
        BeyondError: No such file or callable, it raises, or it returns something else.
    """
    file, _, attribute = rest.rpartition(":")
    path = user_path(file).resolve()
    if not path.is_file():
        raise BeyondError(f"no such file {file}; give FILE.py:FACTORY")
    text = path.read_bytes()
    # A name that no import statement can collide with; registered because dataclasses look their module up.
    module_name = f"beyond_model_{hashlib.sha256(str(path).encode()).hexdigest()[:12]}"
    found = importlib.util.spec_from_file_location(module_name, path)
    if found is None or found.loader is None:
        raise BeyondError(f"{file} cannot be imported as Python; its name must end in .py")
    module = importlib.util.module_from_spec(found)
    sys.modules[module_name] = module
    sys.path.insert(0, str(path.parent))
    try:
        found.loader.exec_module(module)
        factory = getattr(module, attribute, None)
        if not callable(factory):
            raise BeyondError(f"{file} has no callable {attribute!r}; give FILE.py:FACTORY")
        made = factory()
    except BeyondError:
        raise
    except Exception as error:  # anything can go wrong in a user's file
        reason = one_line(error)
        raise BeyondError(
            f"{file}:{attribute} failed with {type(error).__name__}: {reason} (BEYOND_DEBUG=1 shows where)"
        ) from error
    finally:
        sys.path.remove(str(path.parent))
    source = {"file": path.name, "file_sha256": hashlib.sha256(text).hexdigest()}
    if isinstance(made, Classifier):
        return complete(made, spec=spec, source=source)
    if isinstance(made, tuple) and len(made) == 2:
        network, preprocessing = made
        if isinstance(network, nn.Module) and isinstance(preprocessing, Preprocessing):
            return assemble(network, preprocessing, spec=spec, name=attribute, source=source)
    raise BeyondError(f"{file}:{attribute} returned {type(made).__name__}; it must return {_WANTED}")
