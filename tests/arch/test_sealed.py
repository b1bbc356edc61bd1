"""A config is data: building its model asks nobody, runs no code of the checkpoint's, and makes no endless lists."""

from __future__ import annotations

import socket
import sys
import threading

import pytest
import zoo

from suture.arch import describe
from suture.arch.sealed import refuse_absurd, sealed
from suture.errors import FormatError, SutureError

LLAMA = {**zoo.FAMILIES["llama"].settings, "model_type": "llama", "architectures": ["LlamaForCausalLM"]}
PLACE = "stranger/model"  # of a repository on the Hub
CODE = {
    "AutoConfig": f"{PLACE}--c.C",
    "AutoModel": f"{PLACE}--m.M",
    "AutoModelForCausalLM": f"{PLACE}--m.M",
    "AutoBackbone": "m.M",
}
BACKBONE = {"model_type": "resnet", "out_features": ["stage4"], "auto_map": CODE, "_name_or_path": PLACE}
# Configs that name something to be fetched, or code to be run.
ASKING = {
    "detr": {"model_type": "detr", "architectures": ["DetrForObjectDetection"], "use_timm_backbone": False},
    "dpt": {"model_type": "dpt", "architectures": ["DPTForDepthEstimation"], "backbone_config": None},
    "upernet": {"model_type": "upernet", "architectures": ["UperNetForSemanticSegmentation"]},
    "maskformer": {"model_type": "maskformer", "architectures": ["MaskFormerForInstanceSegmentation"]},
    "mask2former": {"model_type": "mask2former", "architectures": ["Mask2FormerForUniversalSegmentation"]},
    "depth": {"model_type": "depth_anything", "architectures": ["DepthAnythingForDepthEstimation"]},
}
QUIET = {
    "auto_map": {**LLAMA, "auto_map": CODE, "trust_remote_code": True},
    "name": {**LLAMA, "_name_or_path": PLACE, "name_or_path": PLACE},
    "kernels": {**LLAMA, "attn_implementation": f"{PLACE}:f", "use_kernels": True},
    "backbone_config": {**ASKING["upernet"], "backbone_config": BACKBONE},
    "nested": {
        "model_type": "llava", "architectures": ["LlavaForConditionalGeneration"],
        "text_config": {**LLAMA, "auto_map": CODE, "_name_or_path": PLACE, "attn_implementation": f"{PLACE}:f"},
        "vision_config": {"model_type": "clip_vision_model", "auto_map": CODE, "hidden_size": 32},
    },
    "timm": {
        "model_type": "llava", "architectures": ["LlavaForConditionalGeneration"], "text_config": LLAMA,
        "vision_config": {
            "model_type": "timm_wrapper", "architecture": f"hf-hub:{PLACE}", "model_args": {"pretrained": True},
        },
    },
}  # fmt: skip


@pytest.fixture
def connections(monkeypatch):
    """Every connection that anything wants to make, refused; the Hub's own offline switch is off."""
    import huggingface_hub
    import transformers

    wanted = []

    def refuse(*arguments, **_):
        wanted.append(arguments)
        raise OSError("no network in tests")

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(transformers.dynamic_module_utils, "get_cached_module_file", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket.socket, "connect_ex", refuse)
    return wanted


@pytest.mark.parametrize("name", ASKING)
def test_a_part_that_is_named_by_its_place_is_refused(name, connections):
    with pytest.raises(
        FormatError, match=r"the model cannot be built from its config alone.*huggingface\.co"
    ) as caught:
        describe({**ASKING[name], "backbone": PLACE}, {}, cache=False)
    assert (caught.value.where, connections) == ("config.json", [])


@pytest.mark.parametrize("name", ASKING)
def test_the_same_where_the_hub_is_switched_off(name):
    with pytest.raises(FormatError, match="the model cannot be built from its config alone"):
        describe({**ASKING[name], "backbone": PLACE}, {}, cache=False)


@pytest.mark.parametrize("name", QUIET)
def test_keys_that_name_places_or_code_ask_nobody(name, connections):
    try:
        found = describe(QUIET[name], {}, cache=False)
    except SutureError as error:
        assert "huggingface" not in str(error)  # noqa: PT017 - either will do
    else:
        assert found.source.startswith("transformers")
    assert connections == []
    assert not [module for module in sys.modules if module.startswith("transformers_modules.stranger")]


def test_other_threads_and_later_times_may_connect():
    server = socket.create_server(("127.0.0.1", 0))
    place, reached = server.getsockname(), []

    def connect() -> None:
        with socket.create_connection(place):
            reached.append(True)

    with sealed():
        other = threading.Thread(target=connect)
        other.start()
        other.join()
        with pytest.raises(FormatError, match=r"127\.0\.0\.1"):
            connect()
        with sealed():
            pass
        with pytest.raises(FormatError, match="config alone"), socket.socket() as mine:
            mine.connect(place)
    connect()
    server.close()
    assert reached == [True, True]


@pytest.mark.parametrize(
    "changes",
    [
        {"num_labels": 10**9},
        {"num_hidden_layers": 10**6},
        {"depths": [2, 10**9]},
        {"text_config": {"num_labels": 10**9}},
        {"vision_config": [{"num_hidden_layers": float("inf")}]},
        {"num_labels": 10**300},
    ],
    ids=str,
)
def test_counts_that_no_model_has_are_refused(changes):
    with pytest.raises(FormatError, match=r"is 1|is inf") as caught:
        describe({**LLAMA, **changes}, {}, cache=False)
    assert len(str(caught.value)) < 400


def test_counts_that_models_have_are_not():
    refuse_absurd(
        {"num_labels": 21_843, "depths": [2, 2, 18, 2], "max_position_embeddings": 10**7, "rope_theta": 10**9}
    )
