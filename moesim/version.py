"""The version, in one place of its own so that anything may import it."""

from importlib.metadata import PackageNotFoundError, version

try:
    VERSION = version("moesim")
except PackageNotFoundError:  # a source tree on the path, not installed
    VERSION = "0+unknown"
