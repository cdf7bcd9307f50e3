"""The config.pbtxt of the model entries, complete, so that Triton never has to guess.

One text works in every container from 24.03 to 26.06: `output_class` (needed up to 25.08) stands
beside `is_classifier` (needed from 25.09), and `threshold` is there because the FIL backend
demands it of every classifier, though probabilities do not use it. Output has both columns,
genuine and fraud: up to 25.08 the FIL backend writes two per row into whatever it is given, so that
with one column a single row would answer 1 - p, and a batch would answer other rows' numbers.

Explanations. The FIL backend computes TreeSHAP values for every request once they are declared,
asked for or not. So they have an entry of their own, asked for flagged transactions only. One row
takes about a millisecond of a core, so its executions are short, and the streamer has one request
under way: a payment at the gateway waits for some milliseconds of its explanations at most.

Threads. Both backends take every core by themselves, and several instances of many threads fight
for them. Here each instance has one thread, and `cpu_instances` says how many there are: over the
two entries that score, not more than the server has cores.

Queues. There is deliberately no queue policy: no priority, no time-out, no limit of length. Any of
them makes Triton's batcher wait until an instance is idle before it forms the next batch, and it is
not told when one becomes idle: a request that comes while another is executed then waits for the
next request or for half a second (measured with 2.51). Their bookkeeping also drifts until the
model stalls (issue 8870 of triton-inference-server, open in all releases to 26.06). So it is the
doors that bound what they have under way, and cancel what they no longer wait for. Each door has an
entry of its own by default, which keeps large batches out of a payment's way.
"""

from __future__ import annotations

from pathlib import Path

from flagger.errors import PublishError
from flagger.models import EXPLAIN_ENTRY, FIL_ENTRY, ONNX_ENTRY
from flagger.triton import MAX_EXPLAINED_ROWS
from flagger.triton_tensors import CONTRIBUTIONS, INPUT, OUTPUT

__all__ = ["MAX_BATCH_ROWS", "config_files"]

MAX_BATCH_ROWS = 65_536
"""Most rows of one execution that scores; Settings.max_batch_rows cannot be larger."""

MAX_CPU_INSTANCES = 256


def config_files(n_features: int, *, cpu_instances: int = 1) -> dict[Path, str]:
    """Return the text of each config file by its path in the repository.

    `configs/gpu.pbtxt` is used by a Triton that runs with `--model-config-name=gpu`. Only the FIL
    entries have one: ONNX Runtime has no GPU kernel for tree ensembles, and Triton falls back to
    config.pbtxt.

    Args:
        n_features: Columns of the model.
        cpu_instances: Executions that each scoring entry may run at once, one thread each.

    Raises:
        PublishError: `cpu_instances` is not from 1 to 256.
    """
    if not 1 <= cpu_instances <= MAX_CPU_INSTANCES:
        raise PublishError(
            f"cpu_instances is {cpu_instances}; it must be from 1 to {MAX_CPU_INSTANCES}, and over "
            f"both scoring entries not more than the server has cores."
        )
    fil, onnx, explain = Path(FIL_ENTRY), Path(ONNX_ENTRY), Path(EXPLAIN_ENTRY)
    on_cpu, on_gpu = _instances("KIND_CPU", cpu_instances), _instances("KIND_GPU", 1)
    return {
        fil / "config.pbtxt": _fil(n_features) + on_cpu,
        fil / "configs" / "gpu.pbtxt": _fil(n_features) + on_gpu,
        onnx / "config.pbtxt": _onnx(n_features) + on_cpu,
        explain / "config.pbtxt": _explain(n_features) + _instances("KIND_CPU", 1),
        explain / "configs" / "gpu.pbtxt": _explain(n_features) + on_gpu,
    }


_FIL_PARAMETERS = {
    "model_type": "xgboost_json",
    "predict_proba": "true",
    "is_classifier": "true",
    "output_class": "true",
    "threshold": "0.5",
    "cpu_nthread": "1",
}


def _fil(n_features: int) -> str:
    return _entry(FIL_ENTRY, "fil", n_features, {OUTPUT: 2}, _FIL_PARAMETERS)


def _explain(n_features: int) -> str:
    outputs = {OUTPUT: 2, CONTRIBUTIONS: n_features + 1}
    return _entry(
        EXPLAIN_ENTRY, "fil", n_features, outputs, _FIL_PARAMETERS, max_rows=MAX_EXPLAINED_ROWS
    )


def _onnx(n_features: int) -> str:
    parameters = {"intra_op_thread_count": "1", "inter_op_thread_count": "1"}
    return _entry(ONNX_ENTRY, "onnxruntime", n_features, {OUTPUT: 2}, parameters)


def _entry(
    name: str,
    backend: str,
    n_features: int,
    outputs: dict[str, int],
    parameters: dict[str, str],
    max_rows: int = MAX_BATCH_ROWS,
) -> str:
    answers = ", ".join(
        f'{{ name: "{output}" data_type: TYPE_FP32 dims: [ {width} ] }}'
        for output, width in outputs.items()
    )
    written = "\n".join(
        f'parameters {{ key: "{key}" value {{ string_value: "{value}" }} }}'
        for key, value in parameters.items()
    )
    return f"""\
# Written by `flagger export`; an edit here is overwritten by the next export.
name: "{name}"
backend: "{backend}"
max_batch_size: {max_rows}
input [ {{ name: "{INPUT}" data_type: TYPE_FP32 dims: [ {n_features} ] }} ]
output [ {answers} ]
version_policy {{ all {{ }} }}
{written}
dynamic_batching {{ max_queue_delay_microseconds: 0 }}
{_warmup(n_features, 1)}
{_warmup(n_features, min(max_rows, 1_024))}
"""


def _warmup(n_features: int, rows: int) -> str:
    tensor = f"data_type: TYPE_FP32 dims: [ {n_features} ] zero_data: true"
    return (
        f'model_warmup [ {{ name: "{rows} rows" batch_size: {rows} '
        f'inputs {{ key: "{INPUT}" value {{ {tensor} }} }} }} ]'
    )


def _instances(kind: str, count: int) -> str:
    return f"instance_group [ {{ kind: {kind} count: {count} }} ]\n"
