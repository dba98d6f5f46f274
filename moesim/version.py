"""The version has a module of its own, so that every module may import it."""

from importlib.metadata import PackageNotFoundError, version

try:
    VERSION = version("moesim")
except PackageNotFoundError:  # moesim runs from a source tree that is not installed
    VERSION = "0+unknown"
