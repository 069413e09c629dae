"""A seasonal forecast by Holt-Winters' exponential smoothing, in plain Python.

The series that ships with it is the classic one of Box and Jenkins: monthly passengers of
international airlines, in thousands, 1949 to 1960.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

__all__ = ["AIRLINE_PASSENGERS", "Model", "fit", "forecast", "mape"]

AIRLINE_PASSENGERS = Path(__file__).with_name("airline_passengers.csv")
#: Steps in one season: the series is monthly.
SEASON = 12
#: Smoothing factors that the grid search tries.
GRID = tuple(step / 20 for step in range(1, 20, 2))


class Model(NamedTuple):
    """A smoothed series: where it stands, and how it got there."""

    seasonality: str
    #: Smoothing factors of level, trend and season, each between 0 and 1.
    factors: tuple[float, float, float]
    level: float
    trend: float
    #: The last season: terms to add, or factors to multiply by.
    season: tuple[float, ...]
    #: Sum of the squared errors of all one-step forecasts made on the way.
    squared_error: float

    def ahead(self, steps: int) -> list[float]:
        """Return the forecast for the next *steps* steps."""
        combine = _COMBINE[self.seasonality]
        return [
            combine(self.level + (step + 1) * self.trend, self.season[step % SEASON])
            for step in range(steps)
        ]


_COMBINE = {"additive": lambda base, term: base + term, "multiplicative": lambda b, f: b * f}
_REMOVE = {"additive": lambda value, term: value - term, "multiplicative": lambda v, f: v / f}


def forecast(path: str | Path = AIRLINE_PASSENGERS, horizon: int = SEASON) -> dict[str, Any]:
    """Forecast the last *horizon* months of a series from the months before them.

    Args:
        path: A CSV file with a header line, then month and value.
        horizon: Months that are held out and forecast.

    Returns:
        The held-out months, their forecast and actual values, the mean absolute percentage
        error of the forecast (``mape``), and of repeating the year before (``baseline_mape``).

    Raises:
        ValueError: The series is too short to learn two seasons from, or has a value of 0 or less.
    """
    months, values = _read(path)
    history, actual = values[:-horizon], values[-horizon:]
    if len(history) < 2 * SEASON:
        raise ValueError(f"{path}: {len(values)} months; {2 * SEASON + horizon} are needed")
    if min(values) <= 0:
        raise ValueError(f"{path}: the value {min(values):g}; all must be above 0")
    model = fit(history)
    predicted = model.ahead(horizon)
    baseline = [history[-SEASON + step % SEASON] for step in range(horizon)]
    return {
        "months": months[-horizon:],
        "forecast": [round(value, 1) for value in predicted],
        "actual": actual,
        "mape": mape(actual, predicted),
        "baseline_mape": mape(actual, baseline),
        "seasonality": model.seasonality,
        "factors": model.factors,
    }


def _read(path: str | Path) -> tuple[list[str], list[float]]:
    with open(path, newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file))[1:]
    return [row[0] for row in rows], [float(row[1]) for row in rows]


def fit(values: Sequence[float]) -> Model:
    """Return the model of the grid whose one-step forecasts of *values* err least."""
    candidates = product(_COMBINE, GRID, GRID, GRID)
    models = (_smooth(values, kind, factors) for kind, *factors in candidates)
    return min(models, key=lambda model: model.squared_error)


def _smooth(values: Sequence[float], seasonality: str, factors: Sequence[float]) -> Model:
    """Run the smoothing recursions once over *values*."""
    combine, remove = _COMBINE[seasonality], _REMOVE[seasonality]
    of_level, of_trend, of_season = factors
    level, trend, season = _initial(values, remove)
    squared_error = 0.0
    for step, value in enumerate(values):
        term = season[step % SEASON]
        miss = value - combine(level + trend, term)
        squared_error += miss * miss
        before = level
        level = of_level * remove(value, term) + (1 - of_level) * (level + trend)
        trend = of_trend * (level - before) + (1 - of_trend) * trend
        season[step % SEASON] = of_season * remove(value, level) + (1 - of_season) * term
    turn = len(values) % SEASON
    latest = (*season[turn:], *season[:turn])
    error = squared_error if math.isfinite(squared_error) else math.inf
    return Model(seasonality, (of_level, of_trend, of_season), level, trend, latest, error)


def _initial(values: Sequence[float], remove: Any) -> tuple[float, float, list[float]]:
    """Return level and trend just before the first step, and the season, from two seasons."""
    first, second = sum(values[:SEASON]) / SEASON, sum(values[SEASON : 2 * SEASON]) / SEASON
    trend = (second - first) / SEASON
    level = first - trend * (SEASON + 1) / 2
    return level, trend, [remove(values[i], level + (i + 1) * trend) for i in range(SEASON)]


def mape(actual: Sequence[float], predicted: Sequence[float]) -> float:
    """Return the mean absolute percentage error of *predicted*, as a share (0.05 is 5 %)."""
    errors = [abs(a - p) / abs(a) for a, p in zip(actual, predicted, strict=True)]
    return sum(errors) / len(errors)
