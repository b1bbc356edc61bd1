"""Several processes: the same losses as one, the adapter saved whole, and sharded tensors gathered before a save."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny import make_base, write_pairs

pytestmark = pytest.mark.slow

RUN = """
base: {base}
out: {out}
data: {{train: {data}, eval_share: 0.2, max_length: 64}}
adapter: {{rank: 4}}
save: [embed_tokens, lm_head]
ties: untie
lr: 1e-2
steps: 6
eval_every: 3
prove: reload
device: cpu
tensorboard: false
"""


def launched(*arguments: str, options: tuple[str, ...] = ("--multi_gpu",)) -> subprocess.CompletedProcess[str]:
    """What `accelerate launch` gives, with two processes on this machine."""
    command = [str(Path(sys.executable).with_name("accelerate")), "launch", *options]
    command += ["--num_processes", "2", "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
    environment = {**os.environ, "PYTHONWARNINGS": "ignore", "ACCELERATE_CONFIG_FILE": "", "OMP_NUM_THREADS": "1"}
    command += ["--main_process_port", "0", *arguments]
    return subprocess.run(command, check=False, capture_output=True, text=True, env=environment)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    base, data = make_base(tmp_path / "base"), write_pairs(tmp_path / "pairs.jsonl", 40)
    file = tmp_path / "run.yaml"
    file.write_text(RUN.format(base=base, data=data, out=tmp_path / "two"))
    return file


def losses(run: Path) -> list[tuple[int, float, float | None]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [(line["step"], line["loss"], line.get("eval_loss")) for line in lines if "loss" in line]


def test_two_processes_train_as_one(file: Path, tmp_path: Path):
    """The same batches, half of each in each process: the same losses within float noise, and one whole adapter."""
    from suture.training.config import load
    from suture.training.run import train

    two = launched("-m", "suture", "train", str(file), "batch_size=2")
    assert two.returncode == 0, two.stderr
    assert "2 processes: MULTI_CPU" in two.stderr
    assert two.stdout.count("saved and reloaded") == 1  # one process answers
    one = train(load(file, [f"out={tmp_path / 'one'}", "batch_size=4"]))
    assert one.adapter is not None
    for ours, theirs in zip(losses(tmp_path / "two"), losses(tmp_path / "one"), strict=True):
        assert ours == pytest.approx(theirs, abs=1e-5)
    there, here = (load_file(p / "adapter_model.safetensors") for p in (tmp_path / "two" / "adapter", one.adapter))
    assert {k: v.shape for k, v in there.items()} == {k: v.shape for k, v in here.items()}
    for name, value in here.items():
        torch.testing.assert_close(there[name], value, atol=1e-3, rtol=1e-2)


STOPPED = """
import os, signal, sys
from pathlib import Path
from suture.training.config import load
from suture.training.run import Silent, resume, train

class Stop(Silent):
    def step(self, metrics):  # the first process alone is told, and stops both
        if metrics.step == 3 and metrics.eval_loss is None:
            os.kill(os.getpid(), signal.SIGTERM)

if sys.argv[1] == "resume":
    resume(Path(sys.argv[2]))
else:
    train(load(Path(sys.argv[1]), sys.argv[3:]), observer=Stop() if sys.argv[2] == "stop" else None)
"""


def test_two_processes_stop_and_resume(file: Path, tmp_path: Path):
    """The same bytes as two processes that were not stopped, with evaluations that an early stop counts."""
    script = tmp_path / "script.py"
    script.write_text(STOPPED)
    settings = ("batch_size=2", "prove=off", "early_stop=9")
    for arguments in (
        (str(file), "go on", f"out={tmp_path / 'straight'}", *settings),
        (str(file), "stop", f"out={tmp_path / 'halted'}", *settings),
        ("resume", str(tmp_path / "halted")),
    ):
        done = launched(str(script), *arguments)
        assert done.returncode == 0, done.stderr
    ours, theirs = (tmp_path / name / "adapter" / "adapter_model.safetensors" for name in ("halted", "straight"))
    assert (tmp_path / "halted" / "checkpoint-4").is_dir()
    assert ours.read_bytes() == theirs.read_bytes()


def test_sharding_that_is_not_there_is_refused(file: Path):
    options = ("--use_fsdp", "--fsdp_version", "2", "--fsdp_auto_wrap_policy", "NO_WRAP")
    done = launched("-m", "suture", "train", str(file), options=options)
    assert done.returncode != 0
    assert "FSDP was asked for, but accelerate gives MULTI_CPU" in done.stderr


SHARDED = """
import sys
from pathlib import Path
import torch
import torch.distributed as dist
from peft import LoraConfig, get_peft_model
from torch.distributed.fsdp import fully_shard
from transformers import AutoModelForCausalLM
from suture.errors import NotSaved
from suture.training.live import look
from suture.training.readback import gathered, read_back

dist.init_process_group("gloo")
torch.manual_seed(0)
base = AutoModelForCausalLM.from_pretrained(sys.argv[1])
model = get_peft_model(base, LoraConfig(r=4, target_modules=["q_proj"], modules_to_save=["lm_head"]))
for layer in base.model.layers:
    fully_shard(layer)
fully_shard(model)
live, out = look(model), Path(sys.argv[2])
whole = gathered(live)
parts = {name: value.to_local() for name, value in model.state_dict().items()}
full = {name: value.full_tensor() for name, value in model.state_dict().items()}
if dist.get_rank() == 0:
    model.save_pretrained(out / "whole", state_dict=full, save_embedding_layers=False)
    read_back(out / "whole", live, whole)
    model.save_pretrained(out / "parts", state_dict=parts, save_embedding_layers=False)
    try:
        read_back(out / "parts", live, whole)
    except NotSaved as error:
        print("refused:", error)
dist.barrier()
dist.destroy_process_group()
"""


def test_a_sharded_model_is_saved_whole(tmp_path: Path):
    """FSDP2 leaves each process with a part; what one process saves alone is refused after reading it back."""
    base, script = make_base(tmp_path / "base", tie=False), tmp_path / "script.py"
    script.write_text(SHARDED)
    done = launched(str(script), str(base), str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert "refused:" in done.stdout
    assert "q_proj.lora_A.weight: [2, 32] in the file, [4, 32] in memory" in done.stdout
