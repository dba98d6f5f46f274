"""Say which package a command lacks, by what this installation declares that it may use."""

import re
from importlib.metadata import PackageNotFoundError, requires

#: the name of a required package, and the extra it belongs to
_REQUIREMENT = re.compile(r"([\w.-]+).*?(?:extra == ['\"]([\w-]+)['\"])?$")


def missing_text(error: ModuleNotFoundError) -> str | None:
    """Return one line that says how to install what could not be imported.

    Args:
        error: What the import raised.

    Returns:
        The line; None for a module that moesim does not declare, which is a defect.
    """
    wanted = (error.name or "").partition(".")[0]
    try:
        declared = [_REQUIREMENT.match(line) for line in requires("moesim") or ()]
    except PackageNotFoundError:  # moesim runs from a source tree that is not installed
        return None
    for found in declared:
        if found and found[1].replace("-", "_").lower() == wanted:
            name = f"'moesim[{found[2]}]'" if found[2] else found[1]
            return f"{wanted} not installed: pip install {name}"
    return None
