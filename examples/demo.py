"""Each digit in turn is the anomaly: ``make demo``.

The detectors are fitted on 60 % of the images of the nine other digits, without labels.
They then score the remaining images, and every image of the digit that was left out.
Prints a table and writes ``demo.png``.
"""

import time

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits
from sklearn.ensemble import IsolationForest
from sklearn.neighbors import LocalOutlierFactor

from skanomaly import HistoryAD
from skanomaly.datasets import hold_one_out
from skanomaly.engine import Bar
from skanomaly.metrics import (
    ScoreDistributionDisplay,
    detector_average_precision_score,
    detector_roc_auc_score,
)

DETECTORS = {
    "HistoryAD": lambda: HistoryAD(random_state=0),
    "IsolationForest": lambda: IsolationForest(random_state=0),
    "LocalOutlierFactor": lambda: LocalOutlierFactor(novelty=True),
}
DRAWN = 8  # the digit in the picture


def main():
    """Run the comparison."""
    X, y = load_digits(return_X_y=True)
    metrics, drawn = {}, {}
    with Bar("fitting", 10 * len(DETECTORS)) as bar:
        for digit in range(10):
            split = hold_one_out(X, y, digit, random_state=0)
            for name, build in DETECTORS.items():
                bar.show(f"without {digit}, {name}")
                scores, seconds = fit_and_score(build(), *split[:2])
                metrics[digit, name] = measure(split[3], scores, seconds)
                if digit == DRAWN:
                    drawn[name] = scores
                bar.advance()
    print_table(metrics)
    print(
        "\nOn images this small a distance between pixels is hard to beat; the "
        "benchmarks in the\ndocumentation show where deep detectors are ahead."
    )
    draw(*hold_one_out(X, y, DRAWN, random_state=0)[1::2], drawn)
    print("\nThe picture is in demo.png.")


def fit_and_score(detector, X_train, X_test):
    """Return the scores of the test images, and the seconds that the fit took."""
    start = time.perf_counter()
    detector.fit(X_train)
    seconds = time.perf_counter() - start
    return detector.decision_function(X_test), seconds


def measure(y_test, scores, seconds):
    """Return AUROC, average precision and seconds."""
    auroc = detector_roc_auc_score(y_test, scores)
    return auroc, detector_average_precision_score(y_test, scores), seconds


def print_table(metrics):
    """Print one line per digit, and the means."""
    names = list(DETECTORS)
    print("\nAUROC / average precision of the digit that was left out")
    print(f"{'digit':>5}" + "".join(f"{name:>22}" for name in names))
    for digit in range(10):
        cells = (metrics[digit, name] for name in names)
        print(f"{digit:>5}" + "".join(f"{a:>14.3f} / {p:.3f}" for a, p, _ in cells))
    means = [np.mean([metrics[d, n] for d in range(10)], axis=0) for n in names]
    print(f"{'mean':>5}" + "".join(f"{a:>14.3f} / {p:.3f}" for a, p, _ in means))
    print(f"{'fit':>5}" + "".join(f"{s:>20.2f} s" for *_, s in means))


def draw(X_test, y_test, scores):
    """Draw the score distributions and the most anomalous images."""
    plt.rcParams |= {"axes.labelsize": 9, "xtick.labelsize": 8, "ytick.labelsize": 8}
    figure, axes = plt.subplot_mosaic(
        [list(scores), ["images"] * len(scores)],
        figsize=(13, 6.5),
        height_ratios=[3, 2],
        layout="constrained",
    )
    for name, score in scores.items():
        ScoreDistributionDisplay.from_predictions(
            y_test, score, threshold=0, ax=axes[name]
        )
        axes[name].set_xlabel(f"Score of {name} (higher = more normal)")
        axes[name].locator_params(axis="x", nbins=5)
    worst = np.argsort(scores["HistoryAD"])[:24]
    axes["images"].imshow(contact_sheet(X_test[worst], y_test[worst]))
    axes["images"].set_axis_off()
    right = np.sum(y_test[worst] == -1)
    axes["images"].set_title(
        "The 24 images that HistoryAD finds most anomalous, worst first. "
        f"Framed ({right} of 24): the digit {DRAWN}, which it was not trained on",
        fontsize=11,
    )
    figure.savefig("demo.png", dpi=120)


def contact_sheet(images, labels, per_row=12):
    """Return images as one picture, the anomalies in an orange frame.

    Around an image of 8 x 8 pixels there are a white line, the frame, and a white line
    between frames.
    """
    sheet = np.ones((len(images), 14, 14, 3))
    sheet[labels == -1, 1:-1, 1:-1] = (0.84, 0.37, 0.0)
    sheet[:, 2:-2, 2:-2] = 1
    sheet[:, 3:-3, 3:-3] = 1 - images.reshape(-1, 8, 8, 1) / 16
    rows = sheet.reshape(-1, per_row, 14, 14, 3).swapaxes(1, 2)
    return rows.reshape(-1, per_row * 14, 3)


if __name__ == "__main__":
    main()
