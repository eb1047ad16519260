//! Builds the kernels, the emulation and the stand-in for the driver into one `libcuda.so`.

use std::collections::hash_map::DefaultHasher;
use std::env;
use std::fs;
use std::hash::{Hash, Hasher};
use std::path::{Path, PathBuf};

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
        let mut compile = compiler.to_command();
        // What has not changed is not compiled again: of many faults tried in turn, each is in one file.
        let (made, made_from) = (digest(source, &compile), object.with_extension("digest"));
        if object.exists() && fs::read_to_string(&made_from).is_ok_and(|before| before == made) {
            running.push((object, None));
            continue;
        }
        fs::write(&made_from, "").expect("the output directory is writable");
        // -x c++, since cc would hand a .cu to nvcc.
        compile.args(["-x", "c++", "-c"]).arg(source).arg("-o").arg(&object);
        running.push((object, Some((compile.spawn().expect("the C++ compiler starts"), made_from, made))));
    }
    let mut objects = Vec::new();
    for (object, compiling) in running {
        if let Some((mut child, made_from, made)) = compiling {
            assert!(
                child.wait().is_ok_and(|status| status.success()),
                "{} did not compile",
                object.display()
            );
            fs::write(made_from, made).expect("the output directory is writable");
        }
        objects.push(object);
    }
    let library = out.join("libcuda.so");
    let mut link = compiler.to_command();
    link.args(["-shared", "-Wl,-soname,libcuda.so", "-Wl,-z,defs", "-o"]).arg(&library).args(&objects);
    let linked = link.args(["-x", "none", "-lpthread"]).status();
    assert!(linked.is_ok_and(|status| status.success()), "the emulation did not link");
    println!("cargo:rustc-env=EMULATED_LIBCUDA={}", library.display());
}

/// Of a source, all headers that it may include, and how it is compiled.
fn digest(source: &Path, compile: &std::process::Command) -> String {
    let mut hasher = DefaultHasher::new();
    format!("{compile:?}").hash(&mut hasher);
    let mut files: Vec<PathBuf> = [KERNELS, "device"]
        .iter()
        .flat_map(|directory| fs::read_dir(directory).expect("a directory of this crate"))
        .map(|entry| entry.expect("a readable directory").path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "cuh" || extension == "h"))
        .collect();
    files.sort();
    files.insert(0, source.into());
    files.iter().for_each(|file| fs::read(file).expect("a readable source").hash(&mut hasher));
    format!("{:016x}", hasher.finish())
}
