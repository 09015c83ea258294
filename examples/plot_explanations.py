"""
The columns behind an alarm
===========================

A detector says that a sample is unusual, and the next question is always which of its
values is to blame. :func:`skanomaly.explain` divides the anomaly score among the
columns, for any detector, and :class:`~skanomaly.metrics.ExplanationDisplay` draws the
result.
"""

# %%
# The data
# --------
#
# Thirty measurements of cell nuclei in images of breast tissue, from scikit-learn. The
# detector learns from 250 benign samples. Malignant ones are anomalies, which it never
# sees.

import matplotlib.pyplot as plt
import pandas as pd
from sklearn.datasets import load_breast_cancer

from skanomaly import HistoryAD, explain
from skanomaly.metrics import ExplanationDisplay

data = load_breast_cancer(as_frame=True)
benign = data.data[data.target == 1].sample(frac=1, random_state=0)
malignant = data.data[data.target == 0]
train, new = benign[:250], benign[250:]

detector = HistoryAD(random_state=0).fit(train)

# %%
# One sample
# ----------
#
# The sample takes the values of the most similar benign samples, column by column. A
# column that makes the score more normal by its change is to blame: its bar goes to the
# right. Here it is the size of the largest nuclei, and how much their size varies.

sample = malignant[:1]
ExplanationDisplay.from_estimator(detector, sample, train)
plt.show()

# %%
# The contributions, drawn or not, add up to the difference between the scores of the
# similar benign samples and that of this one.

contributions = explain(detector, sample, train)
print(f"score {detector.score_samples(sample)[0]:.2f}")
print(f"sum of the contributions {contributions.sum(axis=1).item():.2f}")

# %%
# Many samples
# ------------
#
# Of several samples there is a map: a column of it per sample. The first forty are new
# benign samples, the others malignant ones. The benign ones are pale, as they should
# be, apart from a few. Most malignant samples have large nuclei, but not all: some are
# unusual by the shape of the nuclei alone.

samples = pd.concat([new[:40], malignant[:40]])
display = ExplanationDisplay.from_estimator(detector, samples, train, max_features=12)
display.ax_.axvline(39.5, color="0.35", linewidth=1)
plt.show()

# %%
# A value that is usual, but not here
# -----------------------------------
#
# A slip of the keyboard gives a benign sample the radius of another one. As a radius it
# is nothing special: one in twenty is larger. But it does not agree with the perimeter
# and the area of the same sample, and that is enough. The blame is on the radius alone,
# since all the other columns agree with each other.

slip = new[:1].copy()
slip["mean radius"] = train["mean radius"].quantile(0.95)
scores = detector.score_samples(new)
rank = (scores < detector.score_samples(slip)[0]).mean()
print(f"{rank:.0%} of new benign samples score lower")
ExplanationDisplay.from_estimator(detector, slip, train)
plt.show()
