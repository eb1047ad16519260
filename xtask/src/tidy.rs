//! Rules of the code base that the compiler does not know. They are kept here so that they hold without a reviewer.

use std::fmt;
use std::fs;
use std::path::Path;
use std::str::FromStr;

use anyhow::{Context, Result, bail};
use proc_macro2::{Ident, Punct, Spacing, TokenStream, TokenTree};

/// Lines of a Rust file, tests included.
const LINES_MAX: usize = 500;

/// The files that may hold `unsafe`. A file that no longer needs it is taken off.
const UNSAFE_FILES: &[&str] = &[
    "gpu/emulation/src/lib.rs",
    "gpu/src/launch.rs",
    "kernels/src/avx2.rs",
    "kernels/src/avx512.rs",
    "kernels/src/shells.rs",
    "src/published.rs",
    "storage/src/mapping.rs",
];

/// Names that say nothing about what is inside.
const MODULE_NAMES_DENIED: &[&str] = &["utils", "common", "helpers"];

const MACROS_DENIED: &[&str] = &["dbg", "todo", "unimplemented"];

/// Marks of unfinished work; put together here so that this file does not hold them.
const MARKS_DENIED: &[&str] = &[concat!("TO", "DO"), concat!("FIX", "ME")];

/// A breach of a rule.
#[derive(Debug, PartialEq)]
struct Fault {
    /// Relative to the root, with `/`.
    file: String,
    /// From 1.
    line: usize,
    what: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}:{}: {}", self.file, self.line, self.what)
    }
}

/// Checks all Rust files below `root`.
///
/// # Errors
/// One line for every fault.
pub fn run(root: &Path) -> Result<String> {
    let mut files = Vec::new();
    collect_rust_files(root, "", &mut files)?;
    let mut faults = Vec::new();
    for file in &files {
        let text = fs::read_to_string(root.join(file)).with_context(|| format!("cannot read {file}"))?;
        faults.extend(check(file, &text, UNSAFE_FILES));
    }
    for &listed in UNSAFE_FILES.iter().filter(|&&listed| !files.iter().any(|file| file == listed)) {
        let what = "is allowed to hold `unsafe` and is not there: take it off the list in xtask/src/tidy.rs";
        faults.push(Fault { file: listed.into(), line: 1, what: what.into() });
    }
    if !faults.is_empty() {
        let lines: Vec<String> = faults.iter().map(Fault::to_string).collect();
        bail!("{} faults:\n{}", lines.len(), lines.join("\n"));
    }
    Ok(format!("{} files", files.len()))
}

/// Rust files below `directory` of `root`, in the order of their names. Hidden directories are left out, and those
/// with a cache tag, which cargo puts into its target directories.
fn collect_rust_files(root: &Path, directory: &str, files: &mut Vec<String>) -> Result<()> {
    let path = root.join(directory);
    let entries = fs::read_dir(&path).with_context(|| format!("cannot list {}", path.display()))?;
    let mut entries = entries.collect::<Result<Vec<_>, _>>()?;
    entries.sort_by_key(fs::DirEntry::file_name);
    for entry in entries {
        let name = entry.file_name().to_string_lossy().into_owned();
        let file = if directory.is_empty() { name.clone() } else { format!("{directory}/{name}") };
        if entry.file_type()?.is_dir() {
            if !name.starts_with('.') && !entry.path().join("CACHEDIR.TAG").exists() {
                collect_rust_files(root, &file, files)?;
            }
        } else if name.ends_with(".rs") {
            files.push(file);
        }
    }
    Ok(())
}

/// All faults of one file. `unsafe_files` are those that must hold `unsafe`; no other may.
fn check(file: &str, text: &str, unsafe_files: &[&str]) -> Vec<Fault> {
    let mut faults = Vec::new();
    let mut fault = |line, what: String| faults.push(Fault { file: file.into(), line, what });

    let line_count = text.lines().count();
    if line_count > LINES_MAX {
        fault(LINES_MAX + 1, format!("{line_count} lines, at most {LINES_MAX}: split the file"));
    }
    for (index, line) in text.lines().enumerate() {
        let mut words = line.split(|letter: char| !letter.is_alphanumeric() && letter != '_');
        if let Some(mark) = words.find(|word| MARKS_DENIED.contains(word)) {
            fault(index + 1, format!("{mark}: do it, or file an issue"));
        }
    }
    let path_names = file.trim_end_matches(".rs").split('/');
    for name in path_names.filter(|name| MODULE_NAMES_DENIED.contains(name)) {
        fault(1, format!("`{name}` in the path says nothing about what is inside"));
    }
    let tokens = match TokenStream::from_str(text) {
        Ok(tokens) => tokens,
        Err(error) => {
            fault(error.span().start().line, "is no Rust".into());
            return faults;
        }
    };
    let mut found = Found::default();
    found.search(tokens);
    found.faults.into_iter().for_each(|(line, what)| fault(line, what));
    match (unsafe_files.contains(&file), found.unsafe_lines.first()) {
        (false, Some(&line)) => {
            fault(line, format!("`unsafe` may only be in: {}", unsafe_files.join(", ")));
        }
        (true, None) => fault(1, "holds no `unsafe`: take it off the list in xtask/src/tidy.rs".into()),
        _ => {}
    }
    faults
}

/// What a walk over the tokens of a file found. Comments and strings are no tokens, or single ones.
#[derive(Default)]
struct Found {
    unsafe_lines: Vec<usize>,
    faults: Vec<(usize, String)>,
}

impl Found {
    fn search(&mut self, tokens: TokenStream) {
        let mut tokens = tokens.into_iter().peekable();
        while let Some(token) = tokens.next() {
            match token {
                TokenTree::Group(group) => self.search(group.stream()),
                TokenTree::Ident(word) => self.judge(&word, tokens.peek()),
                TokenTree::Punct(_) | TokenTree::Literal(_) => {}
            }
        }
    }

    /// One word and what follows it.
    fn judge(&mut self, word: &Ident, next: Option<&TokenTree>) {
        let line = word.span().start().line;
        let word = word.to_string();
        match next {
            _ if word == "unsafe" => self.unsafe_lines.push(line),
            Some(TokenTree::Ident(name)) if word == "mod" => {
                let name = name.to_string();
                if MODULE_NAMES_DENIED.contains(&name.as_str()) {
                    self.faults
                        .push((line, format!("module `{name}`: the name says nothing about what is inside")));
                }
            }
            Some(TokenTree::Punct(mark)) if is_macro_call(mark) && MACROS_DENIED.contains(&word.as_str()) => {
                self.faults.push((line, format!("{word}! is for work in progress")));
            }
            _ => {}
        }
    }
}

/// Whether `mark`, after a word, makes it a macro call and not a comparison by `!=`.
fn is_macro_call(mark: &Punct) -> bool {
    mark.as_char() == '!' && mark.spacing() == Spacing::Alone
}

#[cfg(test)]
mod tests {
    use super::*;

    const LISTED: &[&str] = &["kernels/src/isa.rs"];

    /// Lines and texts of the faults of `text` in an unlisted file.
    fn faults(text: &str) -> Vec<(usize, String)> {
        check("index/src/probe.rs", text, LISTED).into_iter().map(|fault| (fault.line, fault.what)).collect()
    }

    #[test]
    fn plain_code_passes() {
        let text = "//! unsafe, mod utils; only in words.\n\
            #![deny(unsafe_op_in_unsafe_fn)]\n\
            mod utilisation;\n\
            /* unsafe { } dbg!(1) */\n\
            fn f<'a>(common: &'a str) -> char { let _ = r#\"unsafe \"mod helpers\" todo!()\"#; todo(); '\"' }\n";
        assert_eq!(faults(text), []);
    }

    #[test]
    fn unsafe_fails_outside_the_listed_files_only() {
        let text = "fn f() {\n    if g() {\n        unsafe { h() }\n    }\n}\n";
        let found = faults(text);
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].0, 3);
        assert!(found[0].1.contains("kernels/src/isa.rs"), "{}", found[0].1);
        assert_eq!(check("kernels/src/isa.rs", text, LISTED), []);
        for form in
            ["unsafe fn f() {}", "unsafe impl Send for T {}", "macro_rules! m { () => { unsafe { f() } } }"]
        {
            assert_eq!(faults(form).len(), 1, "{form}");
        }
    }

    #[test]
    fn a_listed_file_without_unsafe_fails() {
        let found = check("kernels/src/isa.rs", "fn f() {}\n", LISTED);
        assert_eq!(found.len(), 1);
        assert!(found[0].what.contains("take it off"), "{}", found[0]);
    }

    #[test]
    fn empty_names_of_modules_fail() {
        for (file, text) in [
            ("index/src/probe.rs", "pub(crate) mod helpers;"),
            ("index/src/probe.rs", "fn f() {}\nmod a { mod utils { } }"),
            ("index/src/utils.rs", ""),
            ("index/tests/common/mod.rs", ""),
        ] {
            assert_eq!(check(file, text, LISTED).len(), 1, "{file}: {text}");
        }
        assert_eq!(faults("mod a {\n    mod common {}\n}")[0].0, 2);
    }

    #[test]
    fn unfinished_work_fails() {
        for mark in MARKS_DENIED {
            assert_eq!(faults(&format!("fn f() {{}}\n// {mark}: more"))[0].0, 2);
            assert_eq!(faults(&format!("/// {mark}(name) more\nfn f() {{}}")).len(), 1);
            assert_eq!(faults(&format!("const {mark}S: u8 = 1;")), [], "only whole words count");
        }
        for macro_name in MACROS_DENIED {
            assert_eq!(faults(&format!("fn f() {{\n    g({macro_name}!(1));\n}}"))[0].0, 2);
        }
        assert_eq!(faults("fn f(dbg: bool) -> bool { dbg != true }"), []);
    }

    #[test]
    fn long_files_fail() {
        assert_eq!(faults(&"\n".repeat(LINES_MAX)), []);
        let found = faults(&"\n".repeat(LINES_MAX + 1));
        assert_eq!(found.len(), 1);
        assert!(found[0].1.contains("501 lines"), "{}", found[0].1);
    }

    #[test]
    fn what_does_not_lex_fails_with_its_line() {
        assert_eq!(faults("fn f() {}\nfn g( {\n"), [(2, "is no Rust".to_owned())]);
    }

    #[test]
    fn the_walk_goes_deep_and_leaves_out_what_is_built() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path();
        for file in ["b/deep/x.rs", "a.rs", "b/notes.md", ".git/y.rs", "out/z.rs", "out/CACHEDIR.TAG"] {
            fs::create_dir_all(root.join(file).parent().unwrap()).unwrap();
            fs::write(root.join(file), "").unwrap();
        }
        let mut files = Vec::new();
        collect_rust_files(root, "", &mut files).unwrap();
        assert_eq!(files, ["a.rs", "b/deep/x.rs"]);
    }
}
