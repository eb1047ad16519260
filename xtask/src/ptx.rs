//! `cargo xtask ptx`: compiles the CUDA kernels with the compiler and the assembler that are on PyPI, pinned. Neither a GPU
//! nor a driver nor a toolkit is needed.

use anyhow::Result;

use crate::command::CommandLine;
use crate::workspace::Workspace;

/// NVRTC, the headers that it reads, and the assembler. A driver refuses PTX that is newer than itself: this is what drivers
/// from CUDA 12.4 on read.
const WHEELS: [&str; 3] = [
    "nvidia-cuda-nvrtc-cu12==12.4.127",
    "nvidia-cuda-runtime-cu12==12.4.127",
    "nvidia-cuda-nvcc-cu12==12.4.131",
];

/// Writes the PTX and the assembler's report, or with `check` compares them with the sources; registers and spills must be within
/// the budget.
///
/// # Errors
/// If the wheels cannot be had, the kernels do not compile, the PTX is stale, or a kernel is over the budget.
pub fn run(workspace: &Workspace, check: bool) -> Result<()> {
    let packages = workspace.data_directory().join("cuda-12.4");
    let root = workspace.root.as_path();
    if !packages.join("nvidia/cuda_nvcc/bin/ptxas").exists() {
        let pip =
            ["-m", "pip", "install", "--disable-pip-version-check", "--no-input", "--quiet", "--no-deps"];
        let pip = CommandLine::new("python3").args(&pip).args(&["--only-binary", ":all:", "--target"]);
        pip.arg(&packages).args(&WHEELS).run(root)?;
    }
    let command = if check { "check" } else { "write" };
    let script = CommandLine::new("python3").arg("kernels/cuda/build_ptx.py").arg(command);
    script.env("PYTHONPATH", &packages).run(root)
}
