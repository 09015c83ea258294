"""A simulated device, for tests on machines without a GPU.

Its tensors hold tensors of the host, and are computed by the host's kernels. Like those
of a GPU, they do not mix with tensors of the host, and do not become NumPy arrays. So
tests find tensors that are left on the host, and values that are fetched from the
device, without a GPU.
"""

from __future__ import annotations

from contextlib import ExitStack, contextmanager, nullcontext
from unittest.mock import patch

import torch
from torch.utils._foreach_utils import _get_fused_kernels_supported_devices
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter, tree_map

#: A device that torch knows, and has no kernels for. Its gradients are taken in the
#: thread of the caller; those of a GPU need one of their own.
NAME = "lazy"
DEVICE = torch.device(NAME, 0)
#: Operations that fetch a value to the host, and so wait for all operations before.
_FETCHES = {"_local_scalar_dense", "nonzero", "masked_select", "equal"}
_INDEXES = {"index", "index_put", "index_put_", "_unsafe_index"}
_COPIES = {"_to_copy", "copy_"}


class TensorElsewhere(torch.Tensor):
    """A tensor on the simulated device.

    Parameters
    ----------
    held : Tensor
        The values, on the host.
    """

    held: torch.Tensor

    @staticmethod
    def __new__(cls, held):
        # A view may be changed in inference mode if its tensor may.
        with torch.inference_mode(held.is_inference()):
            result = torch.Tensor._make_wrapper_subclass(
                cls,
                held.size(),
                strides=held.stride(),
                storage_offset=held.storage_offset(),
                dtype=held.dtype,
                layout=held.layout,
                device=DEVICE,
            )
        result.held = held
        return result

    def __repr__(self, **options):
        return f"{self.held!r} on {DEVICE}"

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        raise RuntimeError(f"{func} of a tensor on {DEVICE}, outside of `Elsewhere`")

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func in (torch.Tensor.numpy, torch.Tensor.__array__):
            if not kwargs.get("force"):
                raise TypeError(f"no array of a tensor on {DEVICE}: use .cpu() first")
            return args[0].detach().cpu().numpy()
        if func is torch.Tensor.tolist:
            return args[0].detach().cpu().tolist()
        with torch._C.DisableTorchFunctionSubclass():
            result = func(*args, **kwargs)
        if func is torch.Tensor.data.__set__:
            args[0].held = args[1].held
        return result


class GeneratorElsewhere(torch.Generator):
    """A generator of the host with another value of `device`."""

    def __new__(cls, device="cpu"):
        """Return a generator of the host."""
        result = super().__new__(cls, "cpu")
        result._device = torch.device(device)
        return result

    def __init__(self, device="cpu"):
        """Do nothing."""

    @property
    def device(self):
        return self._device


class Elsewhere(TorchDispatchMode):
    """The mode in which the simulated device exists.

    Attributes
    ----------
    fetched : list of str
        Operations that have fetched a value to the host.
    """

    def __init__(self):
        super().__init__()
        self.fetched = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        """Compute on the host, for both devices."""
        kwargs = kwargs or {}
        with self:  # calls this method for each part of an operation
            result = func.decompose(*args, **kwargs)
        if result is not NotImplemented:
            return result
        name = func.overloadpacket.__name__
        given = [x for x in tree_iter((args, kwargs)) if isinstance(x, torch.Tensor)]
        there = [x for x in given if isinstance(x, TensorElsewhere)]
        if there and name not in _COPIES:
            self._refuse_mixtures(name, args, given)
        device = kwargs.get("device")
        if name == "copy_":
            goes_there = isinstance(args[0], TensorElsewhere)
        elif device is not None:
            goes_there = torch.device(device).type == NAME
            kwargs = kwargs | {"device": torch.device("cpu")}
        else:
            goes_there = bool(there)
        if there and (name in _FETCHES or (name in _COPIES and not goes_there)):
            self.fetched.append(name)
        args, kwargs = tree_map(_held, (args, kwargs))
        result = func(*args, **kwargs)
        same = {id(_held(x)): x for x in given}  # operations in place return these

        def placed(x):
            if not isinstance(x, torch.Tensor) or id(x) in same:
                return same.get(id(x), x)
            return TensorElsewhere(x) if goes_there else x

        return tree_map(placed, result)

    def _refuse_mixtures(self, name, args, given):
        if name in _INDEXES and isinstance(args[0], TensorElsewhere):
            indices = [x for x in args[1] if x is not None]  # may be on the host
            if any(x.dtype is torch.bool for x in indices):
                self.fetched.append(name)
            given = [x for x in given if not any(x is index for index in indices)]
        here = [x for x in given if x.ndim and not isinstance(x, TensorElsewhere)]
        if here:
            raise RuntimeError(
                f"{name} of tensors on {DEVICE} and, of shape "
                f"{[tuple(x.shape) for x in here]}, on the host"
            )


def _held(x):
    return x.held if isinstance(x, TensorElsewhere) else x


@contextmanager
def another_device():
    """Simulate ``device="cuda"``, and yield the mode that records fetches."""
    usual = torch.autocast, torch.is_autocast_enabled
    fused = [*_get_fused_kernels_supported_devices(), NAME]

    def autocast(kind, **options):
        return nullcontext() if kind == NAME else usual[0](kind, **options)

    def is_autocast_enabled(kind):
        return kind != NAME and usual[1](kind)

    def resolved(device):
        return NAME if device == "cuda" else device

    others = {
        "torch.Generator": GeneratorElsewhere,
        "torch.autocast": autocast,
        "torch.is_autocast_enabled": is_autocast_enabled,
        "torch.optim.optimizer._get_fused_kernels_supported_devices": lambda: fused,
        "skanomaly._base.resolve_device": resolved,
        "skanomaly._persistence.resolve_device": resolved,
    }
    # Tensors of numbers are created on the host, and then moved.
    before = torch._C._only_lift_cpu_tensors()
    torch._C._set_only_lift_cpu_tensors(True)
    try:
        with ExitStack() as stack:
            for name, other in others.items():
                stack.enter_context(patch(name, other))
            yield stack.enter_context(Elsewhere())
    finally:
        torch._C._set_only_lift_cpu_tensors(before)
