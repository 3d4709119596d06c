"""Counting, on small modules whose traffic is known."""

import pytest
from fastreg_benchmarks.hlo import text, traffic

ADD = """
%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %sum = f32[] add(%a, %b)
}
"""


def module(entry, *computations, parameters="x: f32[1000]"):
    return "\n".join(
        ["HloModule m, is_scheduled=true", ADD, *computations, f"ENTRY %main ({parameters}) -> f32[] {{"]
    ) + (f"\n{entry}\n}}\n")


def kernels(entry, *computations, least=False):
    found = traffic.count(module(entry, *computations), least=least)
    return [(kernel.name, kernel.read, kernel.written, kernel.times) for kernel in found.kernels]


def test_types():
    parsed = text.parse(
        module("""
  %x = (f32[2,3]{1,0:T(8,128)}, bf16[<=5], pred[7]{0}, s4[3], f8e4m3fn[2], token[], f64[]) parameter(0)
  ROOT %y = c64[4]{0} custom-call(%x), custom_call_target="f", metadata={op_name="a (b) = c"}""")
    )
    x, y = parsed.entry.instructions.values()
    assert [array.bytes for array in x.arrays] == [24, 10, 7, 1.5, 2, 0, 8]
    assert (y.bytes, y.operands, y.opcode) == (32, ("x",), "custom-call")
    assert y.attribute(r'custom_call_target="([^"]*)"') == "f"
    assert (parsed.entry.root, parsed.entry.parameters) == ("y", [x])


@pytest.mark.parametrize("wrong", ["", "HloModule m", module("  %x = f32[3] add((%a")])
def test_what_is_no_module(wrong):
    with pytest.raises(ValueError, match="Expected"):
        text.parse(wrong)


def test_every_operand_is_read_once_and_views_are_free():
    entry = """
  %x = f32[1000]{0} parameter(0)
  %matrix = f32[10,100]{1,0} bitcast(%x)
  %c = f32[] constant(0)
  %square = f32[10,100]{1,0} multiply(f32[10,100]{1,0} %matrix, f32[10,100]{1,0} %matrix)
  ROOT %sum = f32[] reduce(%square, /*index=1*/%c), dimensions={0,1}, to_apply=%add"""
    assert kernels(entry) == [("square", 4000, 4000, 1), ("sum", 4004, 4, 1)]
    found = traffic.count(module(entry))
    assert (found.elements, found.per_element, found.notes) == (1000, 12.008, [])


FUSED = """
%fused (p: f32[1000], q: f32[]) -> (f32[1000], f32[], f32[1000]) {
  %p = f32[1000]{0} parameter(0)
  %q = f32[] parameter(1)
  %scale = f32[1000]{0} broadcast(%q), dimensions={}
  %scaled = f32[1000]{0} multiply(%scale, %p)
  %sum = f32[] reduce(%scaled, %q), dimensions={0}, to_apply=%add
  ROOT %all = (f32[1000]{0}, f32[], f32[1000]{0}) tuple(%scaled, %sum, %p)
}"""


def test_a_fusion_writes_all_results_but_what_it_hands_through():
    entry = """
  %x = f32[1000]{0} parameter(0)
  %y = f32[] parameter(1)
  ROOT %both = (f32[1000]{0}, f32[], f32[1000]{0}) fusion(%x, %y), kind=kInput, calls=%fused"""
    assert kernels(entry, FUSED) == [("both", 4004, 4004, 1)]


IN_PLACE = """
%taken (p.1: f32[1000], i.1: s32[]) -> f32[10] {
  %p.1 = f32[1000]{0} parameter(0)
  %i.1 = s32[] parameter(1)
  ROOT %part = f32[10]{0} dynamic-slice(%p.1, %i.1), dynamic_slice_sizes={10}
}

%put (p.2: f32[1000], v.2: f32[10], i.2: s32[]) -> f32[1000] {
  %p.2 = f32[1000]{0} parameter(0)
  %v.2 = f32[10]{0} parameter(1)
  %i.2 = s32[] parameter(2)
  %view = f32[1000]{0} bitcast(%p.2)
  ROOT %new = f32[1000]{0} dynamic-update-slice(%view, %v.2, %i.2)
}"""


def test_of_what_is_sliced_or_updated_in_place_the_part_counts():
    entry = """
  %x = f32[1000]{0} parameter(0)
  %i = s32[] parameter(1)
  %rows = s32[5,1]{1,0} parameter(2)
  %fusion.1 = f32[10]{0} fusion(%x, %i), kind=kLoop, calls=%taken
  %fusion.2 = f32[1000]{0} fusion(%x, %fusion.1, %i), kind=kLoop, calls=%put
  %gather = f32[5]{0} gather(%fusion.2, %rows), slice_sizes={1}
  %slice = f32[5]{0} slice(%fusion.2), slice={[0:5]}
  %scatter = f32[1000]{0} scatter(%fusion.2, %rows, %gather), to_apply=%add
  ROOT %update = f32[1000]{0} dynamic-update-slice(%scatter, %slice, %i)"""
    assert kernels(entry, IN_PLACE) == [
        ("fusion.1", 44, 40, 1),
        ("fusion.2", 44, 40, 1),
        ("gather", 40, 20, 1),
        ("slice", 20, 20, 1),
        ("scatter", 60, 20, 1),  # rows, updates, and what they are added to
        ("update", 24, 20, 1),
    ]


def test_an_update_of_what_the_kernel_makes_is_a_whole_result():
    fused = """
%put (p: f32[1000], v: f32[10], i: s32[]) -> f32[1000] {
  %p = f32[1000]{0} parameter(0)
  %v = f32[10]{0} parameter(1)
  %i = s32[] parameter(2)
  %negated = f32[1000]{0} negate(%p)
  ROOT %new = f32[1000]{0} dynamic-update-slice(%negated, %v, %i)
}"""
    entry = """
  %x = f32[1000]{0} parameter(0)
  %v = f32[10]{0} parameter(1)
  %i = s32[] parameter(2)
  ROOT %new = f32[1000]{0} fusion(%x, %v, %i), kind=kLoop, calls=%put"""
    assert kernels(entry, fused) == [("new", 4044, 4000, 1)]


def test_a_fusion_within_a_fusion():
    outer = """
%outer (p.3: f32[1000], i.3: s32[]) -> f32[10] {
  %p.3 = f32[1000]{0} parameter(0)
  %i.3 = s32[] parameter(1)
  %inner = f32[10]{0} fusion(%p.3, %i.3), kind=kLoop, calls=%taken
  ROOT %twice = f32[10]{0} add(%inner, %inner)
}"""
    entry = """
  %x = f32[1000]{0} parameter(0)
  %i = s32[] parameter(1)
  ROOT %y = f32[10]{0} fusion(%x, %i), kind=kLoop, calls=%outer"""
    assert kernels(entry, IN_PLACE, outer) == [("y", 44, 40, 1)]


LOOP = """
%body (state: (s32[], f32[1000])) -> (s32[], f32[1000]) {
  %state = (s32[], f32[1000]{0}) parameter(0)
  %turn = s32[] get-tuple-element(%state), index=0
  %value = f32[1000]{0} get-tuple-element(%state), index=1
  %negated = f32[1000]{0} negate(%value)
  ROOT %next = (s32[], f32[1000]{0}) tuple(%turn, %negated)
}

%condition (state.1: (s32[], f32[1000])) -> pred[] {
  %state.1 = (s32[], f32[1000]{0}) parameter(0)
  ROOT %always = pred[] constant(true)
}"""


@pytest.mark.parametrize(
    ("known", "times", "notes"),
    [
        (', backend_config={"known_trip_count":{"n":"7"}}', 7, []),
        ("", 1, ["loop: how often it loops is not known"]),
    ],
)
def test_loops(known, times, notes):
    entry = f"""
  %x = (s32[], f32[1000]{{0}}) parameter(0)
  ROOT %loop = (s32[], f32[1000]{{0}}) while(%x), condition=%condition, body=%body{known}"""
    assert kernels(entry, LOOP) == [("negated", 4000, 4000, times)]
    assert kernels(entry, LOOP, least=True) == ([] if notes else [("negated", 4000, 4000, times)])
    found = traffic.count(module(entry, LOOP))
    assert found.notes == notes
    assert found.per_element == 8 * times


@pytest.mark.parametrize(
    "attributes",
    ["branch_computations={%nothing, %all}", "true_computation=%all, false_computation=%nothing"],
)
def test_branches(attributes):
    branches = """
%all (v: f32[1000]) -> f32[1000] {
  %v = f32[1000]{0} parameter(0)
  ROOT %negated = f32[1000]{0} negate(%v)
}

%nothing (w: f32[1000]) -> f32[1000] {
  ROOT %w = f32[1000]{0} parameter(0)
}"""
    entry = f"""
  %x = f32[1000]{{0}} parameter(0)
  %p = pred[] parameter(1)
  ROOT %y = f32[1000]{{0}} conditional(%p, %x, %x), {attributes}"""
    assert kernels(entry, branches) == [("negated", 4000, 4000, 1)]
    assert kernels(entry, branches, least=True) == []


def test_work_space_and_copies():
    entry = """
  %x = f32[1000]{0} parameter(0)
  %product = (f32[1000]{0}, s8[999]{0}) custom-call(%x, %x), custom_call_target="__cublas$gemm"
  %result = f32[1000]{0} get-tuple-element(%product), index=0
  %start = (f32[1000]{0}, f32[1000]{0}, u32[]) copy-start(%result)
  ROOT %done = f32[1000]{0} copy-done(%start)"""
    assert kernels(entry) == [("product", 4000, 4000, 1), ("start", 4000, 4000, 1)]
    assert traffic.count(module(entry)).kernels[0].what == "__cublas$gemm"


def test_calls():
    called = """
%called (v: f32[1000]) -> f32[1000] {
  %v = f32[1000]{0} parameter(0)
  ROOT %negated = f32[1000]{0} negate(%v)
}"""
    entry = """
  %x = f32[1000]{0} parameter(0)
  %one = f32[1000]{0} call(%x), to_apply=%called
  %start = ((f32[1000]{0}), f32[1000]{0}) async-start(%one), calls=%called
  ROOT %two = f32[1000]{0} async-done(%start)"""
    assert kernels(entry, called) == [("negated", 4000, 4000, 1)] * 2
