"""A model's forward in float32 arithmetic, with the values of its low-precision weights."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar

import torch
from torch import nn

from miwv_trainer.scoring.isolation import get_inner_modules

_IN_FLOAT32: ContextVar[bool] = ContextVar("in_float32", default=False)
# Where a module holds a tensor: the module and the attribute's name.
Slot = tuple[nn.Module, str]


@contextmanager
def use_float32(model: nn.Module) -> Iterator[None]:
    """
    Inside, the model's forward computes in float32 with the values of its low-precision weights, and without autocast.
    Afterwards the model is as it was, also after an error. For forwards without gradients.

    The float32 weights of one layer exist only while that layer runs; those of embeddings, head and whatever several
    layers share exist throughout. Parameters are replaced by copies, not changed, so that their storage, gradients and
    hooks (such as DistributedDataParallel's) stay. The setting for TF32 is left as it is.
    """
    device_type = next(model.parameters()).device.type
    with ExitStack() as stack:
        stack.callback(_IN_FLOAT32.reset, _IN_FLOAT32.set(True))
        stack.enter_context(torch.autocast(device_type, enabled=False))
        for module in get_inner_modules(model):
            # accelerate enters autocast inside the root's forward, so each module in it turns autocast off again. When
            # the root's forward ends, accelerate restores what was before.
            hook = module.register_forward_pre_hook(lambda *_: torch.set_autocast_enabled(device_type, False))
            stack.callback(hook.remove)
        blocks = list(_find_blocks(model))
        shared, own = _assign_slots(model, blocks)
        stack.enter_context(_Upcast(shared))
        for block, slots in zip(blocks, own, strict=True):
            upcast = _Upcast(slots)
            stack.callback(upcast.restore)
            # The first hook before the layer and the last one after it: other hooks see the weights that it runs with.
            stack.callback(block.register_forward_pre_hook(lambda *_, u=upcast: u.apply(), prepend=True).remove)
            stack.callback(block.register_forward_hook(lambda *_, u=upcast: u.restore()).remove)
        yield


def is_in_float32() -> bool:
    """Whether models compute in float32 whatever the precision of their weights: inside [`use_float32`]."""
    return _IN_FLOAT32.get()


class _Upcast:
    """Puts float32 copies in the place of tensors and restores these. Slots that share a tensor share its copy."""

    def __init__(self, slots: list[Slot]) -> None:
        self.slots = slots
        self.originals: list[torch.Tensor] = []

    def apply(self) -> None:
        if self.originals:
            return
        self.originals = [getattr(module, name) for module, name in self.slots]
        copies = {id(tensor): _copy_to_float32(tensor) for tensor in self.originals}
        for (module, name), tensor in zip(self.slots, self.originals, strict=True):
            setattr(module, name, copies[id(tensor)])

    def restore(self) -> None:
        for (module, name), tensor in zip(self.slots, self.originals, strict=False):
            setattr(module, name, tensor)
        self.originals = []

    def __enter__(self) -> None:
        self.apply()

    def __exit__(self, *_: object) -> None:
        self.restore()


def _copy_to_float32(tensor: torch.Tensor) -> torch.Tensor:
    copy = tensor.detach().float()
    return nn.Parameter(copy, requires_grad=False) if isinstance(tensor, nn.Parameter) else copy


def _assign_slots(model: nn.Module, blocks: list[nn.Module]) -> tuple[list[Slot], list[list[Slot]]]:
    """The slots of low-precision tensors: those outside blocks or in several blocks, and those of each block alone."""
    in_blocks = {module for block in blocks for module in block.modules()}
    outside = [module for module in model.modules() if module not in in_blocks]
    users: dict[int, set[int]] = {}
    for number, modules in enumerate([outside, *(block.modules() for block in blocks)]):
        for module in modules:
            for _, tensor in _list_low_precision(module):
                users.setdefault(id(tensor), set()).add(number)
    slots: list[list[Slot]] = [[] for _ in range(len(blocks) + 1)]
    for module in model.modules():
        for name, tensor in _list_low_precision(module):
            numbers = users[id(tensor)]
            slots[min(numbers) if len(numbers) == 1 else 0].append((module, name))
    return slots[0], slots[1:]


def _find_blocks(module: nn.Module) -> Iterator[nn.Module]:
    """The members of the outermost module lists: the layers of a transformer."""
    for child in module.children():
        if isinstance(module, nn.ModuleList) and not isinstance(child, nn.ModuleList):
            yield child
        else:
            yield from _find_blocks(child)


def _list_low_precision(module: nn.Module) -> list[tuple[str, torch.Tensor]]:
    """Names and tensors of the module's own low-precision parameters and buffers."""
    held = [
        *module.named_parameters(recurse=False, remove_duplicate=False),
        *module.named_buffers(recurse=False, remove_duplicate=False),
    ]
    return [(name, tensor) for name, tensor in held if is_low_precision(tensor)]


def is_low_precision(tensor: torch.Tensor) -> bool:
    """Whether a tensor holds floating-point numbers of less than 32 bits."""
    return tensor.is_floating_point() and tensor.dtype.itemsize < torch.float32.itemsize
