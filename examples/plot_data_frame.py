"""
From a data frame to alarms
===========================

A table as it comes from a company: categories, dates, missing values, columns in units
of their own. One pipeline turns it into numbers, detects, and keeps a rate of false
alarms; the reason for an alarm is told in the columns of the table.
"""

# %%
# The data
# --------
#
# The table is generated: deliveries of three kinds of vehicles from four depots. Larger
# vehicles carry more, need more fuel and leave earlier; some values are missing. No
# column tells much by itself, and the columns depend on each other.

import tempfile
from pathlib import Path

import joblib
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from sklearn.compose import make_column_transformer
from sklearn.impute import SimpleImputer
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, OneHotEncoder

from skanomaly import ADRA, ConformalDetector, explain

VEHICLES = pd.DataFrame(
    {
        "km_per_hour": [32, 30, 26],
        "litres_per_100_km": [7, 10, 20],
        "most_kg": [600, 1200, 4000],
        "usual_start": [10, 9, 6.5],
    },
    index=["small van", "large van", "truck"],
)
MEASURED = ["distance", "hours", "load", "fuel"]


def deliveries(n, rng):
    """Return a table of n deliveries."""
    vehicle = rng.choice(VEHICLES.index, n, p=[0.45, 0.35, 0.2])
    kind = VEHICLES.loc[vehicle].reset_index(drop=True)
    day = pd.Timestamp("2026-01-05") + pd.to_timedelta(rng.integers(180, size=n), "D")
    minutes = (60 * rng.normal(kind["usual_start"], 1)).round().clip(240)
    distance, share = rng.gamma(4, 12, n), rng.uniform(0.2, 1, n)
    hours = distance / kind["km_per_hour"] + 0.2
    fuel = distance / 100 * kind["litres_per_100_km"] * (1 + 0.2 * share)
    frame = pd.DataFrame(
        {
            "vehicle": vehicle,
            "depot": rng.choice(["Lille", "Lyon", "Nantes", "Nice"], n),
            "start": day + pd.to_timedelta(minutes, "min"),
            "distance": distance,
            "hours": hours * rng.lognormal(0, 0.15, n),
            "load": share * kind["most_kg"],
            "fuel": fuel * rng.lognormal(0, 0.08, n),
        }
    )
    for column, rate in {"depot": 0.03, "load": 0.05, "fuel": 0.04}.items():
        frame.loc[rng.random(n) < rate, column] = None
    return frame


rng = np.random.default_rng(0)
train, fresh = deliveries(4000, rng), deliveries(1000, rng)
train.head()

# %%
# Four kinds of anomalies, forty of each. In each one value does not fit the others: too
# much fuel for the distance, the load of a larger vehicle, a truck that leaves at noon,
# a tour that takes too long.


def changed(chosen, column, change):
    """Return forty of the chosen deliveries with another value in a column."""
    frame = fresh[chosen].sample(40, random_state=0)
    return frame.assign(**{column: change})


vans = fresh["vehicle"] != "truck"
anomalies = {
    "fuel": changed(fresh["fuel"].notna(), "fuel", lambda f: 2 * f["fuel"]),
    "load": changed(vans & fresh["load"].notna(), "load", lambda f: 4 * f["load"]),
    "start": changed(~vans, "start", lambda f: f["start"] + pd.Timedelta(hours=6)),
    "hours": changed(fresh["hours"] > 0, "hours", lambda f: 2.5 * f["hours"]),
}

# %%
# The error that helps
# --------------------
#
# Detectors take numbers. The error names the columns that hold anything else, and ends
# in the code that converts them.

try:
    ADRA().fit(train)
except ValueError as error:
    print(error)

# %%
# One pipeline
# ------------
#
# Its parts are chosen with more care here than an error can do:
#
# - Of the date, the detector gets the hour and the day of the week, and not the time
#   that has passed: that is larger for all new deliveries than for those of the
#   training.
# - Measurements that grow by factors become logarithms, in which fuel per kilometre is
#   a difference.
# - Categories become columns of zeros and ones, a missing depot is a category, and a
#   new one is zero everywhere. Missing measurements are replaced by the median.


def parts_of_day(frame):
    """Return hour and day of the week."""
    start = frame["start"].dt
    return pd.DataFrame(
        {"hour": start.hour + start.minute / 60, "weekday": start.day_of_week}
    )


columns = make_column_transformer(
    (
        OneHotEncoder(handle_unknown="ignore", sparse_output=False),
        ["vehicle", "depot"],
    ),
    (FunctionTransformer(parts_of_day), ["start"]),
    (
        make_pipeline(SimpleImputer(strategy="median"), FunctionTransformer(np.log)),
        MEASURED,
    ),
)
pipeline = make_pipeline(columns, ADRA(calibration=None, random_state=0))

# %%
# A rate of false alarms
# ----------------------
#
# :class:`~skanomaly.ConformalDetector` takes the whole pipeline. It trains on four
# fifths of the table, and the scores of the rest turn every new score into a p-value:
# of normal deliveries, 2 % have a p-value of at most .02. Inside of it, the detector
# has ``calibration=None``, and holds out no samples of its own.

detector = ConformalDetector(pipeline, false_alarm_rate=0.02, random_state=0)
detector.fit(train)
print(
    f"flagged of 1000 normal deliveries: {(detector.predict(fresh) == -1).mean():.1%}"
)
for kind, frame in anomalies.items():
    found = (detector.predict(frame) == -1).mean()
    print(f"flagged of 40 with another {kind}: {found:.0%}")

fig, ax = plt.subplots(figsize=(7, 3), layout="constrained")
for k, frame in enumerate([fresh.sample(200, random_state=0), *anomalies.values()]):
    jitter = rng.uniform(-0.2, 0.2, len(frame))
    color = "0.6" if k == 0 else "#D55E00"
    ax.plot(detector.p_value(frame), k + jitter, ".", ms=4, color=color)
ax.axvline(0.02, color="0.15", lw=1, ls="--")
ax.set(xscale="log", xlabel="p-value", yticks=range(5))
ax.set_yticklabels(["normal", *anomalies])
ax.invert_yaxis()
ax.spines[["top", "right"]].set_visible(False)

# %%
# The reason
# ----------
#
# :func:`~skanomaly.explain` exchanges the values of one column after the other, before
# they are encoded: contributions are those of the columns of the table. Of each kind,
# this is the share of alarms for which a column contributes most.

reasons = {}
for kind, frame in anomalies.items():
    alarms = frame[detector.predict(frame) == -1]
    contributions = explain(detector, alarms, reference=train[:500])
    reasons[kind] = contributions.idxmax(axis=1).value_counts(normalize=True)
reasons = pd.DataFrame(reasons).T.reindex(columns=train.columns).fillna(0)

fig, ax = plt.subplots(figsize=(7, 3), layout="constrained")
ax.imshow(reasons, cmap="Oranges", vmin=0, vmax=1, aspect="auto")
for (i, j), share in np.ndenumerate(reasons.to_numpy()):
    color = "white" if share > 0.5 else "0.3"
    ax.text(j, i, f"{share:.0%}", ha="center", va="center", color=color)
ax.set_xticks(range(reasons.shape[1]), reasons.columns)
ax.set_yticks(range(4), [f"another {kind}" for kind in reasons.index])
ax.tick_params(length=0)
ax.spines[:].set_visible(False)

# %%
# A tour that takes too long for its distance is also too short for its time: distance
# is a right answer, too.
#
# A file
# ------
#
# ``joblib`` writes all of it, preprocessing and calibration included. Functions such as
# ``parts_of_day`` are stored by name: put them into a module that the reader imports,
# too.

with tempfile.TemporaryDirectory() as folder:
    path = Path(folder) / "deliveries.joblib"
    joblib.dump(detector, path)
    loaded = joblib.load(path)
np.testing.assert_array_equal(loaded.p_value(fresh), detector.p_value(fresh))

plt.show()
