#!/usr/bin/env bash
# torch 2.13.0: under an outer torch.autocast(enabled=False), an inner autocast trains
# with the weights of its first step.
#
# An outermost autocast clears the cache of cast weights when it ends; an inner one does
# not, since the outer one is to share it. That holds for an outer region that is
# switched off as well, although it casts nothing. So where a library switches off its
# caller's autocast around a training loop, and switches autocast on for each step, as
# it may to be independent of its caller, every step computes with the bfloat16 copies
# of the first one, while the optimiser moves the float32 weights. Nothing warns.
#
# Expected by reading the documentation of torch.autocast: a region with enabled=False
# makes no difference to the regions inside of it, and the three ways below agree.
#
# Seen: with the outer region the prediction stays at that of step 1, and the loss does
# not fall; with cache_enabled=False, or without the outer region, it does.
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6
"$folder/venv/bin/python" - <<'PY'
from contextlib import nullcontext

import torch


def trained(outer, cache_enabled):
    """Return the first and the last loss, as each step saw it."""
    torch.manual_seed(0)
    layer = torch.nn.Linear(4, 1)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    x, y = torch.randn(64, 4), torch.ones(64, 1)
    losses = []
    with outer:
        for _ in range(20):
            with torch.autocast("cpu", torch.bfloat16, cache_enabled=cache_enabled):
                loss = (layer(x).float() - y).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    return losses[0], losses[-1]


off = torch.autocast("cpu", enabled=False)
plain = trained(nullcontext(), True)
nested = trained(off, True)
uncached = trained(torch.autocast("cpu", enabled=False), False)
print("torch", torch.__version__)
for name, (first, last) in {
    "no outer region": plain,
    "outer region, off": nested,
    "outer region, off; no cache": uncached,
}.items():
    print(f"{name:28s} first loss {first:.3f}, last loss {last:.3f}")
assert plain[1] < 0.2 * plain[0]
assert uncached == plain
assert nested[1] == nested[0], "an outer region that is off no longer keeps the cache"
PY
# Output seen (Python 3.11, x86_64):
#   torch 2.13.0+cpu
#   no outer region              first loss 1.533, last loss 0.006
#   outer region, off            first loss 1.533, last loss 1.533
#   outer region, off; no cache  first loss 1.533, last loss 0.006
