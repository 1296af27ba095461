import pytest
import torch
from conftest import write_adapter
from hypothesis import given, settings
from hypothesis import strategies as st

from hydrapack.adapters.collect import read_adapters
from hydrapack.adapters.update import difference_norm
from hydrapack.bundle.stored import store
from hydrapack.merging.uniform import merge_adapters
from hydrapack.packing.banks import MatrixBank, RowBank, pack_nibbles, unpack_nibbles
from hydrapack.program.quantized import Precision, noise_by_columns, quantize, stored_bytes


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@settings(max_examples=40, deadline=None)
@given(
    rows=st.integers(1, 5),
    columns=st.integers(1, 70),
    bits=st.sampled_from([4, 8]),
    group=st.integers(1, 40),
    exponent=st.integers(-6, 4),
    seed=st.integers(0, 99),
)
def test_rounding(rows, columns, bits, group, exponent, seed):
    matrix = normal(rows, columns, seed=seed) * 10.0**exponent
    stored = quantize(matrix, bits, group)
    values, scales = stored.values, stored.scales
    top = {4: 7, 8: 127}[bits]
    assert values.dtype == torch.int8 and int(values.abs().max()) <= top
    assert scales.dtype == torch.float16
    again = stored.dequantize()
    width = min(group, columns) if bits == 4 else columns
    wide = scales.float().repeat_interleave(width, -1)[:, :columns]
    assert torch.equal(again, values.float() * wide)
    if bits == 8:
        assert ((again - matrix).abs() <= wide / 2 * 1.0001 + 1e-12).all()


def test_scales_that_clip_are_better_at_4_bits():
    matrix = normal(64, 32)
    plain_scale = matrix.abs().amax(1, keepdim=True) / 7
    plain = (matrix / plain_scale).round() * plain_scale
    assert (quantize(matrix, 4).dequantize() - matrix).norm() < 0.97 * (plain - matrix).norm()


def test_noise_estimate():
    """Within a third of what rounding does to the first columns."""
    matrix = normal(200, 48)
    for bits in (4, 8, 16):
        estimate = noise_by_columns(matrix.double(), (bits,))[bits]
        assert estimate.shape == (48,)
        for columns in (8, 32, 48):
            part = matrix[:, :columns]
            actual = float((quantize(part, bits).dequantize() - part).square().sum())
            assert actual == pytest.approx(float(estimate[columns - 1]), rel=0.34)


def test_refitted_heads_are_no_worse(tmp_path):
    """Error against the adapters' updates: B fitted to the rounded A, against plain rounding."""
    folders = [write_adapter(tmp_path / f"t{k}", seed=k, shared_seed=9) for k in range(3)]
    adapters = read_adapters([str(f) for f in folders])
    for method in ("spectral", "two-sided"):
        merged = merge_adapters(adapters, method, rank=6)
        exact = error_of(adapters, merged.modules)
        for bits in (4, 8):
            added = {}
            for refit in (True, False):
                stored = {
                    name: store(module, Precision(bits, bits), refit).dequantize()
                    for name, module in merged.modules.items()
                }
                added[refit] = error_of(adapters, stored) - exact
            assert added[True] <= added[False] * (1 + 1e-3)
            if bits == 4:
                assert added[True] < 0.98 * added[False]


def error_of(adapters, modules):
    total = 0.0
    for name, module in modules.items():
        for k, adapter in enumerate(adapters):
            head = module.head(module.assignment[k])
            total += difference_norm(adapter.modules[name], module.A, head)[0] ** 2
    return total


def test_nibbles():
    values = torch.randint(-8, 8, (6, 5), dtype=torch.int8)
    packed = pack_nibbles(values)
    assert packed.shape == (3, 5) and packed.dtype == torch.int8
    assert torch.equal(unpack_nibbles(packed), values)


@pytest.mark.parametrize("bits", [4, 8, 16, 32])
@pytest.mark.parametrize("rows", [1, 5, 6])
def test_matrix_bank(bits, rows):
    matrix = normal(rows, 45)
    parts = [quantize(part, bits) for part in matrix.split(2)]
    bank = MatrixBank(parts)
    assert torch.equal(bank(), quantize(matrix, bits).dequantize())
    assert sum(part.bytes for part in parts) == stored_bytes(rows, 45, bits)
    stored = sum(b.numel() * b.element_size() for b in bank.buffers())
    assert 0 <= stored - stored_bytes(rows, 45, bits) <= 45 + 19 * rows


@settings(max_examples=40, deadline=None)
@given(
    bits=st.sampled_from([4, 8, 16, 32]),
    ranks=st.lists(st.integers(1, 70), min_size=1, max_size=4),
    heads=st.lists(st.integers(1, 3), min_size=4, max_size=4),
    widths=st.lists(st.integers(1, 4), min_size=4, max_size=4),
    more=st.integers(0, 3),
    pad=st.booleans(),
    seed=st.integers(0, 99),
)
def test_row_bank(bits, ranks, heads, widths, more, pad, seed):
    """Any shapes: the chosen matrices, rounded, side by side, zeros where they have no ranks."""
    block = 6
    matrices = [
        normal(heads[i], block * widths[i], rank, seed=seed + i) for i, rank in enumerate(ranks)
    ]
    rank = max(ranks) + more
    pad_to = block * (max(widths[: len(ranks)]) + 1) if pad else 0
    parts = [quantize(matrix, bits) for matrix in matrices]
    bank = RowBank(parts, rank, block, pad_to)
    generator = torch.Generator().manual_seed(seed)
    choice = torch.tensor([int(torch.randint(len(m), (1,), generator=generator)) for m in matrices])
    expected = []
    for index, part in zip(choice.tolist(), parts, strict=True):
        chosen = part.dequantize()[index].T
        columns = max(pad_to - chosen.shape[1], 0)
        expected.append(torch.nn.functional.pad(chosen, (0, columns, 0, rank - chosen.shape[0])))
    assert torch.equal(bank(choice), torch.cat(expected, 1))


def test_module_bytes_are_what_banks_hold(tmp_path):
    folder = write_adapter(tmp_path / "t", rank=8)
    merged = merge_adapters(read_adapters([f"x={folder}", f"y={folder}"]))
    module = next(iter(merged.modules.values()))
    for bits in (4, 8, 16, 32):
        stored = store(module, Precision(bits, bits))
        bank, matrix = RowBank([stored.heads], 8, 32), MatrixBank([stored.A])
        held = bank.get_buffer("rows").numel() * bank.get_buffer("rows").element_size()
        held += matrix.get_buffer("values").numel() * matrix.get_buffer("values").element_size()
        if bits < 16:
            held += 2 * (bank.get_buffer("scales").numel() + matrix.get_buffer("scales").numel())
        assert held == stored.bytes
