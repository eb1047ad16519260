//! What the files of the instruction sets are written with: operations of lanes, and shells around the bodies.

/// Operations of lanes: `lane_ops! { fn name(arguments) -> result = expression; }`.
macro_rules! lane_ops {
    ($($(#[$doc:meta])* fn $name:ident($($arg:ident: $type:ty),*) $(-> $out:ty)? = $body:expr;)*) => {$(
        $(#[$doc])*
        #[inline(always)]
        fn $name(self, $($arg: $type),*) $(-> $out)? {
            // SAFETY: `self` proves that the processor has the instructions. Loads and stores are unaligned and go
            // through references to arrays of exactly their width, or to
            // constant tables, all of one or one half of one of two.
            unsafe { $body }
        }
    )*};
}
pub(crate) use lane_ops;

/// One shell per operation: the body, compiled with the extensions enabled, behind an ordinary function. The proof that the processor
/// has them comes first, and their names.
macro_rules! shells {
    (
        $isa:ty = $proof:expr, $features:literal;
        $(fn $name:ident($($arg:ident: $type:ty),* $(,)?) $(-> $out:ty)? = $body:path;)*
    ) => {$(
        fn $name($($arg: $type),*) $(-> $out)? {
            #[target_feature(enable = $features)]
            fn shell(isa: $isa, $($arg: $type),*) $(-> $out)? {
                $body(isa, $($arg),*)
            }
            // SAFETY: this function is private and found only in the table that the file's `kernels` gives for a proof that the
            // processor has the extensions.
            unsafe { shell($proof, $($arg),*) }
        }
    )*};
}
pub(crate) use shells;
