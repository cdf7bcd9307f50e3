"""Every generated config is one that Triton's own schema accepts, and says what we mean."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from export.configs import MAX_BATCH_ROWS, config_files
from flagger.errors import PublishError
from flagger.settings import Settings
from flagger.triton import MAX_EXPLAINED_ROWS

CPU_FILES = [Path("fraud_fil/config.pbtxt"), Path("fraud_onnx/config.pbtxt")]
GPU_FILE = Path("fraud_fil/configs/gpu.pbtxt")
EXPLAIN_FILES = [
    Path("fraud_fil_explain/config.pbtxt"),
    Path("fraud_fil_explain/configs/gpu.pbtxt"),
]
Config = model_config_pb2.ModelConfig


def parsed(cpu_instances: int = 1) -> dict[Path, Any]:
    files = config_files(54, cpu_instances=cpu_instances)
    return {path: text_format.Parse(text, Config()) for path, text in files.items()}


def parameters(config: Any) -> dict[str, str]:
    return {key: value.string_value for key, value in config.parameters.items()}


def threads_per_instance(config: Any) -> int:
    keys = {"fil": ("cpu_nthread",), "onnxruntime": ("intra_op_thread_count",)}[config.backend]
    return max(int(parameters(config)[key]) for key in keys)


def test_the_files_are_one_config_per_entry_and_one_for_gpus() -> None:
    assert sorted(parsed()) == sorted([*CPU_FILES, GPU_FILE, *EXPLAIN_FILES])


@pytest.mark.parametrize("cpu_instances", [1, 4, 16])
def test_threads_times_instances_are_the_cores_that_were_asked_for(cpu_instances: int) -> None:
    for path in CPU_FILES:
        config = parsed(cpu_instances)[path]
        (group,) = config.instance_group
        assert group.kind == model_config_pb2.ModelInstanceGroup.KIND_CPU
        assert group.count * threads_per_instance(config) == cpu_instances
    onnx = parsed(cpu_instances)[Path("fraud_onnx/config.pbtxt")]
    assert parameters(onnx)["inter_op_thread_count"] == "1"


def test_both_entries_together_need_the_two_cores_of_the_smallest_machine() -> None:
    configs = [parsed()[path] for path in CPU_FILES]
    assert sum(c.instance_group[0].count * threads_per_instance(c) for c in configs) <= 2


def test_the_gpu_config_differs_by_its_instance_group_only() -> None:
    cpu, gpu = parsed()[Path("fraud_fil/config.pbtxt")], parsed()[GPU_FILE]
    assert gpu.instance_group[0].kind == model_config_pb2.ModelInstanceGroup.KIND_GPU
    assert gpu.instance_group[0].count == 1
    gpu.ClearField("instance_group")
    cpu.ClearField("instance_group")
    assert gpu == cpu


def test_inputs_outputs_and_names_are_those_of_the_doors() -> None:
    for path, config in parsed().items():
        assert config.name == path.parts[0]
        (tensor,), answer = config.input, config.output[0]
        assert (tensor.name, list(tensor.dims)) == ("input__0", [54])
        assert (answer.name, list(answer.dims)) == ("output__0", [2])
        assert {t.data_type for t in (tensor, *config.output)} == {model_config_pb2.TYPE_FP32}
        told = [(output.name, list(output.dims)) for output in config.output[1:]]
        if path in EXPLAIN_FILES:
            assert told == [("treeshap_output", [55])]
            assert config.max_batch_size == MAX_EXPLAINED_ROWS
        else:
            assert told == []
            assert config.max_batch_size == MAX_BATCH_ROWS
        assert config.version_policy.WhichOneof("policy_choice") == "all"


def test_a_batch_of_any_allowed_setting_fits() -> None:
    limits = Settings.model_fields["max_batch_rows"].metadata
    assert max(getattr(limit, "le", 0) for limit in limits) <= MAX_BATCH_ROWS


def test_the_fil_entries_have_the_keys_of_old_and_new_containers() -> None:
    for path in (CPU_FILES[0], GPU_FILE, *EXPLAIN_FILES):
        config = parsed()[path]
        assert config.backend == "fil"
        assert not config.platform
        assert parameters(config) == {
            "model_type": "xgboost_json",
            "predict_proba": "true",
            "is_classifier": "true",
            "output_class": "true",
            "threshold": "0.5",
            "cpu_nthread": "1",
        }


def test_no_queue_policy_holds_a_request_back() -> None:
    for config in parsed().values():
        assert config.HasField("dynamic_batching")
        # Any other field turns the batcher's prefetching off; see `export.configs`.
        config.dynamic_batching.ClearField("max_queue_delay_microseconds")
        assert config.dynamic_batching.ByteSize() == 0


def test_a_version_is_warm_before_it_is_ready() -> None:
    for path, config in parsed().items():
        most = MAX_EXPLAINED_ROWS if path in EXPLAIN_FILES else 1_024
        assert sorted(warmup.batch_size for warmup in config.model_warmup) == [1, most]
        for warmup in config.model_warmup:
            tensor = warmup.inputs["input__0"]
            assert list(tensor.dims) == [54]
            assert tensor.zero_data


@pytest.mark.parametrize("cpu_instances", [0, 257])
def test_an_absurd_number_of_instances_is_refused(cpu_instances: int) -> None:
    with pytest.raises(PublishError, match="from 1 to 256"):
        config_files(54, cpu_instances=cpu_instances)
