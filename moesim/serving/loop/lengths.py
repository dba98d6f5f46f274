"""Numbers of tokens of requests, drawn from a short text.

- ``1024``: every request has 1,024 tokens.
- ``uniform:512-1024``: every whole number from 512 to 1,024 is equally likely.
- ``lognormal:1024,0.6,8192``: the median, the standard deviation of the logarithm, and the most
  tokens that a request may have; longer draws are cut to it.
"""

import math
import re
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from moesim.errors import ConfigError, shown

_FORMS = "N, uniform:LOW-HIGH or lognormal:MEDIAN,SIGMA,MOST"
_FIXED = re.compile(r"(\d+)")
_UNIFORM = re.compile(r"uniform:(\d+)-(\d+)")
_LOGNORMAL = re.compile(r"lognormal:(\d+),(\d+(?:\.\d*)?|\.\d+),(\d+)")

#: more tokens than any context holds, and a spread beyond which all lengths are 1 or the most
MAX_LENGTH, MAX_SIGMA = 1 << 31, 20.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Lengths:
    """A distribution of numbers of tokens.

    Attributes:
        low: The fewest tokens of a request.
        high: The most tokens of a request.
        median: The median of a log-normal distribution; None for a uniform one.
        sigma: The standard deviation of the logarithm; 0 for a uniform distribution.
    """

    low: int
    high: int
    median: int | None = None
    sigma: float = 0.0

    @classmethod
    def parse(cls, text: str | int, where: str) -> "Lengths":
        """Read the text of a distribution; a plain integer is a fixed length.

        Args:
            text: The distribution, in one of the forms above.
            where: The key that an error names.

        Raises:
            ConfigError: The text has none of the forms, or its numbers are out of order.
        """
        written = text.strip() if isinstance(text, str) else shown(text)
        if len(written) > 100:
            raise ConfigError(f"{where}: expected {_FORMS}, got {shown(written)}")
        if match := _FIXED.fullmatch(written):
            low = high = int(match[1])
            found = cls(low=low, high=high)
        elif match := _UNIFORM.fullmatch(written):
            found = cls(low=int(match[1]), high=int(match[2]))
        elif match := _LOGNORMAL.fullmatch(written):
            found = cls(low=1, high=int(match[3]), median=int(match[1]), sigma=float(match[2]))
        else:
            raise ConfigError(f"{where}: expected {_FORMS}, got {shown(text)}")
        if found.high > MAX_LENGTH or found.sigma > MAX_SIGMA:
            raise ConfigError(
                f"{where}: expected at most {MAX_LENGTH} tokens and SIGMA <= {MAX_SIGMA:g}, got "
                f"{shown(text)}"
            )
        middle = found.low if found.median is None else found.median
        if not 1 <= found.low <= middle <= found.high:
            raise ConfigError(
                f"{where}: expected 1 <= LOW <= HIGH (MEDIAN <= MOST), got {shown(text)}"
            )
        return found

    @property
    def mean(self) -> float:
        """The mean number of tokens; of a log-normal distribution that of what is cut to `high`:
        E[min(X, c)] = e^(mu + s^2/2) F((ln c - mu)/s - s) + c (1 - F((ln c - mu)/s)) with the
        normal distribution function F.
        """
        if self.median is None:
            return (self.low + self.high) / 2.0
        if not self.sigma:
            return float(self.median)
        cut = math.log(self.high / self.median) / self.sigma
        below = NormalDist()
        middle = self.median * math.exp(self.sigma**2 / 2.0) * below.cdf(cut - self.sigma)
        return middle + self.high * (1.0 - below.cdf(cut))

    def draw(self, count: int, rng: np.random.Generator) -> np.ndarray:
        """Draw numbers of tokens.

        Args:
            count: How many are drawn.
            rng: The source of randomness.

        Returns:
            ndarray of shape (count,), int64.
        """
        if self.median is None:
            return rng.integers(self.low, self.high, count, endpoint=True)
        drawn = rng.lognormal(math.log(self.median), self.sigma, count)
        return np.clip(np.rint(drawn), self.low, self.high).astype(np.int64)
