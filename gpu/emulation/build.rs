//! Builds the kernels, the emulation and the stand-in for the driver into one `libcuda.so`.

use std::env;
use std::fs;
use std::path::PathBuf;

const KERNELS: &str = "../../kernels/cuda";

fn main() {
    println!("cargo:rerun-if-changed={KERNELS}");
    println!("cargo:rerun-if-changed=device");
    println!("cargo:rerun-if-env-changed=CUEMU_SANITIZE");
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    let mut sources: Vec<PathBuf> = fs::read_dir(KERNELS)
        .expect("the kernels lie beside this crate")
        .map(|entry| entry.expect("a readable directory").path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "cu"))
        .collect();
    sources.sort();
    sources.extend(["device/cuemu.cpp".into(), "device/driver.cpp".into()]);

    let mut build = cc::Build::new();
    build.cpp(true).std("c++17").opt_level(2).pic(true).debug(false).warnings(false);
    build.define("CUEMU", None).include("device").include(KERNELS).flag_if_supported("-Wno-unknown-pragmas");
    if env::var("CARGO_CFG_TARGET_ARCH").is_ok_and(|arch| arch == "x86_64") {
        // Inline fmaf, and cheap thread-local storage in the library.
        build.flag("-march=x86-64-v3").flag_if_supported("-mtls-dialect=gnu2");
    }
    if let Ok(sanitizers) = env::var("CUEMU_SANITIZE") {
        // The tests then run with LD_PRELOAD=$(gcc -print-file-name=libasan.so) ASAN_OPTIONS=detect_leaks=0.
        build.flag(format!("-fsanitize={sanitizers}")).flag("-fno-omit-frame-pointer").flag("-g");
    }
    let compiler = build.get_compiler();
    let mut running = Vec::new();
    for source in &sources {
        let object = out.join(source.file_stem().expect("a file has a name")).with_extension("o");
        // -x c++, since cc would hand a .cu to nvcc.
        let mut compile = compiler.to_command();
        compile.args(["-x", "c++", "-c"]).arg(source).arg("-o").arg(&object);
        running.push((object, compile.spawn().expect("the C++ compiler starts")));
    }
    let mut objects = Vec::new();
    for (object, mut child) in running {
        assert!(child.wait().is_ok_and(|status| status.success()), "{} did not compile", object.display());
        objects.push(object);
    }
    let library = out.join("libcuda.so");
    let mut link = compiler.to_command();
    link.args(["-shared", "-Wl,-soname,libcuda.so", "-Wl,-z,defs", "-o"]).arg(&library).args(&objects);
    let linked = link.args(["-x", "none", "-lpthread"]).status();
    assert!(linked.is_ok_and(|status| status.success()), "the emulation did not link");
    println!("cargo:rustc-env=EMULATED_LIBCUDA={}", library.display());
}
