"""Which dtype a CPU computes in, and the private functions of torch with their fallbacks."""

import pytest
import torch

from dynenc import Codec
from dynenc.errors import UsageError
from dynenc.networks import compat
from dynenc.networks.compat import CPU_DTYPE, cpu_dtype, fast_dtype, maybe_bfloat16

BF16, FP32 = torch.bfloat16, torch.float32


@pytest.fixture
def uncached():
    """The findings about the CPU are made anew within a test, and after it."""
    found = compat.has_bfloat16_units, compat.has_exact_int_mm
    for each in found:
        each.cache_clear()
    yield
    for each in found:
        each.cache_clear()


@pytest.mark.parametrize("units", [True, False])
@pytest.mark.parametrize("setting", ["auto", "", "float32", "bfloat16"])
def test_the_setting_forces_the_dtype(monkeypatch, setting, units):
    monkeypatch.setattr(compat, "has_bfloat16_units", lambda: units)
    monkeypatch.setenv(CPU_DTYPE, setting)
    forced = {"float32": FP32, "bfloat16": BF16}.get(setting)
    expected = forced or (BF16 if units else FP32)
    assert cpu_dtype() == fast_dtype(torch.device("cpu")) == expected
    assert fast_dtype(torch.device("cuda")) == fast_dtype(torch.device("mps")) == torch.float16
    weight = torch.ones(2, 2)
    with torch.no_grad(), maybe_bfloat16(weight):
        assert (weight @ weight).dtype == expected
    with maybe_bfloat16(weight):  # a gradient may be wanted
        assert (weight @ weight).dtype == FP32


def test_a_wrong_setting_is_refused_before_any_work(monkeypatch):
    monkeypatch.setenv(CPU_DTYPE, "float16")
    with pytest.raises(UsageError, match="DYNENC_CPU_DTYPE is 'float16': set it to auto, float32"):
        Codec("base", device="cpu")


@pytest.mark.parametrize("public", [True, False])
@pytest.mark.parametrize("units", [(), ("amx",), ("avx512",)])
def test_bfloat16_units_are_found(monkeypatch, uncached, public, units):
    if public:
        names = {"amx": "amx_bf16", "avx512": "avx512_bf16"}
        found = {name: unit in units for unit, name in names.items()}
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: found, raising=False)
    else:
        monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
        for unit, name in {"amx": "_is_amx_tile", "avx512": "_is_avx512_bf16"}.items():
            monkeypatch.setattr(
                torch.cpu, f"{name}_supported", lambda unit=unit: unit in units, raising=False
            )
    assert compat.has_bfloat16_units() == bool(units)


def test_integer_products_are_checked_before_they_are_used(monkeypatch, uncached):
    """Some CPUs add pairs of products with uint8 in 16 bits, which saturate."""

    def saturating(a, b):
        products = (a.int() + 128)[:, :, None] * b.int()
        pairs = products.unflatten(1, (-1, 2)).sum(2).clamp(-(2**15), 2**15 - 1)
        return pairs.sum(1) - 128 * b.int().sum(0)

    monkeypatch.setattr(torch, "_int_mm", saturating)
    assert not compat.has_exact_int_mm()
    monkeypatch.delattr(torch, "_int_mm")
    compat.has_exact_int_mm.cache_clear()
    assert not compat.has_exact_int_mm()
