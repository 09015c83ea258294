"""
Video of another camera
=======================

Two cameras, of one of which there is video without incidents, and of the other video in
which nobody has marked anything. :class:`~skanomaly.TransferAD` takes clips of 16 frames
and scores those of the second camera. The second camera is a changed copy of the first
here: mirrored, with less contrast, and brighter.

This page needs the data set UCSD Ped2 in the folder that ``SKANOMALY_DATA`` names. Its
training videos show people who walk; its test videos show cyclists, skaters and a cart
as well.
"""

# %%
# Clips of two domains
# --------------------
#
# The source is the training videos 1 to 8 as they are. The target is the training videos
# 9 to 16 and the test videos 1 to 4, all of them changed. The latter hold the incidents,
# and nobody says which frames these are. The other test videos are not seen in training.
#
# :func:`~skanomaly.datasets.make_clips` cuts videos into clips. Clips that begin next to
# one another are nearly equal, so that every eighth will do for the training.

import matplotlib.pyplot as plt
import numpy as np
from scipy.ndimage import uniform_filter

from skanomaly import TransferAD
from skanomaly.datasets import fetch_ucsd_ped2, frame_scores, make_clips
from skanomaly.metrics import detector_roc_auc_score

train, test = fetch_ucsd_ped2(), fetch_ucsd_ped2(subset="test")


def second_camera(frames):
    """Return mirrored frames with less contrast, and brighter."""
    return (0.8 * frames[..., ::-1] + 30).round().clip(0, 255).astype(np.uint8)


def clips_of(frames, videos, wanted, stride):
    """Return clips of some of the videos."""
    return make_clips(frames[wanted], videos[wanted], stride=stride)[0]


frames, videos, y = second_camera(test.data), test.videos, test.target
source = clips_of(train.data, train.videos, train.videos <= 8, stride=8)
target = np.concatenate(
    [
        clips_of(second_camera(train.data), train.videos, train.videos > 8, stride=8),
        clips_of(frames, videos, videos <= 4, stride=8),
    ]
)
print(f"source {source.shape}, target {target.shape}")

fig, axes = plt.subplots(1, 2, figsize=(8, 4), layout="constrained")
for ax, clip, title in zip(axes, (source[0], target[0]), ("source", "target")):
    ax.imshow(clip[0, 0], cmap="gray", vmin=0, vmax=255)
    ax.set(xticks=[], yticks=[], title=title)

# %%
# A short training
# ----------------
#
# Convolutions over 16 frames are dear. Small batches and few epochs keep this to about a
# minute on one core.

detector = TransferAD(batch_size=8, max_epochs=6, transfer_epochs=4, random_state=0)
detector.fit(target, X_source=source)

n_quiet = np.sum(train.videos > 8) and len(target) - len(
    clips_of(frames, videos, videos <= 4, stride=8)
)
weights = detector.sample_weight_
print(f"mean weight of clips from training videos: {weights[:n_quiet].mean():.2f}")
print(f"mean weight of clips from test videos:     {weights[n_quiet:].mean():.2f}")

# %%
# The weights say which clips the second stage took for normal. Of the clips from test
# videos, most have an incident in them, and few were trusted.
#
# Scores of frames
# ----------------
#
# The score of a frame is the mean over the clips that contain it, which
# :func:`~skanomaly.datasets.frame_scores` takes. Three scores of the detector:
#
# - ``score_samples`` as it is by default for clips,
# - the loss of reconstruction of a clip, the paper's score,
# - the largest mean error in any block of 12 x 12 pixels of a frame, from
#   ``anomaly_map``: a cyclist is small, and the loss of a clip is a mean over everything.
#
# The reference knows nothing and has learned nothing: how much a frame differs from the
# one before, as mean of squared differences, and in the block where that is largest.

clips, starts = make_clips(frames, videos, stride=2)


def worst_block(errors):
    """Return the largest mean error in a block of each frame, (..., h, w)."""
    size = (*[1] * (errors.ndim - 2), 12, 12)
    return uniform_filter(errors, size).max((-2, -1))


def of_frames(scores):
    """Return scores of frames, higher for the more normal, from those of clips."""
    return frame_scores(scores, starts, len(frames))


changes = np.diff(frames[:, 0].astype(float), axis=0, prepend=np.nan) ** 2
firsts = np.flatnonzero(np.diff(videos, prepend=0))
changes[firsts] = changes[firsts + 1]

errors = detector.anomaly_map(clips)
scores = {
    "default": of_frames(detector.score_samples(clips)),
    "loss of the clip": of_frames(
        detector.set_params(criterion="reconstruction").score_samples(clips)
    ),
    "worst block": of_frames(-worst_block(errors)),
    "frame difference": -changes.mean((1, 2)),
    "frame difference, worst block": -worst_block(changes),
}
seen = videos <= 4
print(f"{'AUROC of frames':30}  all   videos 1-4   videos 5-12")
for name, score in scores.items():
    figures = [
        detector_roc_auc_score(y[rows], score[rows]) for rows in (seen | ~seen, seen, ~seen)
    ]
    print(f"{name:30} {figures[0]:.2f}   {figures[1]:.2f}         {figures[2]:.2f}")

# %%
# TODO
#
# Scores over time
# ----------------
#
# Abnormal frames are shaded. The dashed line is the score of ...

shown = (2, 4, 7, 12)
names = ("default", "worst block", "frame difference")
fig, axes = plt.subplots(
    3, 4, figsize=(11, 5.5), layout="constrained", sharex="col", sharey="row"
)
for row, name in zip(axes, names, strict=True):
    row[0].set_ylabel(name)
    for ax, video in zip(row, shown, strict=True):
        rows = videos == video
        ax.plot(scores[name][rows], color="#0072B2")
        abnormal = y[rows] == -1
        edges = np.flatnonzero(np.diff(abnormal, prepend=False, append=False))
        for begin, end in edges.reshape(-1, 2):
            ax.axvspan(begin, end - 1, color="#D55E00", alpha=0.2, linewidth=0)
        ax.spines[["top", "right"]].set_visible(False)
for ax, video in zip(axes[0], shown, strict=True):
    ax.set_title(f"test video {video}" + (", in the target" if video <= 4 else ""))
for ax in axes[-1]:
    ax.set_xlabel("frame")

# %%
# TODO
#
# Where it sees something
# -----------------------
#
# An abnormal frame of each of these videos, what it is reconstructed as, and
# ``anomaly_map`` of the clip in whose middle it stands.

fig, axes = plt.subplots(3, 4, figsize=(11, 8.3), layout="constrained")
for column, video in zip(axes.T, shown, strict=True):
    inside = np.flatnonzero((videos[starts] == video) & (y[starts + 8] == -1))
    clip = inside[len(inside) // 2]
    picture = clips[clip, 0, 8]
    rebuilt = detector.reconstruct(clips[clip : clip + 1])[0, 0, 8]
    panels = {"frame": picture, "rebuilt": rebuilt, "error": errors[clip, 8]}
    for ax, (name, panel) in zip(column, panels.items(), strict=True):
        colours = {"cmap": "Reds", "vmin": 0, "vmax": 0.5}
        if name != "error":
            colours = {"cmap": "gray", "vmin": 0, "vmax": 255}
        ax.imshow(panel, **colours)
        ax.set(xticks=[], yticks=[])
        if video == shown[0]:
            ax.set_ylabel(name)
    column[0].set_title(f"video {video}, frame {starts[clip] + 8 - firsts[video - 1]}")

# %%
# TODO

plt.show()
