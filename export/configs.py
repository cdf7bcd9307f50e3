"""The config.pbtxt of both model entries, complete, so that Triton never has to guess.

One text works in every container from 24.03 to 26.06: `output_class` (needed up to 25.08) stands
beside `is_classifier` (needed from 25.09), and `threshold` is there because the FIL backend
demands it of every classifier, though probabilities do not use it. Output has both columns,
genuine and fraud: up to 25.08 the FIL backend writes two per row into whatever it is given, so that
with one column a single row would answer 1 - p, and a batch would answer other rows' numbers.

Threads. Both backends take every core by themselves, and several instances of many threads fight
for them. Here each instance has one thread, and `cpu_instances` says how many there are: over both
entries, not more than the server has cores.

Queues. Priority 1 is the gateway, 2 the streamer. A request that waits longer than its own time
limit is refused instead of scored for nobody. A time limit can only be shortened by a request, and
only where a default is set. Each level has a policy of its own, because Triton creates and erases
the queues of levels that have none while it serves.
"""

from __future__ import annotations

from pathlib import Path

from flagger.errors import PublishError
from flagger.models import FIL_ENTRY, ONNX_ENTRY
from flagger.triton import GATEWAY_PRIORITY, INPUT, OUTPUT, STREAMER_PRIORITY

__all__ = ["MAX_BATCH_ROWS", "config_files"]

MAX_BATCH_ROWS = 65_536
"""Most rows of one execution; Settings.max_batch_rows cannot be larger."""

MAX_CPU_INSTANCES = 256

_QUEUE_TIMEOUT_US = 10_000_000
"""Longest wait in a queue: above every time limit that a door has by default."""
_GATEWAY_QUEUE = 1_024
"""Single rows that wait at most: some 0.1 s of work."""
_STREAMER_QUEUE = 256
"""Batches that wait at most: 64 streamers with 4 in flight."""


def config_files(n_features: int, *, cpu_instances: int = 1) -> dict[Path, str]:
    """Return the text of each config file by its path in the repository.

    `configs/gpu.pbtxt` is used by a Triton that runs with `--model-config-name=gpu`. Only the FIL
    entry has one: ONNX Runtime has no GPU kernel for tree ensembles, and Triton falls back to
    config.pbtxt.

    Args:
        n_features: Columns of the model.
        cpu_instances: Executions that each entry may run at the same time, one thread each.

    Raises:
        PublishError: `cpu_instances` is not from 1 to 256.
    """
    if not 1 <= cpu_instances <= MAX_CPU_INSTANCES:
        raise PublishError(
            f"cpu_instances is {cpu_instances}; it must be from 1 to {MAX_CPU_INSTANCES}, and over "
            f"both entries not more than the server has cores."
        )
    fil, onnx = Path(FIL_ENTRY), Path(ONNX_ENTRY)
    on_cpu = _instances("KIND_CPU", cpu_instances)
    return {
        fil / "config.pbtxt": _fil(n_features) + on_cpu,
        fil / "configs" / "gpu.pbtxt": _fil(n_features) + _instances("KIND_GPU", 1),
        onnx / "config.pbtxt": _onnx(n_features) + on_cpu,
    }


def _fil(n_features: int) -> str:
    parameters = {
        "model_type": "xgboost_json",
        "predict_proba": "true",
        "is_classifier": "true",
        "output_class": "true",
        "threshold": "0.5",
        "cpu_nthread": "1",
    }
    return _entry(FIL_ENTRY, "fil", n_features, parameters)


def _onnx(n_features: int) -> str:
    parameters = {"intra_op_thread_count": "1", "inter_op_thread_count": "1"}
    return _entry(ONNX_ENTRY, "onnxruntime", n_features, parameters)


def _entry(name: str, backend: str, n_features: int, parameters: dict[str, str]) -> str:
    written = "\n".join(
        f'parameters {{ key: "{key}" value {{ string_value: "{value}" }} }}'
        for key, value in parameters.items()
    )
    return f"""\
# Written by `flagger export`; an edit here is overwritten by the next export.
name: "{name}"
backend: "{backend}"
max_batch_size: {MAX_BATCH_ROWS}
input [ {{ name: "{INPUT}" data_type: TYPE_FP32 dims: [ {n_features} ] }} ]
output [ {{ name: "{OUTPUT}" data_type: TYPE_FP32 dims: [ 2 ] }} ]
version_policy {{ all {{ }} }}
{written}
dynamic_batching {{
  max_queue_delay_microseconds: 0
  priority_levels: {max(GATEWAY_PRIORITY, STREAMER_PRIORITY)}
  default_priority_level: {STREAMER_PRIORITY}
  default_queue_policy {{ {_queue_policy(_STREAMER_QUEUE)} }}
  priority_queue_policy {{
    key: {GATEWAY_PRIORITY}
    value {{ {_queue_policy(_GATEWAY_QUEUE)} }}
  }}
  priority_queue_policy {{
    key: {STREAMER_PRIORITY}
    value {{ {_queue_policy(_STREAMER_QUEUE)} }}
  }}
}}
{_warmup(n_features, 1)}
{_warmup(n_features, 1_024)}
"""


def _queue_policy(max_queue_size: int) -> str:
    return (
        f"timeout_action: REJECT default_timeout_microseconds: {_QUEUE_TIMEOUT_US} "
        f"allow_timeout_override: true max_queue_size: {max_queue_size}"
    )


def _warmup(n_features: int, rows: int) -> str:
    tensor = f"data_type: TYPE_FP32 dims: [ {n_features} ] zero_data: true"
    return (
        f'model_warmup [ {{ name: "{rows} rows" batch_size: {rows} '
        f'inputs {{ key: "{INPUT}" value {{ {tensor} }} }} }} ]'
    )


def _instances(kind: str, count: int) -> str:
    return f"instance_group [ {{ kind: {kind} count: {count} }} ]\n"
