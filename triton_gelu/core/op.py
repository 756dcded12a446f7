"""`Op`: registers an operator with PyTorch, from its declaration: checks, autograd, fakes, decompositions, DTensor.

`Op(...)` takes what the tensors and the options are, what checks the options, and how each backend computes. It makes

* `op.call`, the function that users' functions hand their arguments to: a plain eager call takes the fastest backend at
  the least cost (`eager`), a compiler, a mode or a sharded tensor is given an operator of torch.library, and what wants
  to look inside, such as torch.func, is given plain PyTorch;
* three operators, `<package>::<name>`, `..._backward` and `..._double_backward`, with schemas, fakes and derivatives;
* their decompositions, for compilers, and their sharding rules, for DTensor: both when the first is asked for, since
  their imports take seconds.
"""

from __future__ import annotations

import functools
import itertools
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.library import custom_op

from . import checks, compat_torch, compat_triton, dispatch, eager, graph, run
from .compat_torch import EXACT
from .declare import (
    BACKWARD,
    DOUBLE_BACKWARD,
    FORWARD,
    PACKAGE,
    Arg,
    Kind,
    Level,
    Option,
    Tensors,
    empty_results,
    keep_needed,
    levels,
    or_empty,
    shape_of,
    sharding_rules,
)
from .dispatch import Backend, Choice, Kernels, Support, choose, graph_support, kernels_support


class Op:
    """An operator and its derivatives.

    Args:
        name: of the operator in torch.library.
        inputs: its tensors, x first.
        result: what the result is.
        options: its further arguments.
        dim: of the options, the dimension of x that vectors lie along.
        check: of x and the options, the options as backends take them; raises where they do not fit.
        kernels: the backend of Triton kernels, if there is one.
        backends: the others that compute on tensors in memory, fastest first.
        plain: the backend that can be traced, batched and differentiated to any order, on any tensor.
        graph: the operations that a compiled graph for a GPU holds, unless the kernels' backward pass is better there
            (`Kernels.in_graphs`); `plain` if None.
        standard: of the operator's arguments, the result in standard operators, for exported graphs; plain if None.
    """

    def __init__(
        self,
        name: str,
        inputs: Sequence[Arg],
        result: Kind,
        options: Sequence[Option],
        *,
        dim: Callable[..., int],
        check: Callable[..., tuple[Any, ...]],
        plain: Backend,
        backends: Sequence[Backend] = (),
        kernels: Kernels | None = None,
        graph: Backend | None = None,
        standard: Callable[..., Tensor] | None = None,
    ) -> None:
        self.name, self.inputs, self.options = name, tuple(inputs), tuple(options)
        self.dim, self.check_options, self.plain = dim, check, plain
        self.standard = standard or plain.forward
        self.levels = levels(name, self.inputs, result)
        self.kernels, self.graph = kernels, graph
        self.launched = None if kernels is None else self._launched(kernels)
        self.recorded = graph if kernels is None else self._recorded(kernels, graph or plain)
        first = () if self.launched is None else (self.launched,)
        self.backends = (*first, *backends, *(() if plain in backends else (plain,)))
        self.cache = eager.Cache()
        self.operators = self._register()
        self.register_decompositions = _once(self._register_decompositions)
        self.register_sharding = _once(self._register_sharding)
        self.source, self.call, self.forward, self.backward = eager.generate(self)

    def check(self, *given: Any) -> tuple[Any, ...]:
        """The options of a call in canonical form. Raises TypeError or ValueError where an argument does not fit."""
        if compat_torch.is_tracing():  # which warns that a comparison of sizes stays as it was traced: so it may
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", torch.jit.TracerWarning)  # type: ignore[attr-defined]
                return self._check(*given)
        return self._check(*given)

    def _check(self, *given: Any) -> tuple[Any, ...]:
        tensors, options = given[: len(self.inputs)], given[len(self.inputs) :]
        checks.check_lead(self.inputs[0].name, tensors[0])
        options = self.check_options(tensors[0], *options)
        checks.check_others(self.inputs, tensors, self.dim(*options))
        return options

    def choose(self, x: Tensor) -> Choice:
        """The backend that computes plain eager calls on tensors like x, and why."""
        if dispatch.demanded == dispatch.TORCH:
            return Choice(self.plain, f"{dispatch.SWITCH} is {dispatch.TORCH}")
        return choose(self.backends, x)

    def options_of(self, level: Level, given: Sequence[Any]) -> tuple[Any, ...]:
        """The options among the arguments of a level."""
        return tuple(given[len(level.args) : len(level.args) + len(self.options)])

    def compute(self, number: int, *given: Any) -> Any:
        """A level on tensors in memory, by the backend that is chosen for them, or on those of a compiler."""
        x = given[self.levels[number].lead]
        if type(x) in EXACT:
            kept = (self.forward, self.backward, None)[number]
            return (kept or self.fastest(number, x))(*given)
        backend = self.recorded if self.recorded and graph_support(x).possible else self.plain
        return self._level_by(backend, number)(*given)

    def fastest(self, number: int, x: Tensor) -> Callable[..., Any]:
        """What computes a level of plain eager calls on tensors like x: the fastest backend that has this level."""
        chosen = self.choose(x).backend
        slower = self.backends[self.backends.index(chosen) :]
        able = (each for each in slower if number != DOUBLE_BACKWARD or each.double_backward is not None)
        return self._level_by(next((each for each in able if each.supports(x).possible), self.plain), number)

    def _level_by(self, backend: Backend, number: int) -> Callable[..., Any]:
        """How a backend computes a level; plain PyTorch where it does not."""
        function = (backend.forward, backend.backward, backend.double_backward)[number] or self.plain.double_backward
        if function is None:
            raise NotImplementedError(f"{self.name} has no double backward of its own")
        return function

    def _launched(self, kernels: Kernels) -> Backend:
        """Kernels as plain eager calls have them: launched, and what is planned for a call kept for all like it."""

        def supports(x: Tensor) -> Support:
            support, further = kernels_support(x), kernels.supports(x)
            return support if further.possible or not support.possible else further

        first, second, third = (functools.partial(eager.launch, self, number) for number in range(len(self.levels)))
        return Backend("Triton kernels", first, second, None if kernels.double_backward is None else third, supports)

    def _recorded(self, kernels: Kernels, ordinary: Backend) -> Backend:
        """What a compiled graph holds: ordinary operations, or the kernels' backward pass where it stands alone."""
        level = self.levels[BACKWARD]

        def backward(*given: Any) -> Any:
            results = None
            if kernels.in_graphs and graph.stands_alone(level, given):
                dim = self.dim(*self.options_of(level, given))
                results = graph.record(level, kernels.backward, kernels.module, dim, given)
            return ordinary.backward(*given) if results is None else results

        return Backend(f"{ordinary.name}, in a graph", ordinary.forward, backward, ordinary.double_backward)

    def plan(self, number: int, given: Sequence[Any], replan: Callable[..., Any]) -> Callable[..., Any]:
        """What launches the kernels of a level on tensors like those given; it takes the tensors alone."""
        assert self.kernels is not None
        planner, level = self.kernels.planners[number], self.levels[number]
        assert planner is not None
        return run.bind(level, planner, self.kernels.module, self.dim(*self.options_of(level, given)), given, replan)

    def _register(self) -> list[Any]:
        """The operators of torch.library: forward, backward, and double backward where there is one."""
        count = DOUBLE_BACKWARD if self.plain.double_backward is None else len(self.levels)
        operators = []
        for number, level in enumerate(self.levels[:count]):
            operator = custom_op(
                f"{PACKAGE}::{level.name}",
                functools.partial(self._implement, number),
                mutates_args=(),
                schema=level.schema(self.options),
            )
            operator.register_fake(functools.partial(self._fake, number))
            operators.append(operator)
        for number, (operator, backward) in enumerate(itertools.pairwise(operators)):
            differentiate, save = self._derivative(number, backward)
            operator.register_autograd(differentiate, setup_context=save)
        return operators

    def _implement(self, number: int, *given: Any) -> Any:
        """An operator of torch.library: an output that is not needed is an empty tensor."""
        if number == FORWARD:
            return self.compute(number, *given)
        results = self.compute(number, *given[:-1], tuple(given[-1]))
        return tuple(or_empty(results, given[self.levels[number].lead]))

    def _fake(self, number: int, *given: Any) -> Any:
        """What an operator returns, without what is in it."""
        level = self.levels[number]
        if self.recorded and dispatch.demanded:  # a graph that a compiler has kept is not computed again
            graph_support(given[level.lead])
        results = empty_results(level, given, self.dim(*self.options_of(level, given)))
        return tuple(or_empty(results, given[level.lead])) if level.needs else results[0]

    def _derivative(self, number: int, backward: Any) -> tuple[Callable[..., Any], Callable[..., None]]:
        """The backward of an operator as torch.library wants it, and what it saves: its tensors."""
        level = self.levels[number]
        count = len(level.args)
        has_gradient = [arg.differentiable for arg in level.args]

        def save(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
            kept = zip(level.args, inputs, strict=False)
            ctx.save_for_backward(*[tensor if arg.read else shape_of(tensor) for arg, tensor in kept])
            ctx.options, ctx.needs = self.options_of(level, inputs), level.needed(inputs)
            ctx.set_materialize_grads(not level.needs)

        def differentiate(ctx: Any, *gradients: Tensor | None) -> Tensors:
            gradients = tuple(keep_needed(gradients, ctx.needs))
            nothing = (None,) * (len(self.options) + level.needs)
            if all(gradient is None for gradient in gradients):
                return (None,) * count + nothing
            needs = [n for n, differentiable in zip(ctx.needs_input_grad, has_gradient, strict=False) if differentiable]
            alone = number == FORWARD and self.plain.double_backward is None and torch.is_grad_enabled()
            compute = self.plain.backward if alone else backward  # PyTorch differentiates the former itself
            found = keep_needed(compute(*gradients, *ctx.saved_tensors, *ctx.options, needs), needs)
            return *[next(found) if differentiable else None for differentiable in has_gradient], *nothing

        return differentiate, save

    def _register_decompositions(self) -> None:
        graphs_without = compat_triton.INTERPRETED or dispatch.demanded == dispatch.TORCH
        module = None if graphs_without or self.kernels is None else self.kernels.module
        for number, operator in enumerate(self.operators):
            kernels = [] if module is None else module.KERNELS
            compat_torch.register_decomposition(operator, functools.partial(self._implement, number), kernels)

    def _register_sharding(self) -> None:
        from torch.distributed.tensor.experimental import register_sharding

        for level, operator in zip(self.levels, self.operators, strict=False):

            def rules(*given: Any, level: Level = level) -> Any:
                return sharding_rules(level, given, self.dim(*self.options_of(level, given)))

            register_sharding(operator._opoverload)(rules)


def _once(function: Callable[[], None]) -> Callable[[], None]:
    """What calls the function the first time only; Dynamo does not look into it."""
    done: list[bool] = []

    @compat_torch.untraced
    def once() -> None:
        if not done:
            function()
            done.append(True)

    return once
