#!/usr/bin/env python3
"""Compares the inner loops of the kernels with a table of multiplications per cycle.

    cycles.py TABLE PROGRAM...            fails if a loop is more than 5 % below the table
    cycles.py --write TABLE PROGRAM...    writes the measured table

A program is an ELF file with symbols in Rust's v0 mangling. The programs of the packages have them until
packaging/build.sh splits them off.

A row of the table has the processor, the kernel and the multiplications per cycle in its largest loop. llvm-mca-19 models
the pipelines of the processors without caches, so the comparison does not include memory access.
"""

import csv
import re
import subprocess
import sys

# Processors on which the kernels of each module are measured.
KERNELS = {
    "x86-64": {
        "sse": ["goldmont"],
        "avx2": ["haswell", "skylake", "znver2"],
        "avx_vnni": ["gracemont"],
        "avx512": ["sapphirerapids"],
    },
    "aarch64": {
        "neon::f32_rows_interleaved": ["cortex-a53", "cortex-a72"],
        "neon::f32_rows": ["cortex-a55", "neoverse-n1", "neoverse-v1"],
        "neon_int8::widening": ["cortex-a53", "cortex-a72"],
        "neon_int8::transposed": ["cortex-a53", "cortex-a72"],
        "neon_int8::dot": ["cortex-a55", "neoverse-n1"],
        "neon_matrix": ["neoverse-v1"],
    },
}
# Number of multiplications of an instruction, by a pattern of its text.
MULTIPLICATIONS = {
    "x86-64": {
        r"vfn?madd\d+ps\b.*zmm": 16,
        r"vfn?madd\d+ps\b.*ymm": 8,
        r"mulps\b.*xmm": 4,
        r"vpmaddwd\b.*ymm": 16,
        r"pmaddwd\b.*xmm": 8,
        r"vdpbf16ps\b.*zmm": 32,
        r"vpdpbusd\b.*zmm": 64,
        r"vpdpbusd\b.*ymm": 32,
    },
    "aarch64": {
        r"fmla\b.*\.4s": 4,
        r"sml[as]l2?\b.*\.8h": 8,
        r"smull2?\b.*\.8h": 8,
        r"sdot\b.*\.4s": 16,
        r"bfmmla\b": 16,
        r"smmla\b": 32,
    },
}
MACHINES = {"Advanced Micro Devices X86-64": "x86-64", "AArch64": "aarch64"}
OBJDUMP = {"x86-64": ["objdump", "-M", "intel"], "aarch64": ["aarch64-linux-gnu-objdump"]}
MCA = {"x86-64": ["-march=x86-64"], "aarch64": ["-march=aarch64", "-mattr=+dotprod,+i8mm,+bf16"]}
JUMPS = {
    "x86-64": r"j\w+ +([0-9a-f]+) <",
    "aarch64": r"(?:b|b\.\w+|cbn?z|tbn?z)\s.*?\b([0-9a-f]+) <",
}
COMMENTS = {"x86-64": r"\s*#.*", "aarch64": r"\s*//.*"}
PASSES = 200
LEAST = 0.95


def run(*command, text=None):
    return subprocess.run(command, input=text, stdout=subprocess.PIPE, text=True, check=True).stdout


def architecture(program):
    return MACHINES[re.search(r"Machine: +(.*)", run("readelf", "--file-header", program))[1]]


def functions(program, arch):
    """Yields the kernels of a program: module and name, and instructions with their addresses."""
    listing = run(*OBJDUMP[arch], "--disassemble", "--demangle", "--no-show-raw-insn", program)
    for function in listing.split("\n\n"):
        name = re.match(r"[0-9a-f]+ <.*::simd::(.*)>:\n", function)
        if name:
            lines = re.findall(r"^ +([0-9a-f]+):\t(.*)$", function, re.MULTILINE)
            yield name[1], [(int(address, 16), text.strip()) for address, text in lines]


def innermost_loops(instructions, arch):
    """Yields the instructions from the target of each jump backward to the jump, if no other is between."""
    jumps = [(re.match(JUMPS[arch], text), address) for address, text in instructions]
    loops = [(int(jump[1], 16), address) for jump, address in jumps if jump and int(jump[1], 16) <= address]
    for first, last in loops:
        if not any(first <= other[0] and other[1] <= last for other in loops if other != (first, last)):
            yield [text for address, text in instructions if first <= address <= last]


def multiplications(loop, arch):
    counts = MULTIPLICATIONS[arch].items()
    return sum(next((count for pattern, count in counts if re.search(pattern, text)), 0) for text in loop)


def cycles(loop, arch, processor):
    """Returns the mean number of cycles of one pass of a loop."""
    lines = [re.sub(COMMENTS[arch], "", text) for text in loop]
    lines = [re.sub(r"\b[0-9a-f]+ <.*>$", "begin", text) for text in lines]
    syntax = [".intel_syntax noprefix"] if arch == "x86-64" else []
    text = "\n".join([*syntax, "begin:", *lines, ""])
    report = run("llvm-mca-19", *MCA[arch], f"-mcpu={processor}", f"-iterations={PASSES}", text=text)
    return int(re.search(r"Total Cycles: +(\d+)", report)[1]) / PASSES


def largest_loop(instructions, arch):
    """Returns the innermost loop with the most multiplications, after their number."""
    loops = ((multiplications(loop, arch), loop) for loop in innermost_loops(instructions, arch))
    return max(loops, key=lambda counted: counted[0], default=(0, []))


def measure(programs):
    """Returns the multiplications per cycle for each processor and kernel."""
    rates = {}
    for program in programs:
        arch = architecture(program)
        missing = set(KERNELS[arch])
        for kernel, instructions in functions(program, arch):
            module = next((module for module in KERNELS[arch] if re.match(rf"{module}(::|_|$)", kernel)), None)
            # Only kernels with loops are measured, not their callers and not the remainders of the loops.
            measured = module and re.search("_row|_rounds", kernel)
            count, loop = largest_loop(instructions, arch) if measured else (0, [])
            if count:
                missing.discard(module)
                for processor in KERNELS[arch][module]:
                    rates[processor, kernel] = count / cycles(loop, arch, processor)
        if missing:
            sys.exit(f"{program}: no loop of {', '.join(sorted(missing))}: it has no symbols, or they have other names")
    return rates


def compare(table, rates):
    """Returns a line for each kernel that is slower than in the table, or that only one side contains."""
    with open(table, newline="") as file:
        expected = {(processor, kernel): float(rate) for processor, kernel, rate in csv.reader(file, delimiter="\t")}
    # Rows for processors of another architecture are skipped: a program contains the kernels of one.
    processors = {processor for processor, _ in rates}
    wrong = []
    for key in sorted({key for key in expected if key[0] in processors} | set(rates)):
        was, now = expected.get(key), rates.get(key)
        if was is None or now is None or now < LEAST * was:
            wrong.append(f"{' '.join(key)}: in the table {was and f'{was:.2f}'}, now {now and f'{now:.2f}'}")
    return wrong


def main():
    arguments = sys.argv[1:]
    write = arguments[:1] == ["--write"]
    table, *programs = arguments[write:]
    rates = measure(programs)
    if write:
        with open(table, "w", newline="") as file:
            rows = ([*key, f"{rate:.2f}"] for key, rate in sorted(rates.items()))
            csv.writer(file, delimiter="\t", lineterminator="\n").writerows(rows)
        return
    wrong = compare(table, rates)
    print(f"{len(rates)} loops compared, {len(wrong)} wrong")
    if wrong:
        sys.exit("\n".join([*wrong, "if the change is intended, run --write with the programs of both architectures"]))


if __name__ == "__main__":
    main()
