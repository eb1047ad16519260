#!/usr/bin/env python3
"""Compiles the kernels beside this file to PTX, and reports what an assembler makes of it.

`cargo xtask ptx` installs what this needs (three wheels, pinned) and runs it; no GPU, driver or toolkit is needed.

    build_ptx.py write    writes ptx/*.ptx, and in ptx/report.txt registers and spills of every kernel for sm_80 and sm_90
    build_ptx.py check    fails where a committed file is not what the sources give

Both print the report, and fail where a kernel is over the budget.
"""
import ctypes
import glob
import hashlib
import importlib.util
import os
import re
import subprocess
import sys
import tempfile

HERE = os.path.dirname(os.path.abspath(__file__))
ARCHITECTURE = "compute_80"  # one PTX for every GPU from the A100 on; the driver compiles it further
ASSEMBLED = ("sm_80", "sm_90")
SPILL_BYTES_MAX = 0
REGISTERS_MAX = 255


def installed(*parts):
    spec = importlib.util.find_spec("nvidia")
    for root in spec.submodule_search_locations if spec else []:
        found = sorted(glob.glob(os.path.join(root, *parts)))
        if found:
            return found[0]
    sys.exit(f"not installed: {'/'.join(parts)}; run cargo xtask ptx")


def source_digest(path):
    """Of the source and then of all headers, in the order of their names."""
    digest = hashlib.sha256()
    for part in [path, *sorted(glob.glob(os.path.join(HERE, "*.cuh")))]:
        digest.update(open(part, "rb").read())
    return digest.hexdigest()


def compiled(nvrtc, path):
    def ok(code):
        if code:
            sys.exit(f"{path}: NVRTC says {code}")

    include = os.path.dirname(installed("cuda_runtime", "include", "cuda_fp16.h"))
    options = [f"--gpu-architecture={ARCHITECTURE}", "--std=c++17", "-default-device", f"-I{include}", f"-I{HERE}"]
    program, size = ctypes.c_void_p(), ctypes.c_size_t()
    name = os.path.basename(path).encode()
    ok(nvrtc.nvrtcCreateProgram(ctypes.byref(program), open(path, "rb").read(), name, 0, None, None))
    array = (ctypes.c_char_p * len(options))(*[option.encode() for option in options])
    code = nvrtc.nvrtcCompileProgram(program, len(options), array)
    nvrtc.nvrtcGetProgramLogSize(program, ctypes.byref(size))
    log = ctypes.create_string_buffer(size.value)
    nvrtc.nvrtcGetProgramLog(program, log)
    if log.value.strip():
        print(log.value.decode(), file=sys.stderr)
    ok(code)
    ok(nvrtc.nvrtcGetPTXSize(program, ctypes.byref(size)))
    ptx = ctypes.create_string_buffer(size.value)
    ok(nvrtc.nvrtcGetPTX(program, ptx))
    nvrtc.nvrtcDestroyProgram(ctypes.byref(program))
    return f"// sources sha256 {source_digest(path)}\n" + ptx.value.decode()


def sources():
    return sorted(glob.glob(os.path.join(HERE, "*.cu")))


def destination(path):
    return os.path.join(HERE, "ptx", os.path.basename(path)[:-3] + ".ptx")


def build(check):
    nvrtc = ctypes.CDLL(installed("cuda_nvrtc", "lib", "libnvrtc.so.*"))
    os.makedirs(os.path.join(HERE, "ptx"), exist_ok=True)
    stale = 0
    for path in sources():
        ptx, to = compiled(nvrtc, path), destination(path)
        if check:
            same = os.path.exists(to) and open(to).read() == ptx
            stale += not same
            print(f"{os.path.basename(to):<14} {'is what its sources give' if same else 'DIFFERS from its sources'}")
        else:
            open(to, "w").write(ptx)
            print(f"{os.path.basename(to):<14} {len(ptx)} bytes, {ptx.count('.entry')} kernels")
    text, over = report()
    print(text, end="")
    to = os.path.join(HERE, "ptx", "report.txt")
    if not check:
        open(to, "w").write(text)
    elif not os.path.exists(to) or open(to).read() != text:
        stale += 1
        print("report.txt     DIFFERS from what the assembler says")
    if over:
        sys.exit("over the budget:\n" + "\n".join(over))
    sys.exit(stale > 0)


def family(kernel):
    """attend_f16_l16_g4 -> (attend_f16, l16, g4)."""
    found = re.fullmatch(r"(.*?)(?:_l(\d+))?(?:_g(\d+))?", kernel)
    return found.group(1), found.group(2) or "-", found.group(3) or "-"


def report():
    """What the assembler makes of the PTX, as text, and what is over the budget."""
    assembler, over, kernels = installed("cuda_nvcc", "bin", "ptxas"), [], 0
    rows = {}
    with tempfile.TemporaryDirectory() as scratch:
        for architecture in ASSEMBLED:
            for path in map(destination, sources()):
                out = os.path.join(scratch, "out.cubin")
                run = subprocess.run([assembler, "-v", f"-arch={architecture}", "-o", out, path], capture_output=True, text=True)
                if run.returncode:
                    sys.exit(run.stderr)
                name = None
                for line in run.stderr.splitlines():
                    if found := re.search(r"entry function '(\w+)'", line):
                        name = found.group(1)
                    elif found := re.search(r"(\d+) bytes spill stores, (\d+) bytes spill loads", line):
                        spills = int(found.group(1)) + int(found.group(2))
                    elif name and (found := re.search(r"Used (\d+) registers", line)):
                        rows.setdefault(name, {})[architecture] = (int(found.group(1)), spills)
                        kernels += 1
                        if spills > SPILL_BYTES_MAX or int(found.group(1)) > REGISTERS_MAX:
                            over.append(f"{name} for {architecture}: {found.group(1)} registers, {spills} bytes of spills")
                        name = None
    digest = hashlib.sha256(b"".join(open(destination(path), "rb").read() for path in sources())).hexdigest()
    lines = [f"ptx sha256 {digest}"]
    lines.append(f"{'kernel':<22} {'lanes':>5} {'group':>5}  " + "  ".join(f"{a:>18}" for a in ASSEMBLED))
    for name in sorted(rows, key=lambda n: (family(n)[0], *(int(x) if x != '-' else 0 for x in family(n)[1:]))):
        base, lanes, group = family(name)
        cells = "  ".join(f"{rows[name][a][0]:>4} regs {rows[name][a][1]:>3} B sp" for a in ASSEMBLED)
        lines.append(f"{base:<22} {lanes:>5} {group:>5}  {cells}")
    most = {a: max(row[a][0] for row in rows.values()) for a in ASSEMBLED}
    spilled = sum(row[a][1] for row in rows.values() for a in ASSEMBLED)
    lines.append(f"{kernels} assemblies, most registers {most}, {spilled} bytes of spills; budget {SPILL_BYTES_MAX} bytes")
    return "\n".join(lines) + "\n", over


if __name__ == "__main__":
    commands = {"write": lambda: build(False), "check": lambda: build(True)}
    if len(sys.argv) != 2 or sys.argv[1] not in commands:
        sys.exit(__doc__)
    commands[sys.argv[1]]()
