"""Makes images (:mod:`gpuprover.cpu.image`): a curve's kernels, out of Numba's hands into a file.

Numba keeps each kernel as optimised LLVM code. That of all kernels which :mod:`gpuprover.cpu.warm` calls for
a curve goes into one module, without what none of them needs: Python's wrappers, copies of common functions.
LLVM turns it into position-independent machine code, an ELF object, whose sections are laid out and whose
references are filled in here, once and for all. A kernel that needs anything from outside, memory for one or
an exception, cannot go into an image, and no image is made then.

``python -m gpuprover.cpu.bake [--parent PID] [CURVE …]`` makes those images that are missing: :func:`main`.
"""

from __future__ import annotations

import os
import struct
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

from llvmlite import binding
from numba.core import types
from numba.core.compiler_lock import global_compiler_lock
from numba.core.registry import cpu_target

from gpuprover import processes
from gpuprover.cpu import ntt, warm
from gpuprover.cpu.compiled import Call, dispatcher, recording
from gpuprover.cpu.image import Entry, callable_kinds, identity, image_name, machine, open_image, pack
from gpuprover.cpu.kernels.field import FieldType
from gpuprover.cpu.path import cpu_features
from gpuprover.cpu.sources import store
from gpuprover.curves import PAIRING_CURVES, CurveParams, curve_by_name
from gpuprover.errors import DeviceError
from gpuprover.folders import places
from gpuprover.job import Job

RUNTIME = """
define hidden void @NRT_incref(ptr %owner) alwaysinline { ret void }
define hidden void @NRT_decref(ptr %owner) alwaysinline { ret void }
define hidden ptr @memset(ptr %start, i32 %value, i64 %size) {
entry:
  %byte = trunc i32 %value to i8
  %wide = zext i8 %byte to i64
  %word = mul i64 %wide, 72340172838076673
  %words = and i64 %size, -8
  br label %by_word
by_word:
  %i = phi i64 [ 0, %entry ], [ %next_i, %one_word ]
  %more = icmp ult i64 %i, %words
  br i1 %more, label %one_word, label %by_byte
one_word:
  %p = getelementptr i8, ptr %start, i64 %i
  store i64 %word, ptr %p, align 1
  %next_i = add i64 %i, 8
  br label %by_word
by_byte:
  %k = phi i64 [ %words, %by_word ], [ %next_k, %one_byte ]
  %rest = icmp ult i64 %k, %size
  br i1 %rest, label %one_byte, label %end
one_byte:
  %q = getelementptr i8, ptr %start, i64 %k
  store i8 %byte, ptr %q
  %next_k = add i64 %k, 1
  br label %by_byte
end:
  ret ptr %start
}
"""
"""What kernels call. Numba counts the owners of arrays: arguments have none here, and there are no other
arrays, since nothing here allocates any. LLVM makes memset of loops that clear one."""


class BakeError(DeviceError):
    """Code that cannot go into an image."""


# From Numba ---------------------------------------------------------------------------------------


def _kind(kind: Any) -> str:
    """A Numba type as :func:`gpuprover.cpu.image.kind_of` says it."""
    if isinstance(kind, types.Array) and kind.layout == "C" and kind.mutable and kind.aligned:
        return f"{kind.dtype}[{kind.ndim}]"
    if kind == types.UniTuple(types.int64, 2):
        return "(int64, int64)"
    return kind.name if isinstance(kind, FieldType) else str(kind)


class _Compiled(NamedTuple):
    call: Call
    result: str
    symbol: str
    bitcode: bytes


def _compiled(call: Call) -> _Compiled:
    name, kinds = call
    for arguments, form in dispatcher(name).overloads.items():
        if tuple(map(_kind, arguments)) == kinds:
            result = _kind(form.signature.return_type)
            if not callable_kinds(kinds, result):
                break
            bitcode = form.library._get_module_for_linking().as_bitcode()
            return _Compiled(call, result, form.fndesc.llvm_func_name, bitcode)
    raise BakeError(f"{name}: no compiled form for {', '.join(kinds)} that can go into an image")


def _object(kernels: Sequence[_Compiled]) -> bytes:
    """One position-independent ELF object that defines the kernels' symbols."""
    options: dict[str, Any] = {}
    codegen = cpu_target.target_context.codegen()
    codegen._customize_tm_options(options)
    target = binding.Target.from_default_triple().create_target_machine(
        cpu=options["cpu"], features=options["features"], opt=3, reloc="pic", codemodel="small"
    )
    whole = binding.parse_assembly(RUNTIME)
    whole.triple, whole.data_layout = target.triple, str(target.target_data)
    for kernel in kernels:
        module = binding.parse_bitcode(kernel.bitcode)
        module.get_function(kernel.symbol).linkage = "external"
        whole.link_in(module)
    kept = {kernel.symbol for kernel in kernels} | {"memset"}  # calls of memset appear later
    for function in whole.functions:
        if function.name in kept:
            function.visibility = "hidden"
        elif not function.is_declaration:
            function.linkage = "internal"
    for variable in whole.global_variables:
        if not variable.is_declaration:
            variable.linkage = "internal"
    passes = binding.create_new_module_pass_manager()
    passes.add_always_inliner_pass()
    passes.add_global_dead_code_eliminate_pass()
    passes.run(whole, binding.create_pass_builder(target, binding.create_pipeline_tuning_options()))
    whole.verify()
    return bytes(target.emit_object(whole))


# ELF ------------------------------------------------------------------------------------------------
#
# System V ABI, "Object files", and its AMD64 supplement, "Relocation".

_SECTION = struct.Struct("<IIQQQQIIQQ")
_SYMBOL = struct.Struct("<IBBHQQ")
_RELOCATION = struct.Struct("<QIIq")
_PROGBITS, _SYMTAB, _RELA, _NOBITS = 1, 2, 4, 8
_WRITE, _ALLOC = 1, 2
_RELATIVE = {2, 4}
"""R_X86_64_PC32 and R_X86_64_PLT32: 32 bits, target + addend − place."""


class _Section(NamedTuple):
    name: int
    kind: int
    flags: int
    address: int
    offset: int
    size: int
    link: int
    info: int
    alignment: int
    entry_size: int


def _name(table: bytes, start: int) -> str:
    return table[start : table.index(b"\0", start)].decode()


def linked(source: bytes) -> tuple[bytes, dict[str, int]]:
    """An ELF object's code and constants as they can be mapped, and its global symbols' places in it.

    Raises:
        BakeError: it needs what it does not define, or writable memory, or the address it is at.
    """
    (table,) = struct.unpack_from("<Q", source, 40)
    (count,) = struct.unpack_from("<H", source, 60)
    sections = [_Section(*_SECTION.unpack_from(source, table + _SECTION.size * i)) for i in range(count)]
    places: dict[int, int] = {}
    code = bytearray()
    for i, section in enumerate(sections):
        # What unwinds the stack has another type, and is left out: no exception passes through kernels.
        if section.flags & _ALLOC and section.size and section.kind in (_PROGBITS, _NOBITS):
            if section.flags & _WRITE or section.kind == _NOBITS:
                raise BakeError("compiled code that needs memory of its own")
            code += bytes(-len(code) % max(64, section.alignment))
            places[i] = len(code)
            code += source[section.offset : section.offset + section.size]
    symbols: dict[str, int] = {}
    for section in sections:
        if section.kind == _SYMTAB:
            names = sections[section.link]
            text = source[names.offset : names.offset + names.size]
            for at in range(section.offset, section.offset + section.size, _SYMBOL.size):
                name, info, _, home, value, _ = _SYMBOL.unpack_from(source, at)
                if info >> 4 and home in places:
                    symbols[_name(text, name)] = places[home] + value
        if section.kind != _RELA or section.info not in places:
            continue
        symtab = sections[section.link]
        names = sections[symtab.link]
        for at in range(section.offset, section.offset + section.size, _RELOCATION.size):
            where, how, index, addend = _RELOCATION.unpack_from(source, at)
            name, _, _, home, value, _ = _SYMBOL.unpack_from(source, symtab.offset + _SYMBOL.size * index)
            if home not in places or how not in _RELATIVE:
                text = source[names.offset : names.offset + names.size]
                raise BakeError(f"compiled code that cannot be relocated: {_name(text, name)!r}, type {how}")
            place = places[section.info] + where
            struct.pack_into("<i", code, place, places[home] + value + addend - place)
    return bytes(code), symbols


# Images ---------------------------------------------------------------------------------------------


def bake(curve: CurveParams) -> bool:
    """Makes the curve's image, in place of one that is there -> whether it is there now.

    It is not where there are no images, nor where there is no room, of which a warning tells. Compiles first
    what Numba's cache lacks. For a process without other work.

    Raises:
        BakeError: a kernel cannot go into an image.
    """
    name = image_name(curve)
    if name is None:
        return False
    ntt.drop_tables()  # or nobody would ask for the kernels that fill them
    with recording() as calls:
        warm.compile_curve(curve, Job(threads=1))
    with global_compiler_lock:
        try:
            kernels = [_compiled(call) for call in sorted(calls)]
            code, symbols = linked(_object(kernels))
        except (AttributeError, TypeError) as error:
            # Parts of Numba that are its own, which another version may lack: kernels run without images.
            raise BakeError(f"no image of {curve.name} with this version of Numba: {error}") from None
    entries = [Entry(*kernel.call, kernel.result, symbols[kernel.symbol]) for kernel in kernels]
    index = {**identity(curve), "features": sorted(cpu_features()), "kernels": entries}
    return store().write(name, pack(index, code))


def bake_missing(curve: CurveParams) -> None:
    """Makes the curve's image if there is none that may be used. Raises as :func:`bake` does."""
    if open_image(curve) is None:
        bake(curve)


def main(arguments: Sequence[str]) -> None:
    """Makes the images that are missing of the curves with these names, default all.

    ``--parent PID`` first: in the background, and for no longer than that process lives. One process is at it
    at a time; the others wait, and find the images made.
    """
    names = list(arguments)
    if names[:1] == ["--parent"]:
        processes.harden(int(names[1]))
        os.nice(19)
        del names[:2]
    if machine() is None or places().writable is None:
        return
    with store().locked("bake.lock"):
        for curve in [curve_by_name(name) for name in names] or PAIRING_CURVES:
            bake_missing(curve)


if __name__ == "__main__":
    main(sys.argv[1:])
