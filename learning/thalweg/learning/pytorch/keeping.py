"""What a module keeps between calls other than in tensors of its state, and parameters that it uses and does not have."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import torch
from torch import Tensor, nn

from thalweg.learning import entry_points
from thalweg.learning.data.errors import listed
from thalweg.learning.errors import MistakeError
from thalweg.learning.pytorch.attributes import digest, digests, parts_of_attributes

_FIELD = "model.torch"


class Kept:
    """What a module keeps before it is called. Raises MistakeError if its code fails."""

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self._attributes = digests(module)
        self._extra = dict(_extra_states(module))

    def notices(self, loss: Tensor, call: Callable[[], object]) -> list[str]:
        """What the author should know after a call that gave a loss.

        If attributes have changed, `call` makes an equal call: what is the same then follows from the samples alone, as a cache
        does. Raises MistakeError if extra state has changed.
        """
        module = self._module
        if changed := [name for name, state in _extra_states(module) if self._extra.get(name) != state]:
            problem = f"the extra state (get_extra_state) of {_named(changed[0])} changes when the module is called"
            raise MistakeError(f"{_FIELD}: {problem}, and is not kept; keep it in buffers")
        found = [_about_extra(list(self._extra)), _about_strangers(module, loss)]
        if (after := digests(module)) != self._attributes:
            with _buffers_kept(module), suppress(MistakeError):
                call()
                again = digests(module)
                found.append(_about_attributes([name for name, value in after.items() if again.get(name) != value]))
        return [*filter(None, found)]


def _about_extra(names: list[str]) -> str:
    if not names:
        return ""
    lack = f"the extra state (get_extra_state) of {', '.join(map(_named, names))} is not kept, and job.state_dict() lacks it"
    return f"{_FIELD}: {lack}; load that with strict=False"


def _about_attributes(names: list[str]) -> str:
    if not names:
        return ""
    kept = f"each call changes attributes of the module, {listed(names)}, which workers neither share nor keep"
    return f"{_FIELD}: {kept}; keep what outputs depend on in buffers. thalweg doctor shows whether results depend on it"


def _about_strangers(module: nn.Module, loss: Tensor) -> str:
    """A notice about parameters from which a loss follows, and which are not the module's."""
    known = {id(parameter) for parameter in module.parameters()}
    found = [each for each in _leaves(loss) if isinstance(each, nn.Parameter) and id(each) not in known]
    if not found:
        return ""
    names = {id(part): name for name, part in parts_of_attributes(module) if isinstance(part, nn.Parameter)}
    told = [names.get(id(each), f"one of shape {tuple(each.shape)}") for each in found]
    problem = f"the loss depends on parameters that the module does not have, and that are not trained: {listed(told)}"
    return f"{_FIELD}: {problem}; keep modules in nn.ModuleList, or call requires_grad_(False) if they are to stay as they are"


def _leaves(loss: Tensor) -> Iterator[object]:
    """The tensors by which a loss could be differentiated."""
    waiting, seen = [loss.grad_fn], set[object]()
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            yield node.variable
        waiting += [following for following, _ in node.next_functions]


def _extra_states(module: nn.Module) -> Iterator[tuple[str, str]]:
    """Digests of what modules with extra state have, by the modules' names."""
    for name, each in module.named_modules():
        if type(each).get_extra_state is not nn.Module.get_extra_state:
            with entry_points.running(_FIELD):
                state = each.get_extra_state()
            yield name, digest(state)


def _named(name: str) -> str:
    return name or "the module"


@contextmanager
def _buffers_kept(module: nn.Module) -> Iterator[None]:
    """At the end of the context all buffers are what they were."""
    kept = [
        (owner, key, buffer, buffer.detach().clone())
        for owner in module.modules()
        for key, buffer in owner._buffers.items()
        if buffer is not None
    ]
    try:
        yield
    finally:
        with torch.no_grad():
            for owner, key, buffer, values in kept:
                buffer.copy_(values)
                owner._buffers[key] = buffer
