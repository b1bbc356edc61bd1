"""The formulas on a device of torch: those of the compiled kernel, to the last places of float32."""

import numpy as np
import pytest

from suture import compiled
from suture.errors import UsageError
from suture.execute import fused
from suture.execute.device import Device
from suture.execute.receipt import kernel_name
from suture.formats.dtypes import DTYPES, from_float, to_float


@pytest.mark.parametrize("dtypes", compiled.PAIRS, ids="-".join)
@pytest.mark.parametrize("method", ["lora", "dora"])
def test_it_agrees_with_the_compiled_kernel(dtypes, method):
    random = np.random.default_rng(0)
    w = from_float(random.standard_normal((40, 70)).astype(np.float32), dtypes[0])
    f = {"B": random.standard_normal((40, 6)).astype(np.float32), "A": random.standard_normal((6, 70)).astype("f4")}
    m, found = random.uniform(0.5, 2, 40).astype(np.float32), []
    for formulas in (Device("cpu"), fused.load()):
        packed, out = formulas.pack(f), np.empty(w.shape, DTYPES[dtypes[1]].storage)
        if method == "lora":
            formulas.lora(w, out, packed, 0.3, dtypes)
        else:
            v = np.empty(w.shape, np.float32)
            formulas.lora(w, v, packed, 0.3, (dtypes[0], "F32"))
            formulas.dora(v, out, m, dtypes[1])
        found.append(to_float(out, dtypes[1]))
    unit = {"F32": 2e-6, "BF16": 2**-8, "F16": 2**-11}[dtypes[1]]
    np.testing.assert_allclose(*found, rtol=2 * unit, atol=1e-5)


def test_the_receipt_names_it():
    assert kernel_name(Device("cpu")).startswith("torch ")


@pytest.mark.parametrize("name", ["nowhere", "cuda:77"])
def test_a_device_that_there_is_not(name):
    with pytest.raises(UsageError, match=f"torch cannot use {name}"):
        Device(name)
