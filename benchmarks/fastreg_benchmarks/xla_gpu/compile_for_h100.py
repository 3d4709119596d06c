"""Compiles HLO for an H100 that need not be there: reads pairs of HLO and "cuBLAS" or "Triton" from stdin, as JSON.

Runs in an environment that has jax and its CUDA plug-in, and imports nothing of the project. Neither a driver nor a
device is needed.
"""

import json
import os
import re
import sys
from pathlib import Path
from typing import Any

import jax
import jax_plugins.xla_cuda12
from jax._src.interpreters import mlir
from jax._src.lib.mlir import ir
from jaxlib import _hlo, _jax, xla_client

GPU = "NVIDIA H100 80GB HBM3"

TARGET = f"""
platform_name: "CUDA"
device_description_str: "{GPU}"
dnn_version_info {{ major: 9 minor: 10 }}
gpu_device_info {{
  cuda_compute_capability {{ major: 9 }}
  core_count: 132  fpus_per_core: 128  clock_rate_ghz: 1.98
  memory_bandwidth: 3352320000000  l2_cache_size: 52428800  device_memory_size: 84942979072
  threads_per_warp: 32  threads_per_block_limit: 1024  threads_per_core_limit: 2048
  block_dim_limit_x: 2147483647  block_dim_limit_y: 65535  block_dim_limit_z: 65535
  registers_per_core_limit: 65536  registers_per_block_limit: 65536
  shared_memory_per_block: 49152  shared_memory_per_block_optin: 232448  shared_memory_per_core: 233472
}}
"""
"""What XLA asks of a GPU, as an xla.gpu.GpuTargetConfigProto in text form."""

ONE = "1x1x1"
"""One host with one GPU."""


def described_gpu() -> Any:
    """A device to compile for."""
    plugin = Path(jax_plugins.xla_cuda12.__file__).with_name("xla_cuda_plugin.so")
    api = xla_client.load_pjrt_plugin_dynamically("cuda", str(plugin))
    topology = xla_client.make_c_api_device_topology(api, ONE, target_config=TARGET, topology=ONE)
    (device,) = topology._make_compile_only_devices()
    return device


def compiled(device: Any, text: str, product: str) -> str:
    """The HLO that XLA would run there."""
    # The plug-in takes StableHLO, which knows no copy; XLA would drop a copy to the same layout.
    module = _hlo.hlo_module_from_text(re.sub(r"(?<= )copy\(", "reshape(", text))
    computation = _hlo.XlaComputation(module.as_serialized_hlo_module_proto())
    options = _jax.CompileOptions()
    options.num_replicas = options.num_partitions = 1
    options.env_option_overrides = [("xla_gpu_enable_triton_gemm", product == "Triton")]
    with mlir.make_ir_context():
        stable = ir.Module.parse(_jax.mlir.xla_computation_to_mlir_module(computation))
        result = device.client.compile(stable, _jax.DeviceList((device,)), options)
    return str(result.hlo_modules()[0].to_string())


def main() -> None:
    """Answer with the target and the optimised HLO of every pair."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # libraries may print what they like
    device = described_gpu()
    modules = [compiled(device, text, product) for text, product in json.load(sys.stdin)]
    json.dump({"target": f"{GPU}, as jax {jax.__version__} compiles for it", "modules": modules}, answers)
    answers.close()


if __name__ == "__main__":
    main()
