"""PyTorch's penalty and gradient, eager and compiled, beside the kernels: `python benchmarks/torch_baseline.py`.

PyTorch is no dependency: install it by hand, into an environment that has fastreg.
"""

import argparse
from functools import partial

import fastreg_kernels
import numpy as np
import torch
from fastreg_benchmarks import bandwidth, environment, report, stats, timing
from fastreg_benchmarks.cases import L1, L2, VALUE, VALUE_AND_GRADIENT, Case, Inputs
from rich.console import Console
from rich.table import Table


def penalty(x):
    return L1 * x.abs().sum() + L2 * x.square().sum()


def value_and_gradient(x):
    value = penalty(x)
    (gradient,) = torch.autograd.grad(value, x)
    return value, gradient


def providers(inputs):
    """Callables by name for the case of the inputs, each giving a value or a value and a gradient."""
    x = torch.from_numpy(inputs.x)
    if inputs.case.what == VALUE:
        return {
            "torch, eager": partial(penalty, x),
            "torch.compile": partial(torch.compile(penalty), x),
            "kernel alone": partial(fastreg_kernels.forward, inputs.x),
        }
    x.requires_grad_()
    compiled = torch.compile(penalty)

    def compiled_gradient():
        value = compiled(x)
        return value, torch.autograd.grad(value, x)[0]

    return {
        "torch, eager": partial(value_and_gradient, x),
        "torch.compile": compiled_gradient,
        "kernel alone": partial(fastreg_kernels.forward_backward, inputs.x, L1, L2, out=inputs.out),
    }


def check(inputs, name, result):
    """Against the float64 oracle."""
    if inputs.case.what == VALUE_AND_GRADIENT:
        gradient = result[1].detach().numpy() if torch.is_tensor(result[1]) else result[1]
        expected = L1 * np.sign(inputs.x) + 2 * L2 * inputs.x
        np.testing.assert_allclose(gradient, expected, rtol=1e-5, err_msg=name)
        result = result[0]
    value = float(result.detach()) if torch.is_tensor(result) else L1 * result[0] + L2 * result[1]
    np.testing.assert_allclose(value, L1 * inputs.sums[0] + L2 * inputs.sums[1], rtol=1e-4, err_msg=name)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=1 << 26)
    parser.add_argument("--seconds", type=float, default=5.0)
    options = parser.parse_args()
    torch.set_num_threads(fastreg_kernels.get_num_threads())
    here = environment.describe()
    console = Console()
    console.print(f"{here.device}, {here.threads} threads · PyTorch {torch.__version__} · fastreg {here.fastreg}")
    for what in (VALUE, VALUE_AND_GRADIENT):
        case = Case(options.size, "float32", what)
        inputs = Inputs(case)
        calls = {"memory limit": bandwidth.Probe(case.nbytes).limit(what), **providers(inputs)}
        runs = [timing.Run(call) for call in calls.values()]
        for (name, _), run in zip(calls.items(), runs, strict=True):
            result = timing.warm_up(run)
            if name != "memory limit":
                check(inputs, name, result)
        samples = timing.measure(runs, options.seconds).samples
        table = Table("provider", "p20", "p50", "p80", "of limit", title=str(case))
        limit = stats.quantiles(samples[0])[1]
        for name, times in zip(calls, samples, strict=True):
            quantiles = stats.quantiles(times)
            table.add_row(name, *(report.duration(value) for value in quantiles), f"{limit / quantiles[1]:.0%}")
        console.print(table)


if __name__ == "__main__":
    main()
